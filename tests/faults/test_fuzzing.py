"""Numbers out of range for every flag and field, and random command lines, configs and files: one line, exit code 1.

The command lines run in this process, since a process of its own takes seconds. 500 with `make faults`, 20 with `make test`.
"""

import random
import re
import shutil
import signal

import pytest
from command_processes import DOCUMENTED

from scorefield.cli import main
from scorefield.cli.explore import PICTURES
from scorefield.configs.sections import SECTIONS
from scorefield.numerics.text import base_type

HUGE = ("99999999999999999999", "-99999999999999999999", "1e308", "-1e308", "nan", "inf", "-inf", "9" * 5000)
BEYOND = ("9999999999999999", "-9999999999999999")      # in 64 bits, and more than any size
SHORT = ["--config.training.steps=1", "--config.training.batch_size=4", "--config.model.width=8",
         "--config.model.multipliers=(1,2)", "--config.model.num_blocks=1", "--config.model.attention_resolutions=()",
         "--config.training.eval_every=0", "--config.training.sample_every=0", "--device=cpu"]
# What keeps a command that a random line happens to make valid within seconds.
BRIEF = {"train": SHORT, "sample": ["--num_samples=2", "--steps=2", "--batch_size=2"],
         "likelihood": ["--num_images=1", "--method=exponential", "--steps=2"],
         "evaluate": ["--num_samples=2", "--steps=2", "--batch_size=2", "--metrics=energy"],
         "compare": ["--num_samples=2", "--samplers=ddim", "--budgets=2", "--likelihood_examples=0", "--metrics=energy"],
         "explore": ["--what=schedule"], "fit_variance": ["--num_examples=2", "--num_times=2"]}
SECONDS = 60


