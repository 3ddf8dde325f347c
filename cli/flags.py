"""The flags of the modes and the options of samplers and estimators, as one table that parses a command line.

A flag is text until its class is known; the declared type of the option then parses it (numerics/text.py). So two samplers
may have options with the same name and different types.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import options_of
from scorefield.numerics.text import base_type, parse


@dataclass(frozen=True)
class Flag:
    """One flag of a mode: its name, declared type, default, a line of help, and the allowed words, if it has such a list."""

    name: str
    annotation: Any
    default: Any
    help: str
    choices: Sequence[str] = ()

    def value(self, text: str) -> Any:
        """The flag's value from text; ArgumentError if the text is not a value of its type or not one of its choices."""
        try:
            value = parse(text, self.annotation)
        except ValueError as error:
            raise ArgumentError(f"{self.name} {error}", self.name) from None
        if self.choices and value not in self.choices:
            raise ArgumentError(f"unknown {self.name} {text!r}; choose from {', '.join(self.choices)}", self.name)
        return value


CHECKPOINT = Flag("checkpoint", str, None, "start from a .safetensors, a .pth of score_sde_pytorch, a .pt of openai or DiT, "
                  "a folder of diffusers, or owner/name on the Hugging Face hub; it is copied to the run's folder, "
                  "runs/<its name>")
EMA = Flag("ema", bool, True, "use the averaged weights; --noema uses the raw ones")
STRICT = Flag("strict", bool, False, "refuse a run whose newest checkpoint is damaged; else the one before it is used")
AVERAGE = Flag("average", str, None, "which weights: ema, raw, a name in training.averages, or power and any width, such as "
               "power0.13, made from the run's snapshots")
SEED = Flag("seed", int, 0, "seed of all random numbers; example i depends only on (seed, i)")
COMPILE = Flag("compile", bool, False, "compile the network with torch.compile, which takes a while at first")
BATCH_SIZE = Flag("batch_size", int, 128, "examples in one batch; adaptive solvers choose their steps for a whole batch")


def words(name: str, text: str) -> list[str]:
    """The words of a flag that holds several, such as fid,kid; ArgumentError for an empty one."""
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise ArgumentError(f"{name} must be words with commas between them, got {text!r}", name)
    return found


def flags_of(settings: type, without: Sequence[str] = ()) -> dict[str, Flag]:
    """The options of a dataclass as flags, with the type, default and help that its fields declare."""
    return {name: Flag(name, field.type, field.default, field.metadata["help"])
            for name, field in options_of(settings).items() if name not in without}


class Table:
    """All flags of the command line, by mode.

    common   the flags of every mode
    modes    the flags of each mode
    options  for a mode, the options of each class that one of its flags chooses: {mode: {class: {option: Flag}}}

    Raises TypeError for an option that has the same name as a flag of its mode.
    """

    def __init__(self, common: Sequence[Flag], modes: Mapping[str, Sequence[Flag]],
                 options: Mapping[str, Mapping[str, Mapping[str, Flag]]]):
        self.common, self.options = {flag.name: flag for flag in common}, options
        self.modes = {mode: {flag.name: flag for flag in own} for mode, own in modes.items()}
        for mode, classes in options.items():
            taken = {**self.common, **self.modes[mode]}
            for name, own in classes.items():
                if clash := [option for option in own if option in taken]:
                    raise TypeError(f"the option {clash[0]!r} of {name!r} has the name of a flag of mode {mode}; rename it")

    @property
    def names(self) -> set[str]:
        """Every flag and option."""
        owners = [self.common, *self.modes.values(), *(own for classes in self.options.values() for own in classes.values())]
        return {name for own in owners for name in own}

    def takers(self, name: str) -> list[str]:
        """The modes that take a flag or an option of this name."""
        return [mode for mode in self.modes if name in self.modes[mode]
                or any(name in own for own in self.options.get(mode, {}).values())]

    def parse(self, words: Sequence[str]) -> tuple[dict[str, str | bool], list[str]]:
        """The given flags, as text (bool for a switch), and the words that are not flags. Raises absl's Error for an unknown
        flag.
        """
        values = flags.FlagValues()
        every = [*self.common.values(), *(flag for own in self.modes.values() for flag in own.values()),
                 *(flag for classes in self.options.values() for own in classes.values() for flag in own.values())]
        switches = {flag.name for flag in every if base_type(flag.annotation)[0] is bool}
        if mixed := [flag.name for flag in every if flag.name in switches and base_type(flag.annotation)[0] is not bool]:
            raise TypeError(f"the option {mixed[0]!r} is a switch in one place and has a value in another; rename one")
        for name in dict.fromkeys(flag.name for flag in every):
            define = flags.DEFINE_bool if name in switches else flags.DEFINE_string
            define(name, None, "", flag_values=values)
        rest = values(["main.py", *words])[1:]
        return {name: flag.value for name in values if (flag := values[name]).present and flag.value is not None}, rest


def describe(own: Sequence[Flag], indent: str = "  ") -> list[str]:
    """A line or two of help for each flag."""
    lines = []
    for flag in own:
        shown = f"--[no]{flag.name}" if base_type(flag.annotation)[0] is bool else f"--{flag.name}"
        words = f" ({', '.join(flag.choices)})" if flag.choices else ""
        default = "" if flag.default in (None, "") or isinstance(flag.default, bool) else f" [{_short(flag.default)}]"
        lines += wrapped(shown, flag.help + words + default, indent)
    return lines


def describe_options(classes: Mapping[str, Mapping[str, Flag]], indent: str = "  ") -> list[str]:
    """A line of help for each option, with the classes that take it and their defaults."""
    together: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for name, own in classes.items():
        for flag in own.values():
            together.setdefault((flag.name, flag.help), []).append((name, flag.default))
    lines = []
    for (option, text), takers in sorted(together.items()):
        names = [f"{name}{'' if default is None else f' {_short(default)}'}" for name, default in takers]
        who = "all" if len(takers) == len(classes) and len({str(d) for _, d in takers}) == 1 else ", ".join(names)
        lines += wrapped(f"--{option}", f"{text} [{who}]", indent)
    return lines


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def wrapped(name: str, text: str, indent: str = "  ") -> list[str]:
    """A name and its text, in lines of at most 118 characters."""
    return textwrap.wrap(text, 118, initial_indent=f"{indent}{name:<20} ", subsequent_indent=indent + " " * 21,
                         break_on_hyphens=False, break_long_words=False)


FIELD = re.compile(r"(?<![\w./-])(?:data|sde|model|training)\.[a-z]\w*")      # a possible field of a config


def fields_in(text: str) -> list[str]:
    """The fields of a config that a text names, such as sde.name."""
    found = FIELD.findall(text)
    if not found:
        return []
    from scorefield.configs.sections import SECTIONS

    known = {f"{section.name}.{name}" for section in SECTIONS.values() for name in (section.word, *section.every_field())}
    return [name for name in found if name in known]


def as_flags(text: str) -> str:
    """The text with fields of a config that have a value, such as sde.name=smld, written as flags."""
    return re.sub(rf"({FIELD.pattern})(?==)", r"--config.\1", text)
