"""Sections of a config: one field names a class, the others are the arguments of that class, with its defaults."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import base_type, choose, nearest

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Field:
    """A field of a section: its annotation and its default (REQUIRED if it has no default)."""

    annotation: Any
    default: Any


def arguments(taker: Callable[..., Any], without: tuple[str, ...] = ()) -> dict[str, Field]:
    """The arguments of a class or function by name, except for those in `without`."""
    hints = typing.get_type_hints(taker.__init__ if isinstance(taker, type) else taker)  # type: ignore[misc]
    return {name: Field(hints[name], parameter.default) for name, parameter in inspect.signature(taker).parameters.items()
            if name not in without and parameter.kind is not parameter.VAR_KEYWORD}


@dataclass(frozen=True)
class Section:
    """A kind of section.

    name      of the section in the config, such as "sde"
    word      the field that names the class
    registry  the classes by name
    taker     maps an entry of the registry to the class or function whose arguments are the fields
    beside    maps an entry to a second class whose arguments are fields, too, or to None; these keep their values when
              another entry is named
    without   arguments of the named class that are not fields, since they come from elsewhere
    apart     arguments of the second class that are not fields, for the same reason
    choices   fields of the second class that name a class, too, with their registries; its arguments are fields
    """

    name: str
    word: str
    registry: Mapping[str, Any]
    taker: Callable[[Any], Callable[..., Any]] = lambda entry: entry
    beside: Callable[[Any], Callable[..., Any] | None] = lambda entry: None
    without: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    choices: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def entry(self, word: Any) -> Any:
        """The entry that `word` names; ArgumentError with all names for an unknown one."""
        return choose(f"{self.name}.{self.word}", self.registry, word, f"{self.name}.{self.word}")

    def beside_fields(self, word: str) -> dict[str, Field]:
        """The fields that belong to the second class."""
        beside = self.beside(self.entry(word))
        return {} if beside is None else arguments(beside, self.apart)

    def own_fields(self, word: str) -> dict[str, Field]:
        """The fields of the named class."""
        return arguments(self.taker(self.entry(word)), self.without)

    def chosen(self, word: str, given: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        """For each choice the word that `given` has for it, or its default, and the class; ArgumentError if unknown."""
        beside = self.beside_fields(word)
        words = {field: given[field] if given.get(field) is not None else beside[field].default for field in self.choices}
        return {field: (word, choose(field, self.choices[field], word, f"{self.name}.{field}"))
                for field, word in words.items()}

    def fields(self, word: str, given: Mapping[str, Any] | None = None) -> dict[str, Field]:
        """All fields except for `word` itself, where `given` has the choices; those that it lacks have their defaults."""
        result = self.beside_fields(word) | self.own_fields(word)
        for _, kind in self.chosen(word, given or {}).values():
            result |= arguments(kind)
        return result

    def every_field(self) -> dict[str, Field]:
        """The fields of all classes that a section may name."""
        result = {name: field for registry in self.choices.values() for kind in registry.values()
                  for name, field in arguments(kind).items()}
        return {name: field for word in self.registry for name, field in self.fields(word).items()} | result

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with defaults for missing fields; ArgumentError for a field that the named class does not take.

        A missing required field is None. Configs before version 0.2 had the fields of every class, with None for those that
        were not set. So None means the default if a field cannot be None, and another class's field of None is left out.
        """
        word = given.get(self.word)
        fields = self.fields(str(word), given)
        for name, value in given.items():
            if name != self.word and name not in fields and value is not None:
                raise ArgumentError(self.refusal(name, given), f"{self.name}.{name}")
        return {self.word: word} | {name: _value(field, name in given, given.get(name)) for name, field in fields.items()}

    def refusal(self, name: str, given: Mapping[str, Any]) -> str:
        """Why a section has no field of this name, and what to do."""
        word, fields = given.get(self.word), self.fields(str(given.get(self.word)), given)
        for choice, registry in self.choices.items():
            if takers := [other for other, kind in registry.items() if name in arguments(kind)]:
                has = self.chosen(str(word), given)[choice][0]
                return f"{self.name}.{choice}={has} takes no {name!r}; it belongs to {' and '.join(takers)}"
        return f"{word!r} takes no {name!r}; it takes {', '.join(fields) or 'nothing'}{nearest(name, fields)}"

    def split(self, section: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The named entry, its arguments, and those of the second class; ArgumentError if a required one is missing."""
        whole = self.complete(section)
        word = whole[self.word]
        for name, field in self.fields(word, whole).items():
            if field.default is REQUIRED and whole[name] is None:
                raise ArgumentError(f"{self.name}.{name} has no default for {word!r}; give it", f"{self.name}.{name}")
        own, beside = self.own_fields(word), self.beside_fields(word)
        return self.entry(word), {n: whole[n] for n in own}, {n: whole[n] for n in beside}


def _value(field: Field, given: bool, value: Any) -> Any:
    kind, optional = base_type(field.annotation)
    if not given or (value is None and not optional):
        return None if field.default is REQUIRED else plain(field.default)
    return float(value) if kind is float and type(value) is int else plain(value)


def plain(value: Any) -> Any:
    """A value with tuples in place of lists."""
    return tuple(value) if isinstance(value, list) else value
