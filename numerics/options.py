"""Options: fields of a frozen dataclass with a type, a default and a line that says what they do.

    @dataclass(frozen=True, kw_only=True)
    class Euler:
        steps: int = option(100, "steps of the grid")

A command line, a config or a notebook can be built from these; the type is never guessed from the default.
"""

import dataclasses
import typing
from typing import Any


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
