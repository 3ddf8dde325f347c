"""The command line: `python main.py`, `python -m scorefield`, and the command `scorefield`.

Flags follow absl's syntax. There are no global flags: `ask` parses a command line to an `Asked`, and a `Command` takes it.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from absl import flags

from scorefield import __version__
from scorefield.cli import (
    compare,
    convert,
    evaluate,
    explore,
    fit_variance,
    likelihood,
    plan,
    report,
    restore,
    sample,
    train,
    tune,
)
from scorefield.cli.flags import Flag, Table, describe, describe_options, fields_in, wrapped
from scorefield.numerics import stopping
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import nearest

MODES: Mapping[str, ModuleType] = {"train": train, "sample": sample, "likelihood": likelihood, "evaluate": evaluate,
                                   "compare": compare, "explore": explore, "restore": restore, "fit_variance": fit_variance,
                                   "tune": tune, "convert": convert, "report": report, "plan": plan}
SHARED = ("train", "sample", "likelihood", "evaluate", "restore")      # in which processes of torchrun share the work
COMMON = (
    Flag("config", str, None, "a config file: configs/NAME.py, or your own"),
    Flag("mode", str, None, "what to do: one of the modes below"),
    Flag("workdir", str, None, "the run's folder, by default runs/<config's name>; for a run that exists, --config can be "
                               "left out"),
    Flag("device", str, "auto", "cuda, mps, cpu, or auto: the first of these that is available"),
    Flag("debug", bool, False, "show the traceback of an error"),
)
HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
# The smallest and the largest value of a flag, for flags with bounds.
BOUNDS = {"seed": (0, 2**64 - 1), "batch_size": (1, 2**31), "num_samples": (1, 10_000_000), "draws": (1, 10_000),
          "num_images": (1, 2**40), "bootstrap": (0, 10**6), "reference_samples": (2, 2**40), "bound_draws": (1, 10**7),
          "likelihood_examples": (0, 10**6), "frames": (2, 10_000), "from_step": (0, 10**12), "gpus": (1, 10**6),
          "num_examples": (2, 2**40), "num_times": (2, 10_000), "num_starts": (16, 10_000), "dense": (4, 1000),
          "samples": (1, 10**6)}


def table() -> Table:
    """Every flag of every mode."""
    options = {mode: module.options() for mode, module in MODES.items() if hasattr(module, "options")}
    return Table(COMMON, {mode: module.FLAGS for mode, module in MODES.items()}, options)


def usage(only: str | None = None) -> str:
    """The text of --help: a line for each flag and option, of all modes or only of mode `only`."""
    from scorefield.configs.loading import config_names
    from scorefield.configs.sections import SECTIONS
    from scorefield.data.datasets import GIVEN  # which nobody can choose by name

    every = table()
    lines = [f"Scorefield {__version__}: score-based generative models, trained, sampled and scored.", "",
             "  python main.py --config configs/vp_digits.py --mode train",
             "  python main.py --config configs/vp_digits.py --mode sample --sampler dpm_solver++ --steps 20",
             "  python main.py --config configs/vp_digits.py --mode likelihood --method exponential", "",
             "Every mode", *describe(COMMON[:1]), *wrapped("", "NAME is one of " + " ".join(config_names())),
             *describe(COMMON[1:]),
             *wrapped("--config.FIELD=VALUE", "any field of the config, such as --config.training.batch_size=64; these "
                      "fields choose a class, and its settings become fields:")]
    for section in SECTIONS.values():
        for word, registry in {section.word: section.registry, **section.choices}.items():
            choices = ", ".join(name for name in registry if name != GIVEN)
            lines += wrapped("", f"{section.name}.{word}: {choices}")
    for mode, module in MODES.items():
        if only in (None, mode):
            lines += ["", f"Mode {mode}: {module.SUMMARY}", *describe(module.FLAGS)]
            if mode in every.options:
                lines += ["  and options of the classes in brackets, with their defaults:",
                          *describe_options(every.options[mode], "    ")]
    return "\n".join([*lines, "", "Under torchrun the processes share the work: mode train splits each batch, the modes "
"sample, likelihood,", "evaluate and restore distribute the batches.", "",
                      "Exit codes: 0 done; 1 an error, told in one line; 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1:",
                      "what was done is kept, and the same command goes on."])


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The command line without its --config.FIELD=VALUE (or --config.FIELD VALUE), and the (field, value) pairs."""
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        if word.lstrip("-").startswith("config.") and word.startswith("-"):
            field, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
            if not equals:
                value = next(words, "")
            overrides.append((field, value))
        else:
            rest.append(word)
    return rest, overrides


