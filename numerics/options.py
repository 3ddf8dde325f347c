"""Options: fields of a frozen dataclass with a type, a default and a line that says what they do.

    @dataclass(frozen=True, kw_only=True)
    class Euler:
        steps: int = option(100, "steps of the grid")

A command line, a config or a notebook can be built from these; the type is never guessed from the default.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import choose, nearest, parse


def option(default: Any, text: str) -> Any:
    """A dataclass field with this default, whose metadata["help"] is `text`."""
    return dataclasses.field(default=default, metadata={"help": text})


def options_of(kind: type) -> dict[str, "dataclasses.Field[Any]"]:
    """The options of a dataclass by name, in their order: each has `type`, `default` and `metadata["help"]`.

    The type is resolved: int, bool, `float | None` and so on, never a string.
    """
    types, fields = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        field.type = types[field.name]
        fields[field.name] = field
    return fields


def filled(kind: Any, settings: Any) -> Any:
    """An object of the dataclass `kind` whose options have the values of the attributes of `settings`."""
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)})


def worded(kind: str, registry: Mapping[str, type], text: str, argument: str) -> tuple[Any, dict[str, Any]]:
    """The dataclass that NAME[:OPTION=VALUE ...] chooses from a registry, and its options, parsed by their types.

        worded("weighting", WEIGHTINGS, "p2:k=1:gamma=0.5", "weighting")      # (P2, {"k": 1.0, "gamma": 0.5})

    Raises ArgumentError about `argument` for a name, an option or a value that does not exist.
    """
    name, *pairs = str(text).split(":")
    chosen = choose(kind, registry, name, argument)
    known = {word: field for word, field in options_of(chosen).items() if "help" in field.metadata}

    def refusal(pair: str, word: str) -> str:
        takes = ", ".join(f"{name}=VALUE" for name in known) or "no options"
        return f"{kind} {name!r} takes {takes} after a colon, got {pair!r}{nearest(word, known)}"

    return chosen, of_pairs(text, pairs, known, refusal, argument)


def of_pairs(text: str, pairs: Sequence[str], known: Mapping[str, Any], refusal: Callable[[str, str], str], argument: str
             ) -> dict[str, Any]:
    """The options in OPTION=VALUE pairs, parsed by the types of the `known` ones.

    text     that the pairs are of, for messages
    refusal  of a pair and its option: why there is no such option

    Raises ArgumentError about `argument` for an option or a value that does not exist.
    """
    options = {}
    for pair in pairs:
        word, equals, value = pair.partition("=")
        if word not in known or not equals:
            raise ArgumentError(f"{text!r}: {refusal(pair, word)}", argument)
        try:
            options[word] = parse(value, known[word].type)
        except ValueError as error:
            raise ArgumentError(f"{text!r}: {word} {error}", argument) from None
    return options
