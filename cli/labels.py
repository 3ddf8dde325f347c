"""The word that names a class on the command line: its number, or its name in the run's data set."""

from collections.abc import Sequence

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import nearest, parse


def class_of(word: str, classes: int, names: Sequence[str] = ()) -> int:
    """The number of the class that `word` names: a number from 0 to classes - 1, or one of `names` (name i is class i).

    A word that is a whole number is the number, also where a class has it as its name. Upper and lower case are one if no
    name is meant exactly. Raises ArgumentError with what is allowed, and with the nearest name:

    >>> class_of("3", 10), class_of("Truck", 3, ["bird", "ship", "truck"])
    (3, 2)
    """
    number = _number(word)
    if number is not None:
        if 0 <= number < classes:
            return number
        raise ArgumentError(f"label must be {allowed(classes, names)}, got {word}", "label")
    matches = [i for i, name in enumerate(names) if name == word] or [
        i for i, name in enumerate(names) if name.casefold() == word.strip().casefold()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ArgumentError(f"label {word!r} names the classes {', '.join(map(str, matches))}; give a number", "label")
    raise ArgumentError(f"label must be {allowed(classes, names)}, got {word!r}{nearest(word, names)}", "label")


def allowed(classes: int, names: Sequence[str] = ()) -> str:
    """What `class_of` takes, in words."""
    shown = ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])}, ..."
    return f"a number from 0 to {classes - 1}" + (f" or a name ({shown})" if names else "")


def _number(word: str) -> int | None:
    try:
        value = parse(word, int)
    except ValueError:
        return None
    return int(value)