def ask(argv: Sequence[str]):
    """The words of a command line, parsed to an `Asked`; ArgumentError if they do not fit together."""
    words, overrides = split_overrides(argv)
    every = table()
    given, unexpected = every.parse(words)
    if unexpected:
        raise ValueError(f"unexpected argument {unexpected[0]!r}; flags start with -- (--help shows them)")
    mode = given.get("mode")
    if mode is None:
        raise ArgumentError(f"no mode is given; choose --mode {', '.join(MODES)} (--help shows more)")
    if mode not in MODES:
        raise ArgumentError(f"unknown mode {mode!r}; choose from {', '.join(MODES)}{nearest(str(mode), MODES)}", "mode")
    own = {**every.common, **every.modes[str(mode)]}
    for name in given:
        if name not in own and mode not in every.takers(name):
            if why := getattr(MODES[str(mode)], "REFUSED", {}).get(name):
                raise ArgumentError(why, name)
            raise ArgumentError(f"mode {mode} takes no {name}; it belongs to mode {' and '.join(every.takers(name))}", name,
                                "mode")
    values = {name: flag.default for name, flag in own.items()}
    for name, text in given.items():
        if name in own:
            values[name] = text if isinstance(text, bool) else own[name].value(text)
            _check_bounds(name, values[name])
    _check_places(values, str(mode))
    from scorefield.cli.command import Asked, resolve_average  # after what can be refused without it

    resolve_average(values, given)
    return Asked(str(mode), values, {name: text for name, text in given.items() if name not in own}, frozenset(given),
                 overrides)


def _check_bounds(name: str, value: object) -> None:
    low, high = BOUNDS.get(name, (0, 0))
    if name in BOUNDS and isinstance(value, int) and not low <= value <= high:
        raise ArgumentError(f"{name} must lie in {low} .. {high}, got {value}", name)


def _check_places(values: Mapping[str, object], mode: str) -> None:
    from scorefield.numerics.processes import launched

    if mode not in SHARED and launched().size > 1:
        raise ArgumentError(f"mode {mode} runs in one process; use torchrun only for --mode {', '.join(SHARED)}", "mode")
    if values["workdir"] == "":
        raise ArgumentError("workdir must name a folder, got ''", "workdir")
    if values["config"] is None and not values["workdir"] and not values.get("checkpoint"):
        raise ValueError("give --config FILE, the --workdir of a run or a --checkpoint (--help shows more)")


def with_flags(error: BaseException) -> str:
    """An error's message in one line, with the flags of the arguments and config fields that the error names."""
    message = " ".join("; ".join([str(error), *getattr(error, "__notes__", ())]).split())
    arguments = [name for name in getattr(error, "arguments", ()) if "." in name or name in table().names]
    found = [*arguments, *fields_in(message)]
    hints = [f"--config.{name}" if "." in name else f"--{name}" for name in dict.fromkeys(found)]
    missing = [hint for hint in hints if not re.search(rf"{re.escape(hint)}\b", message)]
    return f"{message} ({', '.join(missing)})" if missing else message


def main(argv: Sequence[str]) -> None:
    """Run one command. Errors are raised as they are; `run` prints the errors of users in one line."""
    asked = ask(argv)
    from scorefield.cli.command import Command

    stopping.working()
    MODES[asked.mode].run(Command(asked))


def run() -> None:
    """Run the command line of sys.argv. SystemExit with the error of a user as its text, or with the code of a signal."""
    words = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):      # a name of a file need not be UTF-8, and no message fails on one
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if "--version" in words:
            print(f"scorefield {__version__}")
        elif HELP & set(words):
            mode = words[words.index("--mode") + 1:][:1] if "--mode" in words else []
            print(usage(next((word for word in mode if word in MODES), None)))
        else:
            main(words)
    except KeyboardInterrupt as stopped:
        _interrupted(stopping.number_of(stopped), " ".join(map(str, stopped.args)))
    except Exception as error:
        if stopping.raised():      # what fails after a signal, half imported or half closed, fails because of it
            _interrupted(stopping.raised(), "")
        memory = _is_of_memory(error)
        if "--debug" in words or not (memory or isinstance(error, ValueError | OSError | ArithmeticError | flags.Error)):
            raise      # a bug in the program; its authors need the traceback
        if memory:
            first = (str(error) or "no memory is left").splitlines()[0]
            sys.exit(f"error: out of memory ({first}); lower --batch_size, or in training --config.training.batch_size, "
                     "or the sizes of the model or the data")
        sys.exit(f"error: {with_flags(error)}")


def _interrupted(number: int, kept: str) -> None:
    """Say what is kept, and end with the signal's exit code."""
    kept = kept or "this command has kept nothing new; it can be given again"
    print(f"\ninterrupted by {stopping.name_of(number)}: {kept}", file=sys.stderr)
    sys.exit(stopping.exit_code(number))


def _is_of_memory(error: BaseException) -> bool:
    """Whether memory is lacking: PyTorch says so in several ways, of sizes beyond 64 bits, too."""
    import torch

    words = ("out of memory", "DefaultCPUAllocator", "Storage size calculation overflowed",
             "numel: integer multiplication overflow")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word.lower() in str(error).lower() for word in words))
