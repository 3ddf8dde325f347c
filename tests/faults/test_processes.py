"""Signals, kills and lost streams, on real processes of main.py. `make faults` runs all of them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_processes import DOCUMENTED, POINTS, steps_logged

from scorefield.checkpoints.formats.run import checkpoints_of, newest_checkpoint, read_state
from scorefield.numerics.stopping import SAME, exit_code

LONG = [*POINTS, "--mode=train", "--config.training.steps=1000000", "--config.training.checkpoint_every=1000000",
        "--config.training.log_every=20", "--config.training.eval_every=0"]
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
slow = pytest.mark.slow


def equal(run, other):
    one, two = (read_state(newest_checkpoint(folder)) for folder in (run, other))
    return one["step"] == two["step"] and one["ema_updates"] == two["ema_updates"] and all(
        torch.equal(one[part][name], two[part][name]) for part in ("network", "ema") for name in one[part])


def train(start, run, steps, *more):
    code, _, err = start(*POINTS, "--mode=train", "--workdir", run, f"--config.training.steps={steps}",
                         "--config.training.checkpoint_every=50", "--config.training.log_every=10",
                         "--config.training.eval_every=50", *more).end()
    assert code == 0, err


@pytest.mark.parametrize("name", [pytest.param(name, marks=[slow] * (name != "SIGTERM")) for name in NAMES])
def test_a_signal_saves_says_so_and_ends_with_its_code(name, start, tmp_path):
    run, number = tmp_path / "run", getattr(signal, name)
    process = start(*LONG, "--workdir", run).until(lambda: steps_logged(run) > 3)
    code, _, err = process.send(number).end()
    assert code == exit_code(number) and "Traceback" not in err
    step = int(re.search(rf"interrupted by {name}: .*run holds step (\d+) of 1000000; the same command continues", err)[1])
    assert read_state(newest_checkpoint(run))["step"] == step
    train(start, run, step + 1)
    train(start, tmp_path / "whole", step + 1)
    assert equal(run, tmp_path / "whole")


@slow
def test_signals_within_a_second_are_one_request(start, tmp_path):
    process = start(*LONG, "--workdir", tmp_path / "one").until(lambda: steps_logged(tmp_path / "one") > 3)
    for _ in range(3):      # as the terminal and torchrun send them
        process.send(signal.SIGINT)
        time.sleep(SAME / 20)
    assert process.end()[0] == 130 and checkpoints_of(tmp_path / "one")


@slow
def test_nohup_keeps_a_run_going_through_sighup(start, tmp_path):
    run = tmp_path / "run"
    process = start(*LONG, "--workdir", run, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.until(lambda: steps_logged(run) > 1).send(signal.SIGHUP)
    before = steps_logged(run)
    process.until(lambda: steps_logged(run) > before + 3)
    assert process.send(signal.SIGTERM).end()[0] == 143


@pytest.mark.parametrize("delay, name", [(0.06, "SIGINT"), (0.5, "SIGTERM"), (2.0, "SIGINT")] + [
    pytest.param(delay, name, marks=slow) for delay, name in zip(
        [random.Random(7).uniform(0.04, 6.0) for _ in range(40)], NAMES * 10, strict=True)])
def test_a_signal_at_any_moment_leaves_no_traceback(delay, name, start, tmp_path):
    process = start(*POINTS, "--mode=train", "--workdir", tmp_path / "run", "--config.training.steps=300")
    time.sleep(delay)
    process.send(getattr(signal, name))
    code, _, err = process.end()
    assert "Traceback" not in err and "Exception ignored" not in err, err
    assert code in (0, exit_code(getattr(signal, name)), -getattr(signal, name)), err      # the last: Python has not begun
    assert code <= 0 or "interrupted by" in err or delay > 3


def begun(run, mode):
    """Whether a mode of a run has kept a part of its own."""
    place = {"sample": "samples", "likelihood": "likelihood/partial", "evaluate": "samples", "restore": "restore"}[mode]
    return any(path.suffix in (".npz", ".npy") for path in (run / place).rglob("*"))


@pytest.mark.parametrize("mode, words", [
    ("sample", ["--num_samples=100000", "--batch_size=100", "--sampler=ddim", "--steps=20"]),
    pytest.param("likelihood", ["--split=train", "--batch_size=1", "--rtol=1e-9", "--atol=1e-9"], marks=slow),
    pytest.param("evaluate", ["--num_samples=100000", "--batch_size=100"], marks=slow),
    pytest.param("restore", ["--operator=mask", "--measurement=data", "--num_images=300", "--noise=0.1", "--method=ddnm",
                             "--particles=8", "--steps=300", "--batch_size=8", "--variance=beta_tilde"], marks=slow),
    pytest.param("compare", ["--num_samples=20000"], marks=slow)])
def test_every_mode_says_what_it_keeps_and_goes_on(mode, words, start, tmp_path):
    run = tmp_path / "run"
    train(start, run, 3)
    process = start("--workdir", run, f"--mode={mode}", *words)
    if mode == "compare":
        time.sleep(15)
    else:
        process.until(lambda: begun(run, mode))
        time.sleep(1)
    code, out, err = process.send(signal.SIGTERM).end()
    assert code == 143 and "Traceback" not in err, err
    said = err[err.index("interrupted by SIGTERM: "):]
    assert ("can be given again" if mode == "compare" else "done and kept; the same command continues from there") in said
    if mode != "compare":
        again = start("--workdir", run, f"--mode={mode}", *words)
        assert again.says("continuing: ")
        code, _, err = again.send(signal.SIGINT).end()
        assert code == 130 and "continues from there" in err, err


@slow
def test_a_convert_that_is_stopped_leaves_nothing(start, tmp_path):
    run = tmp_path / "run"
    train(start, run, 3)
    for delay in (0.1, 1.0, 2.0, 3.0, 3.5, 4.0):
        process = start("--workdir", run, "--mode=convert", "--output", tmp_path / "out.safetensors")
        time.sleep(delay)
        code, _, err = process.send(signal.SIGTERM).end()
        assert code in (0, 143, *[-signal.SIGTERM] * (delay < 1)) and "Traceback" not in err, err      # Python has not begun
        assert (tmp_path / "out.safetensors").exists() == (code == 0)
        assert not list(tmp_path.glob(".*tmp"))
        (tmp_path / "out.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=slow)])
def test_a_run_that_is_killed_again_and_again_equals_one_that_was_not_to_the_bit(kills, start, tmp_path):
    chance, run, steps = random.Random(kills), tmp_path / "run", 100 * kills
    words = [*POINTS, "--mode=train", "--workdir", run, f"--config.training.steps={steps}", "--config.training.log_every=7",
             "--config.training.checkpoint_every=20", "--config.training.eval_every=20"]
    for _ in range(kills):
        process = start(*words)
        before = newest_checkpoint(run)
        process.until(lambda: newest_checkpoint(run) != before or process.process.poll() is not None)  # noqa: B023
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
    code, _, err = start(*words).end()
    assert code == 0, err
    assert start(*words[:3], *[w for w in words[3:] if w not in ("--workdir", run)], "--workdir", tmp_path / "whole"
                 ).end()[0] == 0
    assert equal(run, tmp_path / "whole")
    logged = [[(line["step"], line["loss"]) for line in map(json.loads, (folder / "stats.jsonl").read_text().splitlines())]
              for folder in (run, tmp_path / "whole")]
    assert [step for step, _ in logged[0]] == [step for step, _ in logged[1]]


@pytest.mark.slow
def test_a_reader_who_leaves_does_not_end_training(start, tmp_path):
    run = tmp_path / "run"
    process = start(*POINTS, "--mode=train", "--workdir", run, "--config.training.steps=200",
                    "--config.training.log_every=1")
    assert process.process.stdout.readline()
    process.process.stdout.close()      # as `train | head -1`
    assert process.process.wait(120) == 0
    err = process.process.stderr.read()
    assert err.count("standard output is lost (Broken pipe); the work goes on without it") == 1 and "Traceback" not in err
    assert read_state(newest_checkpoint(run))["step"] == 200


@pytest.mark.parametrize("stream", ["stdout", pytest.param("stderr", marks=slow), pytest.param("both", marks=slow)])
def test_a_full_disk_under_the_output_does_not_end_training(stream, start, tmp_path):
    run = tmp_path / "run"
    with open("/dev/full", "w") as full:
        streams = {name: full for name in ("stdout", "stderr") if stream in (name, "both")}
        code, _, err = start(*POINTS, "--mode=train", "--workdir", run, "--config.training.steps=50", **streams).end()
    assert code == (0 if stream == "stderr" else 1) and "Traceback" not in (err or "")
    assert read_state(newest_checkpoint(run))["step"] == 50


def test_closed_standard_streams_do_not_reach_a_checkpoint(start, tmp_path):
    run = tmp_path / "run"

    def close():
        os.close(1)
        os.close(2)

    assert start(*POINTS, "--mode=train", "--workdir", run, "--config.training.steps=50", stdout=None, stderr=None,
                 before=close).end()[0] == 0
    assert read_state(newest_checkpoint(run))["step"] == 50


@pytest.mark.parametrize("words, code", [(["--help"], 0), (["--version"], 0)])
def test_text_for_a_reader_who_leaves_ends_quietly(words, code, start):
    process = start(*words, stdout=subprocess.PIPE)
    process.process.stdout.close()
    assert process.process.wait(60) == code and "Traceback" not in process.process.stderr.read()


# main.py, for which no data set is small enough to be decoded at once
LAZY = """
import runpy, sys
import scorefield.data.pictures as pictures
pictures.EAGER_BYTES, sys.argv = 0, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@slow
def test_a_lost_picture_ends_training_with_one_line_and_everything_saved(start, tmp_path):
    from helpers import smooth_pictures
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i, picture in enumerate(smooth_pictures(40, 16)):
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / f"pictures/{i:03d}.png")
    run = tmp_path / "run"
    words = ["--config=configs/vp_patches32.py", "--config.data.dataset=folder",
             f"--config.data.path={tmp_path / 'pictures'}",
             "--config.data.image_size=8", "--config.model.width=8", "--config.model.multipliers=(1,2)",
             "--config.model.num_blocks=1", "--config.model.attention_resolutions=()", "--config.training.batch_size=4",
             "--config.training.steps=100000", "--config.training.log_every=5", "--config.training.checkpoint_every=100000",
             "--config.training.eval_every=0", "--config.training.sample_every=0", "--mode=train", "--workdir", run]
    process = start(*words, launcher=[sys.executable, "-c", LAZY]).until(lambda: steps_logged(run) > 2)
    shutil.move(tmp_path / "pictures/013.png", tmp_path / "013.png")
    code, _, err = process.end()
    last = err.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in err and "013.png" in last and "the same command goes on from there" in last
    assert f"holds step {read_state(newest_checkpoint(run))['step']}" in last


@slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_torchrun_saves_within_its_grace_whatever_a_step_costs(name, start, tmp_path):
    run = tmp_path / "run"
    process = start(*LONG[:-2], "--config.training.log_every=1", "--config.training.eval_every=0", "--workdir", run,
                    "--config.training.batch_size=20000", "--config.model.width=512", "--config.model.layers=4",
                    launcher=[sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"])
    process.until(lambda: steps_logged(run) > 1, 300)
    began = time.monotonic()
    process.send(getattr(signal, name))
    code, _, err = process.end(60)
    seconds, lines = time.monotonic() - began, [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert seconds < 30 and read_state(newest_checkpoint(run))["step"] == lines[-1]["step"]
    assert f"interrupted by {name}" in err
    print(f"a step takes {1 / lines[1]['steps_per_second']:.2f} s; saved and ended after {seconds:.1f} s")


def test_the_exit_codes_are_documented():
    text = (Path(__file__).parents[2] / "docs/training_faults.md").read_text()
    assert {int(code) for row in re.findall(r"^\| ((?:\d+(?:, )?)+) \|", text, re.MULTILINE) for code in row.split(", ")
            } == DOCUMENTED
