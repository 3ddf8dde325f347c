"""Mode restore: what it writes, and what it refuses."""

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

from scorefield.data import load_dataset
from scorefield.evaluation.restoration import Restoration
from tests.helpers import made_once, train_briefly

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parents[2]
FAST = ("--steps", 3, "--particles", 4, "--samples", 3, "--method", "pigdm", "--variance", "beta_tilde")
HALF = ("--operator", "mask:half=right")


@pytest.fixture
def restored(command, digits_run):
    def call(*words, run=digits_run):
        code, out, err = command("--workdir", run, "--mode", "restore", *words)
        assert code == 0, err
        stem = out.rpartition("wrote ")[2].partition("{")[0]
        with np.load(f"{stem}.npz") as file:
            return {name: file[name] for name in file.files}, json.loads(open(f"{stem}.json").read()), stem

    return call


@pytest.fixture
def refused(command, digits_run):
    def call(*words, run=digits_run):
        code, _, err = command("--workdir", run, "--mode", "restore", *words)
        assert code == 1 and err.count("\n") == 1, err
        return err

    return call


def test_held_out_examples_are_degraded_restored_and_compared_with_the_truth(restored):
    arrays, record, stem = restored(*HALF, "--measurement", "data", "--noise", 0.05, "--num_images", 2, *FAST)
    assert arrays["x"].shape == (2, 3, 1, 8, 8) and arrays["x"].dtype == np.uint8
    assert arrays["mean"].shape == arrays["std"].shape == arrays["truth"].shape == (2, 1, 8, 8)
    noise = arrays["y"].reshape(2, 8, 4) - arrays["truth"][:, 0, :, :4]
    assert 0.03 < noise.std() < 0.07
    figures = record["figures"]
    assert {"residual", "psnr", "psnr_mean", "psnr_simple", "ssim", "log_evidence", "effective_samples"} <= set(figures)
    assert all(len(values) == 2 for values in figures.values())
    assert 16 <= record["evaluations"] <= 28 and record["evaluations"] % 4 == 0      # 4 particles, seen again if resampled
    assert record["sampler"] == "twisted_smc" and record["method"] == "pigdm"
    with Image.open(f"{stem}.png") as picture:
        assert picture.width == 2 + 7 * 42 and picture.height == 2 + 2 * 42      # two rows of seven


def test_a_picture_is_restored_and_each_answer_is_a_file(restored, tmp_path):
    levels = (np.arange(64) % 17).reshape(8, 8)
    Image.fromarray((levels * 255 / 16).round().astype(np.uint8)).save(tmp_path / "photo.png")
    arrays, _, stem = restored(*HALF, "--measurement", tmp_path / "photo.png", *FAST)
    assert (arrays["x"][0, :, 0, :, :4] == levels[:, :4]).all()      # without noise the known half stays
    np.testing.assert_array_equal(arrays["mean"][0, 0, :, :4].ravel(), arrays["y"][0])
    for name in ("mean", "std", "00", "01", "02"):
        with Image.open(f"{stem}/photo_{name}.png") as picture:
            assert picture.size == (8, 8)


def test_a_picture_that_is_degraded_already_has_no_truth_and_gets_no_noise(restored, tmp_path):
    rng = np.random.default_rng(0)
    small, whole = rng.integers(0, 17, (2, 1, 4, 4)), rng.integers(0, 17, (2, 1, 8, 8))
    np.savez(tmp_path / "small.npz", x=small)
    arrays, record, _ = restored("--operator", "downsample:factor=2", "--measurement", tmp_path / "small.npz",
                                 "--noise", 0.1, *FAST)
    np.testing.assert_allclose(arrays["y"], (small + 0.5) / 17 * 2 - 1, atol=1e-6)
    assert "truth" not in arrays and "psnr" not in record["figures"]
    np.savez(tmp_path / "whole.npz", x=whole)
    arrays, record, _ = restored(*HALF, "--measurement", tmp_path / "whole.npz", "--noise", 0.1, "--degraded", *FAST)
    np.testing.assert_allclose(arrays["y"], ((whole[:, :, :, :4] + 0.5) / 17 * 2 - 1).reshape(2, -1), atol=1e-6)
    assert "truth" not in arrays


def test_other_samplers_give_answers_without_weights(restored):
    _, record, _ = restored(*HALF, "--measurement", "data", "--num_images", 1, "--sampler", "auto", "--steps", 3,
                            "--samples", 2, "--method", "pigdm")
    assert "log_evidence" not in record["figures"] and record["evaluations"] == 6
    _, record, _ = restored(*HALF, "--measurement", "data", "--num_images", 1, "--sampler", "dpm_solver", "--steps", 3,
                            "--samples", 2, "--method", "pigdm", "--solver_method", "multistep")
    assert record["settings"]["method"] == "multistep"


def test_answers_that_do_not_fit_the_measurement_are_said_to(command, digits_run):
    words = ("--workdir", digits_run, "--mode", "restore", *HALF, "--measurement", "data", "--num_images", 1, "--samples", 2,
             "--sampler", "ddim", "--steps", 2, "--method", "ddnm")
    said = {noise: command(*words, "--noise", noise)[1] for noise in (0.001, 1.0)}
    assert "do not fit the measurement" in said[0.001] and "do not fit" not in said[1.0]