@pytest.fixture
def bounded():
    """Ends a command that takes too long, which the test then fails by."""
    class TooLong(BaseException):
        pass

    def end(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def numbers_of_flags():
    """(mode, flag, the flag that chooses its class, or None) for every flag and option with a number."""
    every = main.table()
    for mode in main.MODES:
        for name, flag in every.modes[mode].items():
            if base_type(flag.annotation)[0] in (int, float, tuple):
                yield mode, name, None
        chooser = "estimator" if mode == "likelihood" else "sampler"
        for kind, own in every.options.get(mode, {}).items():
            for name, flag in own.items():
                if base_type(flag.annotation)[0] in (int, float, tuple):
                    yield mode, name, f"--{chooser}={kind}"


def numbers_of_fields():
    """(field, the override that names its class, whether it is a whole number) for every field of a config with a number."""
    found = {}
    for section in SECTIONS.values():
        for word in section.registry:
            for name, field in section.fields(word).items():
                if base_type(field.annotation)[0] in (int, float, tuple):
                    found.setdefault(f"{section.name}.{name}", (f"--config.{section.name}.{section.word}={word}",
                                                                base_type(field.annotation)[0] is int))
    return [(field, *rest) for field, rest in found.items()]


def of_its_picture(mode, name, chooser):
    """The words that a flag needs beside it: what chooses its class, in mode explore a picture that takes it, and in mode
    restore what is restored.
    """
    if mode == "restore":
        return ["--operator=mask", "--measurement=data", *[chooser] * bool(chooser)]
    if mode != "explore":
        return [chooser] * bool(chooser)
    if chooser == "--sampler=chain_elbo":
        return ["--what=rate_distortion"]
    takers = [what for what, picture in PICTURES.items() if name in picture.flags and what not in ("swiss_roll", "langevin")]
    return [f"--what={takers[0] if takers else 'progressive'}", *[chooser] * bool(chooser)]


# What goes with a class that is named in a config.
COMPANIONS = {"training.objective=learned_variance": "model.learned_variance=true",
              "training.objective=dequantization": "model.dequantizer=4",
              "training.objective=learned_schedule": "sde.name=learned",
              "training.objective=continuous_consistency": "model.parametrization=v",
              "training.objective=autoencoder": "model.network=autoencoder",
              "model.network=autoencoder": "training.objective=autoencoder",
              **dict.fromkeys(("training.objective=dsb", "training.objective=dsbm"),
                              "model.network=bridge_mlp data.dataset=pair data.dequantize=False"),
              **dict.fromkeys(("model.network=bridge_mlp", "model.network=bridge_unet", "model.network=bridge_ncsnpp"),
                              "training.objective=dsbm data.dataset=pair data.dequantize=False"),
              "sde.name=learned": "training.objective=learned_schedule"}


def one_line(result, said=""):
    code, _, err = result
    assert code == 1 and "Traceback" not in err, err
    assert len(err.strip().splitlines()) == 1 and len(err) < 1000, err
    assert said in err, err


@pytest.mark.slow
@pytest.mark.one_machine
def test_every_number_of_a_flag_has_bounds(command, digits_run, bounded):
    for mode, name, chooser in numbers_of_flags():
        bounded()
        for value in HUGE if chooser is None else (HUGE[0], "nan"):      # all are parsed by the same lines
            one_line(command("--workdir", digits_run, "--mode", mode, *of_its_picture(mode, name, chooser),
                             f"--{name}={value}"), name)


@pytest.mark.one_machine
def test_every_whole_number_of_a_flag_is_refused_beyond_any_size(command, digits_run, bounded):
    for mode, name, chooser in numbers_of_flags():
        flag = main.table().modes[mode].get(name)
        if flag is not None and base_type(flag.annotation)[0] is int and name != "seed":
            for value in BEYOND:
                bounded()
                one_line(command("--workdir", digits_run, "--mode", mode, *of_its_picture(mode, name, chooser),
                                 f"--{name}={value}"), name)


@pytest.mark.slow
@pytest.mark.one_machine
def test_every_number_of_a_config_has_bounds(command, tmp_path, bounded):
    for field, chooser, whole in numbers_of_fields():
        for value in [*HUGE, *(BEYOND if whole and field != "training.seed" else ())]:
            companions = [f"--config.{words}" for words in COMPANIONS.get(chooser.removeprefix("--config."), "").split()]
            other = any("model.network=" in words and not words.endswith("=unet") for words in (chooser, *companions))
            short = [word for word in SHORT if not (other and word.startswith("--config.model."))]
            bounded()
            one_line(command("--config=configs/vp_digits.py", "--mode=train", "--workdir", tmp_path / "run", *short, chooser,
                             *companions, f"--config.{field}={value}"), field)
    assert not (tmp_path / "run").exists()


@pytest.mark.one_machine
@pytest.mark.parametrize("field", ["model.width=1000000", "model.multipliers=(1,500000)", "sde.steps=900000000"])
def test_sizes_beyond_this_machine_are_told_before_memory_is_taken(field, command, tmp_path, bounded):
    chain = ["--config.sde.name=ddpm"] if field.startswith("sde") else []
    bounded()
    one_line(command("--config=configs/vp_digits.py", "--mode=train", "--workdir", tmp_path / "run", *SHORT, *chain,
                     f"--config.{field}"))


WORDS = ("", "0", "-1", "1", "2.5", "none", "None", "true", "fid", "auto", "ddim", "ode", "nan", "1e400", "é", "\x00", "'",
         "{}", "..", "/dev/null", "/", "~", "a,b", ",", "(1,", "[]", "--", "=", "0x10", "%s", "{0}", "\\", "x" * 300,
         "\udcff")


def random_line(chance, run, folder):
    """A command line near one that works: a mode, flags that are its own or not, overrides, values of all kinds."""
    every = main.table()
    mode = chance.choice([*main.MODES, *main.MODES, "", "x"])
    line = [chance.choice(["--mode", "-mode"]), mode] if chance.random() < 0.95 else []
    new = ["--workdir", str(folder / "new")]
    line += new if mode == "train" else chance.choice([["--workdir", str(run)], ["--workdir", str(run)], new, [],
                                                       ["--workdir", chance.choice(WORDS) or "x"]])
    line += chance.choice([[], ["--config=configs/vp_digits.py"], [f"--config={chance.choice(WORDS)}"]])
    line += BRIEF.get(mode, [])
    names = sorted(every.names)
    fields = [field for field, _, _ in numbers_of_fields()]
    fields += ["sde.name", "model.network", "training.objective", "data.dataset"]
    for _ in range(chance.randint(0, 4)):
        number = str(chance.choice([chance.randint(-3, 99), chance.random()]))
        value = chance.choice(WORDS) if chance.random() < 0.6 else number
        kind = chance.random()
        if kind < 0.5:
            line.append(f"--{chance.choice(names)}={value}")
        elif kind < 0.8:
            line.append(f"--config.{chance.choice(fields)}={value}")
        else:
            line.append(chance.choice([value, f"--{value}", f"--no{chance.choice(names)}", f"--{chance.choice(names)}"]))
    return line


def damaged(chance, run, folder):
    """A copy of the run in which one file was cut, altered, emptied, replaced or removed."""
    copy = shutil.copytree(run, folder / "damaged", dirs_exist_ok=False)
    file = chance.choice(sorted(path for path in copy.rglob("*") if path.is_file() and "tensorboard" not in path.parts))
    content = bytearray(file.read_bytes())
    match chance.randint(0, 4):
        case 0:
            content = content[:chance.randint(0, len(content))]
        case 1:
            for _ in range(chance.randint(1, 20)):
                content[chance.randrange(len(content))] = chance.randrange(256)
        case 2:
            content = bytearray(chance.choice([b"", b"{}", b"[]", b"null", b"{", b"\xff\xfe", b'{"step": 1}',
                                               b"PK\x03\x04"]))
        case 3 if file.suffix == ".json":
            others = [b"null", b"-1", b"1e999", b'"x"', b"[]", b"{}", b"true"]
            content = bytearray(re.sub(rb'(": )([^\n,]+)', lambda m: m[1] + chance.choice(others)
                                       if chance.random() < 0.05 else m[0], bytes(content)))
        case _:
            file.unlink()
            return copy, file.name
    file.write_bytes(content)
    return copy, file.name


@pytest.mark.one_machine
@pytest.mark.parametrize("seeds", [range(20), *(pytest.param(range(first, first + 60), marks=pytest.mark.slow)
                                                for first in range(20, 500, 60))], ids=str)
def test_no_command_line_config_or_file_ends_in_a_traceback(seeds, command, digits_run, tmp_path, monkeypatch, bounded):
    monkeypatch.chdir(tmp_path)
    for seed in seeds:
        chance, folder = random.Random(seed), tmp_path / str(seed)
        folder.mkdir()
        if seed % 4 == 3:
            run, what = damaged(chance, digits_run, folder)
            line = ["--workdir", run, *chance.choice([["--mode=sample", "--num_samples=2", "--steps=2"], ["--mode=report"], [
                "--mode=likelihood", "--num_images=1", "--method=exponential", "--steps=2"], [
                "--mode=train", "--config.training.steps=5"]])]
        else:
            line, what = random_line(chance, digits_run, folder), ""
        bounded()
        try:
            code, _, err = command(*line)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"seed {seed}, {what}: {line}") from error
        assert code in DOCUMENTED and "Traceback" not in err, (seed, what, line, err)
        shutil.rmtree(folder)
