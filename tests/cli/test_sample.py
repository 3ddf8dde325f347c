"""Mode sample, as a user meets it: names, sharing, going on, folders of pictures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.checkpoints.formats.run import read_config
from scorefield.data import codec_of, load_images
from scorefield.evaluation.sample_set import SampleSet

ROOT = Path(__file__).parents[2]
FEW = ["--steps", 3, "--batch_size", 4]


def sample(command, run, *words):
    code, out, err = command("--workdir", run, "--mode", "sample", *FEW, *words)
    assert code == 0, err
    return out


def x_of(run, name):
    with np.load(run / f"samples/{name}.npz") as arrays:
        return arrays["x"]


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run")


def test_two_settings_of_one_sampler_lie_side_by_side(command, run):
    for words in ([], ["--seed", 1], ["--noema"], ["--order", 1], ["--precision", "bf16"]):
        out = sample(command, run, "--num_samples", 5, *words)
        assert "wrote" in out
    names = {path.name.removesuffix(".npz") for path in (run / "samples").glob("*.npz")}
    assert names == {f"auto_steps3{end}" for end in (
        "_batch_size4", "_seed1_batch_size4", "_batch_size4_raw", "_order1_batch_size4", "_batch_size4_bf16")}
    assert not list((run / "samples").glob("*.parts"))
    table = command("--workdir", run, "--mode", "report")[1]
    assert "| auto steps 3 order 1 " in table and "raw weights" in table and "seed 1" in table and "bf16" in table


def test_samples_are_data_and_are_read_back_as_such(command, run):
    sample(command, run, "--num_samples", 5)
    x = x_of(run, "auto_steps3_batch_size4")
    assert x.dtype == np.uint8 and x.shape == (5, 1, 8, 8) and x.max() <= 16
    stored = read_config(run)
    back, _ = load_images(str(run / "samples/auto_steps3_batch_size4.npz"), (1, 8, 8), codec_of(stored["data"], stored))
    assert np.array_equal(back.train[torch.arange(5)][0].numpy(), x)


def test_more_samples_go_on_and_fewer_take_nothing_away(command, run):
    sample(command, run, "--num_samples", 6)
    first = x_of(run, "auto_steps3_batch_size4")
    out = sample(command, run, "--num_samples", 10)
    more = x_of(run, "auto_steps3_batch_size4")
    assert "continuing: 4 of 10" in out and "6 of them drawn before" in out and np.array_equal(more[:4], first[:4])
    assert (more[4:6] == first[4:]).mean() > 0.99      # drawn again, in a whole batch
    out = sample(command, run, "--num_samples", 3)
    assert "10 samples of these settings were there and stay; the first 3 are those asked for" in out
    assert np.array_equal(x_of(run, "auto_steps3_batch_size4"), more)


def test_another_batch_size_takes_no_samples_away(command, run):
    sample(command, run, "--num_samples", 10)
    before = x_of(run, "auto_steps3_batch_size4")
    assert "held" not in sample(command, run, "--num_samples", 3, "--batch_size", 128)
    assert len(x_of(run, "auto_steps3")) == 3 and np.array_equal(x_of(run, "auto_steps3_batch_size4"), before)


def test_a_checkpoint_that_is_written_meanwhile_changes_nothing(command, run, monkeypatch):
    """Training goes on beside the command: the weights, their digest and the step in the record are of one checkpoint."""
    from scorefield.cli import command as module

    sample(command, run, "--num_samples", 5)
    alone, read = x_of(run, "auto_steps3_batch_size4"), module.read_checkpoint

    def read_and_write(*given, **settings):
        found = read(*given, **settings)
        shutil.copy(run / "checkpoints/step_00000002.pt", run / "checkpoints/step_00000006.pt")
        return found

    monkeypatch.setattr(module, "read_checkpoint", read_and_write)
    assert "drawn before" in sample(command, run, "--num_samples", 5)
    told = json.loads((run / "samples/auto_steps3_batch_size4.json").read_text())
    assert told["checkpoint"].endswith("step_00000004.pt") and np.array_equal(x_of(run, "auto_steps3_batch_size4"), alone)


def test_a_disk_that_fills_at_the_end_says_what_is_kept(command, run, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(SampleSet, "write", full)
    code, _, err = command("--workdir", run, "--mode", "sample", *FEW, "--num_samples", 6)
    assert code == 1 and "No space left" in err and "6 of 6 samples are done and kept; the same command continues" in err
    assert len(err.strip().splitlines()) == 1
    monkeypatch.undo()
    assert "drawn before" not in sample(command, run, "--num_samples", 6) and len(x_of(run, "auto_steps3_batch_size4")) == 6


def test_a_killed_command_goes_on_and_an_edited_checkpoint_starts_anew(command, run, monkeypatch):
    add, done = SampleSet.add, []

    def kill(self, unit, batch):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        add(self, unit, batch)

    monkeypatch.setattr(SampleSet, "add", kill)
    code, _, err = command("--workdir", run, "--mode", "sample", *FEW, "--num_samples", 12)
    assert code == 130 and ": 8 of 12 samples are done and kept; the same command continues from there" in err
    assert [path.name for path in (run / "samples").iterdir()] == ["auto_steps3_batch_size4.parts"]
    monkeypatch.setattr(SampleSet, "add", add)
    assert "continuing: 8 of 12" in sample(command, run, "--num_samples", 12)
    other = torch.load(path := max((run / "checkpoints").iterdir()), weights_only=True)
    other["ema"] = {name: weight * 1.5 for name, weight in other["ema"].items()}
    from scorefield.numerics.files import DIGEST, digest
    other.pop(DIGEST)
    torch.save(other | {DIGEST: digest(other)}, path)
    before = x_of(run, name := "auto_steps3_batch_size4")
    out = sample(command, run, "--num_samples", 12)
    assert "held 12 samples of other weights or settings, drawn from" in out and "step_00000004.pt as it was then" in out
    assert "continuing" not in out and "before" not in out and not np.array_equal(x_of(run, name), before)


@pytest.mark.slow
def test_two_processes_draw_what_one_draws_to_the_bit(command, run, tmp_path):
    shutil.copytree(run, tmp_path / "two")
    sample(command, run, "--num_samples", 18)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "main.py",
                    "--workdir", str(tmp_path / "two"), "--mode", "sample", *map(str, FEW), "--num_samples", "18"],
                   check=True, cwd=ROOT, capture_output=True, timeout=180,
                   env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert np.array_equal(x_of(run, "auto_steps3_batch_size4"), x_of(tmp_path / "two", "auto_steps3_batch_size4"))
    assert not list((tmp_path / "two/samples").glob("*.parts"))


def test_a_folder_of_pictures_holds_each_sample_and_other_data_has_none(command, run):
    out = sample(command, run, "--num_samples", 5, "--png")
    assert "auto_steps3_batch_size4{.npz,.png,.json,/}" in out
    x = x_of(run, "auto_steps3_batch_size4")
    for i in range(5):
        picture = np.asarray(Image.open(run / f"samples/auto_steps3_batch_size4/{i:08d}.png"))
        assert np.array_equal(picture, np.round(x[i, 0] * (255 / 16)).astype(np.uint8))
    (run / "samples/auto_steps3_batch_size4/mine.txt").write_text("x")
    code, _, err = command("--workdir", run, "--mode", "sample", *FEW, "--png", "--num_samples", 9)
    assert code == 1 and "mine.txt" in err and len(x_of(run, "auto_steps3_batch_size4")) == 5


def test_the_record_is_json_and_the_picture_shows_the_first_ones(command, run, monkeypatch):
    from scorefield.evaluation import preview

    monkeypatch.setattr(preview, "MOST_IMAGES", 4)
    sample(command, run, "--num_samples", 9)
    told = json.loads((run / "samples/auto_steps3_batch_size4.json").read_text())
    assert told["options"] == {"steps": 3} and told["num_samples"] == 9 and told["batch_size"] == 4
    assert Image.open(run / "samples/auto_steps3_batch_size4.png").size == (2 * 42 + 2, 2 * 42 + 2)


@pytest.mark.one_machine
@pytest.mark.slow
def test_names_that_are_not_utf8_are_written_read_and_printed(command, run, tmp_path, monkeypatch):
    """A folder, a file of arrays and a checkpoint of such names, in every mode."""
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "cache"))
    odd, file = tmp_path / os.fsdecode(b"\xff-run"), tmp_path / os.fsdecode(b"\xff.safetensors")
    shutil.copytree(run, odd)
    array = tmp_path / os.fsdecode(b"no\xffise.npz")
    np.savez(array, np.zeros((12, 8, 8), np.uint8))
    where = ["--workdir", odd, "--mode"]
    for words in ([*where, "sample", *FEW],
                  [*where, "likelihood", "--method", "exponential", "--steps", 8, "--images", array],
                  [*where, "evaluate", "--images", array, "--metrics", "energy", "--bootstrap", 20],
                  [*where, "train", "--config.training.steps=5"], [*where, "convert", "--output", file],
                  ["--checkpoint", file, "--workdir", tmp_path / os.fsdecode(b"\xfe"), "--mode", "sample", *FEW]):
        code, out, err = command(*words)
        assert code == 0 and r"\udcf" in out, err
    done = subprocess.run([sys.executable, "main.py", "--workdir", os.fsencode(odd), "--mode", "report"], cwd=ROOT,
                          capture_output=True, timeout=120, env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0 and rb"no\udcffise.npz" in done.stdout, done.stderr