def test_the_default_is_twisted_smc_with_tmpd_and_the_same_command_gives_the_same_answers(restored):
    words = (*HALF, "--measurement", "data", "--num_images", 1, "--noise", 0.2, "--steps", 2, "--particles", 2)
    one, record, _ = restored(*words)
    two, _, _ = restored(*words)
    assert (record["sampler"], record["method"], record["samples"]) == ("twisted_smc", "tmpd", 8)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_finished_restoration_is_not_repeated_and_a_killed_one_goes_on(restored, command, digits_run, monkeypatch):
    words = (*HALF, "--measurement", "data", "--num_images", 3, "--seed", 5, "--batch_size", 4, *FAST)
    whole, record, stem = restored(*words)
    made, made_before = [], Restoration.made

    def make(self, unit, bar):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(unit)
        return made_before(self, unit, bar)

    monkeypatch.setattr(Restoration, "made", make)
    code, out, _ = command("--workdir", digits_run, "--mode", "restore", *words)
    assert code == 0 and "3 measurements, restored before" in out and not made
    os.remove(f"{stem}.png")
    code, _, err = command("--workdir", digits_run, "--mode", "restore", *words)
    assert code == 130 and "2 of 3 measurements are done and kept; the same command continues from there" in err
    made.clear()
    again, new, _ = restored(*words)
    assert made == [range(2, 3)] and all(np.array_equal(whole[name], again[name]) for name in whole)
    assert {k: v for k, v in new.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    assert not os.path.exists(f"{stem}.parts")


@pytest.mark.slow
def test_two_processes_restore_as_one_to_the_bit(digits_run, tmp_path):
    words = (*HALF, "--measurement", "data", "--num_images", 5, "--batch_size", 4, *FAST)
    for processes in (1, 2):
        shutil.copytree(digits_run, tmp_path / str(processes))
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"] if processes == 2 else []
        subprocess.run([sys.executable, *launcher, "main.py", "--workdir", tmp_path / str(processes), "--mode", "restore",
                        *map(str, words)], check=True, cwd=ROOT, capture_output=True, timeout=120,
                       env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = (np.load(max((tmp_path / str(processes) / "restore").glob("*num_images5*.npz"))) for processes in (1, 2))
    assert set(one.files) == set(two.files) and all(np.array_equal(one[name], two[name]) for name in one.files)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    def make(folder):
        train_briefly("digits_cascade", folder / "second")

    return made_once(tmp_path_factory, "conditional", make) / "second"


def test_a_run_that_has_learned_a_degradation_restores_from_it(restored, refused, conditional, command):
    arrays, record, _ = restored("--measurement", "data", "--num_images", 3, "--steps", 3, "--samples", 2, run=conditional)
    assert (record["operator"], record["method"], record["sampler"]) == ("downsample:factor=2", "learned", "auto")
    test = load_dataset({"dataset": "digits", "degradation": "downsample:factor=2"}).test
    np.testing.assert_allclose(arrays["y"], test[torch.arange(3)][1]["low_res"].numpy(), atol=1e-6)
    assert "leave out operator (--operator)" in refused(*HALF, "--measurement", "data", run=conditional)
    code, out, err = command("--workdir", conditional, "--mode", "compare", "--measurement", "data", "--num_images", 2,
                             "--samplers", "auto,ddim", "--budgets", 8, "--samples", 2, "--bootstrap", 0)
    assert code == 0 and "learned by ddim" in out, err


@pytest.mark.parametrize(("words", "says"), [
    ((), "give what is to be restored"), (("--measurement", "data"), "say what was measured"),
    (("--measurement", "none.png", *HALF), "does not exist"),
    (("--measurement", "data", "--operator", "mask:box=0.01"), "must keep some elements and hide some"),
    (("--measurement", "data", "--operator", "blur:std=9", "--noise", 0.0), "--operator"),
    (("--measurement", "data", "--operator", "masks"), "did you mean 'mask'?"),
    (("--measurement", "data", "--operator", "downsample:factor=3"), "divide both sides"),
    (("--measurement", "data", *HALF, "--noise", -1), "noise must not be negative"),
    (("--measurement", "data", *HALF, "--samples", 0), "samples must lie in 1"),
    (("--measurement", "data", *HALF, "--method", "guess"), "unknown method"),
    (("--measurement", "data", *HALF, "--degraded"), "examples are whole"),
    (("--measurement", "data", *HALF, "--label", 3), "the model takes no label"),
    (("--measurement", "data", *HALF, "--sampler", "heun", "--particles", 3), "takes no 'particles'")])
def test_bad_input_is_one_line(refused, words, says):
    assert says in refused(*words)


def test_sizes_and_ranges_that_do_not_fit_are_one_line(refused, tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "odd.png")
    assert "of 7x9 pixels and 1 channel; the run and the operator take of 8x8 pixels" in refused(
        *HALF, "--measurement", tmp_path / "odd.png")
    np.save(tmp_path / "bright.npy", np.full((1, 1, 4, 4), 3.0, np.float32))
    assert "the data lie in [-1, 1]" in refused("--operator", "downsample:factor=2", "--measurement", tmp_path /
                                                "bright.npy", "--noise", 0.1)
    np.save(tmp_path / "nan.npy", np.full((1, 1, 4, 4), np.nan, np.float32))
    assert "must be finite" in refused("--operator", "downsample:factor=2", "--measurement", tmp_path / "nan.npy")
    for side in ("a", "b"):
        Image.fromarray(np.zeros((8, 8 if side == "a" else 9), np.uint8)).save(tmp_path / f"{side}.png")
    (tmp_path / "odd.png").unlink()
    assert "give pictures of one size" in refused(*HALF, "--measurement", tmp_path)
