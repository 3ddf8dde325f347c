"""Flags from declared types: what a field of a dataclass says is what the command line takes and shows."""

from dataclasses import dataclass

import pytest
from absl import flags

from scorefield.cli import main
from scorefield.cli.flags import Flag, Table, describe, describe_options, flags_of
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option


@dataclass(frozen=True)
class Plain:
    order: int = option(2, "order of the rule")
    cap: int | None = option(None, "largest number of evaluations; None: no limit")
    snr: str = option("low", "which ratio")
    probes: int = option(1, "how many probes")


@dataclass(frozen=True)
class Other:
    snr: float = option(0.16, "signal-to-noise ratio")
    clip: bool = option(False, "keep the data in their range")


OPTIONS = {"go": {"plain": flags_of(Plain), "other": flags_of(Other)}}
TABLE = Table([Flag("seed", int, 0, "of the noise")], {"go": [Flag("probes_of_go", int, 3, "probes")],
                                                      "come": [Flag("probes", int, 3, "probes")]}, OPTIONS)


def test_an_option_may_have_no_default_and_the_name_of_a_flag_of_another_mode():
    given, rest = TABLE.parse(["--cap", "3", "--probes=2", "--noclip", "word"])
    assert given == {"cap": "3", "probes": "2", "clip": False} and rest == ["word"]
    assert OPTIONS["go"]["plain"]["cap"].value("3") == 3 and OPTIONS["go"]["plain"]["cap"].value("None") is None


def test_an_option_is_parsed_by_the_type_that_its_own_class_declares():
    assert OPTIONS["go"]["plain"]["snr"].value("0.2") == "0.2" and OPTIONS["go"]["other"]["snr"].value("0.2") == 0.2
    with pytest.raises(ArgumentError, match="order must be a whole number, got '0x2'"):
        OPTIONS["go"]["plain"]["order"].value("0x2")


def test_an_option_with_the_name_of_a_flag_of_its_own_mode_is_refused_at_once():
    @dataclass(frozen=True)
    class Clash:
        seed: int = option(0, "of something else")

    with pytest.raises(TypeError, match="option 'seed' of 'clash' has the name of a flag of mode go"):
        Table([Flag("seed", int, 0, "of the noise")], {"go": []}, {"go": {"clash": flags_of(Clash)}})


def test_an_unknown_flag_names_the_nearest():
    with pytest.raises(flags.Error, match="ordr.*order"):
        TABLE.parse(["--ordr=3"])


def test_help_has_a_line_for_each_flag_with_its_default_and_who_takes_it():
    text = "\n".join(describe(list(TABLE.modes["go"].values())) + describe_options(OPTIONS["go"]))
    for part in ("--probes_of_go", "probes [3]", "--order", "order of the rule [plain 2]", "--snr",
                 "which ratio [plain low]", "signal-to-noise ratio [other 0.16]", "--cap", "None: no limit [plain]"):
        assert part in text


def test_every_flag_and_option_of_the_program_has_one_line_of_help():
    every = main.table()
    for flag in [*every.common.values(), *(flag for own in every.modes.values() for flag in own.values()),
                 *(flag for classes in every.options.values() for own in classes.values() for flag in own.values())]:
        assert flag.help and "\n" not in flag.help
    text = main.usage()
    for mode in main.MODES:
        for own in (every.modes[mode], *every.options.get(mode, {}).values()):
            assert all(name in text for name in own)


@pytest.mark.parametrize("argument, hint", [("order", "(--order)"), ("sde.beta_min", "(--config.sde.beta_min)")])
def test_an_error_of_an_argument_shows_the_flag_that_sets_it(argument, hint):
    assert main.with_flags(ArgumentError("it must be 1", argument)) == f"it must be 1 {hint}"


def test_a_field_of_the_config_in_a_message_shows_its_flag_once():
    assert main.with_flags(ValueError("data.path='x' is no folder")) == "data.path='x' is no folder (--config.data.path)"
    assert main.with_flags(ValueError("see --config.data.path: data.path is x")).count("--config.data.path") == 1
    assert main.with_flags(ValueError("the file data.npz is damaged")) == "the file data.npz is damaged"
