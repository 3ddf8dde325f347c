"""Parse values from the text of a command line, by the declared type of the option or field."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from scorefield.numerics.errors import ArgumentError

_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
LARGEST = {int: 2**64 - 1, float: 3e38}
NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word",
         tuple: "numbers such as (1, 2)"}


def base_type(annotation: Any) -> tuple[type, bool]:
    """The plain type of an annotation (int, float, bool, str or tuple), and whether it allows None.

    `int | None` is (int, True), `Sequence[int]` is (tuple, False), and `str | Sequence[float]` is (str, False).
    """
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = typing.get_args(annotation) if union else (annotation,)
    first = next(option for option in options if option is not type(None))
    origin = typing.get_origin(first) or first
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str):
        origin = tuple
    if origin not in NAMES:
        raise TypeError(f"a setting cannot be {annotation!r}; it can be {', '.join(kind.__name__ for kind in NAMES)}")
    return origin, type(None) in options


def _whole(annotation: Any) -> bool:
    """Whether an annotation means a sequence of whole numbers."""
    return typing.get_args(annotation)[:1] == (int,) or any(_whole(option) for option in typing.get_args(annotation))


def parse(text: str, annotation: Any) -> Any:
    """The value of `text` in the type of an annotation; ValueError with the expected type.

    Numbers have plain digits: 0x10, digits of other scripts, inf and nan are refused, and so are numbers that nothing here
    can be: whole ones from 2^64 on (seeds go up to there), others beyond float32. "None" is None if the type allows it.
    """
    kind, optional = base_type(annotation)
    if optional and text == "None":
        return None
    whole = kind is tuple and _whole(annotation)
    try:
        value = _parsed(text.strip() if kind is not str else text, kind)
        if whole and not all(type(number) is int for number in value):
            raise ValueError
        return value
    except (ValueError, OverflowError):
        name = "whole numbers such as (1, 2)" if whole else NAMES[kind]
        raise ValueError(f"must be {name}{' or None' if optional else ''}, got {_short(text)!r}") from None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parsed(text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError
        return _BOOLS[text.lower()]
    if kind is tuple:
        words = text.strip("()[] ").rstrip(",")
        return tuple(_number(word.strip()) for word in words.split(",")) if words else ()
    value = _number(text)
    if kind is int and (value != int(value) or abs(value) > LARGEST[int]):
        raise ValueError
    return kind(value)


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        value: int | float = int(text) if len(text) < 1000 else LARGEST[int] + 1      # Python reads no more than 4300 digits
    elif not _NUMBER.fullmatch(text):
        raise ValueError
    else:
        value = float(text)
    if not abs(value) <= LARGEST[type(value)]:
        raise ValueError
    return value


def printable(text: str) -> str:
    """The text with what is not UTF-8, as in names of files, written as escapes: "caf\\udce9"."""
    return text.encode("utf-8", "backslashreplace").decode()


def nearest(word: str, words: Iterable[str]) -> str:
    """"; did you mean 'x'?" with the nearest of `words`, or "" if none is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def choose(kind: str, registry: Any, word: Any, argument: str) -> Any:
    """registry[word]; for an unknown word, ArgumentError about `argument` with all words and the nearest."""
    if not isinstance(word, str) or word not in registry:
        raise ArgumentError(f"unknown {kind} {word!r}; choose from {', '.join(registry)}{nearest(str(word), registry)}",
                            argument)
    return registry[word]


def short_number(value: float) -> str:
    """A number in three digits: 0.0312, 1280, 2.5e-7."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}"
        return f"{value:.0f}" if "e" in text else text
    mantissa, _, power = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(power)}" if power else mantissa
