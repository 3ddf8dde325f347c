"""The command line, as a user meets it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, write_cifar10
from PIL import Image

from scorefield.cli import main
from scorefield.configs.loading import apply, config_names, load_config
from scorefield.configs.sections import require_sections
from scorefield.evaluation import Evaluation
from scorefield.evaluation.names import name_of_place
from scorefield.samplers import SAMPLERS

ROOT = Path(__file__).parents[1]


@pytest.mark.costly
@pytest.mark.machine
@pytest.mark.parametrize("name", ["vp_cifar10", "ve_cifar10", "subvp_cifar10"])
def test_cifar_configs_train_sample_and_score_shrunk_by_flags_alone(name, command, tmp_path):
    write_cifar10(tmp_path / "data", num_train=200, num_test=20)
    where = ["--config", ROOT / f"configs/{name}.py", "--workdir", tmp_path / "run"]
    data = f"--config.data.path={tmp_path / 'data'}"
    code, out, err = command(*where, "--mode", "train", data, *SMALL)
    assert code == 0, err
    assert str(tmp_path / "run" / "checkpoints" / "step_00000004.pt") in out
    code, out, err = command(*where, "--mode", "sample", "--num_samples", 3, "--steps", 4, "--sampler",
                             "euler_maruyama")
    assert code == 0, err
    with np.load(tmp_path / "run/samples/euler_maruyama_steps4.npz") as arrays:
        assert arrays["x"].shape == (3, 3, 32, 32) and arrays["x"].dtype == np.uint8
    code, out, err = command(*where, "--mode", "likelihood", data, "--num_images", 4, "--rtol", 1e-2, "--atol", 1e-2)
    assert code == 0, err
    summary = json.loads((tmp_path / "run/likelihood/summary_rtol0.01_atol0.01_num_images4.json").read_text())
    assert {"bits_per_dim", "standard_error", "nfe", "seconds", "num_images"} <= set(summary)
    assert summary["num_images"] == 4 and np.isfinite(summary["bits_per_dim"]) and summary["nfe"] > 0


@pytest.mark.parametrize("sampler, options, name", [
    ("euler_maruyama", ["--steps=5", "--grid=logsnr", "--eta=0.5"], "_steps5_grid_logsnr_eta0.5"),
    ("euler_maruyama", ["--grid=1,0.5,0.1", "--denoise"], "_denoise_grid_1-0.5-0.1"),
    ("dpm_solver", ["--order=3", "--steps=20", "--grid=logsnr"], "_order3"),
    ("predictor_corrector", ["--steps=3", "--snr=0.2", "--corrector_steps=2"], "_steps3_corrector_steps2_snr0.2"),
    ("ddim", ["--steps=4", "--eta=0.5", "--t_end=0.01"], "_t_end0.01_steps4_eta0.5"),
    ("edm", ["--steps=4", "--churn=2"], "_steps4_churn2"), ("auto", ["--steps=8"], "_steps8"),
    ("ode", ["--rtol=1e-2", "--atol=1e-2", "--method=bosh3"], "_method_bosh3_rtol0.01_atol0.01")])
def test_a_run_folder_alone_is_enough_to_sample(sampler, options, name, command, digits_run):
    code, out, err = command("--workdir", digits_run, "--mode", "sample", "--sampler", sampler, "--num_samples", 5,
                             *options)
    assert code == 0, err
    stem = f"samples/{sampler}{name}"
    described = json.loads((digits_run / f"{stem}.json").read_text())
    assert described["num_samples"] == 5 and described["nfe"] > 0
    expected = {"--steps=5": 5, "--denoise": 3, "--steps=20": 20, "--snr=0.2": 9, "--steps=8": 8, "--churn=2": 7}
    assert described["nfe"] == next((expected[word] for word in options if word in expected), described["nfe"])
    assert Image.open(digits_run / f"{stem}.png").size == (3 * 42 + 2, 2 * 42 + 2)
    assert f"{described['nfe']:g} evaluations" in out


def test_samples_do_not_depend_on_the_batch_size(command, digits_run):
    drawn = []
    for batch_size in (2, 6):
        assert command("--workdir", digits_run, "--mode", "sample", "--num_samples", 6, "--steps", 4, "--seed", 3,
                       "--batch_size", batch_size, "--sampler", "euler_maruyama")[0] == 0
        name = f"euler_maruyama_steps4_seed3_batch_size{batch_size}.npz"
        drawn.append(np.load(digits_run / "samples" / name)["x"].astype(int))
    np.testing.assert_allclose(*drawn, atol=1)      # a level where the last bits differ on its edge
    assert (drawn[0] == drawn[1]).mean() > 0.99


@pytest.mark.slow
def test_points_are_drawn_over_the_data_with_their_trajectory(command, tmp_path):
    where = ["--config", ROOT / "configs/vp_swiss_roll.py", "--workdir", tmp_path / "roll"]
    settings = ["--config.training.steps=5", "--config.data.size=500", "--config.model.width=16"]
    assert command(*where, "--mode", "train", *settings)[0] == 0
    for sampler in SAMPLERS:
        options = ["--steps", 16] if sampler != "ode" else ["--rtol", 1e-2, "--atol", 1e-2]
        name = "_steps16" if sampler != "ode" else "_rtol0.01_atol0.01"
        code, _, err = command(*where, "--mode", "sample", "--sampler", sampler, "--num_samples", 50, *options)
        assert code == 0, err
        for suffix in ("", "_trajectory"):
            picture = np.asarray(Image.open(tmp_path / f"roll/samples/{sampler}{name}{suffix}.png"))
            assert picture.std() > 5
    assert command(*where, "--mode", "likelihood", "--num_images", 20, "--rtol", 1e-3, "--atol", 1e-3)[0] == 0
    code, out, _ = command("--workdir", tmp_path / "roll", "--mode", "report")
    assert code == 0 and len(out.strip().splitlines()) == 2 + 1 + len(SAMPLERS) + 1


def test_training_again_goes_on_and_a_finished_run_stays_as_it_is(command, digits_run):
    where = ["--config", ROOT / "configs/vp_digits.py", "--mode", "train", "--workdir", digits_run, *SMALL]
    code, out, _ = command(*where)
    assert code == 0 and "at step 4 already" in out and "wrote" not in out
    refused(command(*where, "--config.training.steps=3"), "at step 4 already", "--config.training.steps")
    assert json.loads((digits_run / "config.json").read_text())["training"]["steps"] == 4
    code, out, _ = command(*where, "--config.training.steps=6")
    assert code == 0 and "continues from" in out and "step_00000006.pt" in out


def refused(result, *parts):
    """The command failed with one line on standard error that holds all parts."""
    code, out, err = result
    assert code not in (0, None) and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err, err


DIGITS = ["--config", ROOT / "configs/vp_digits.py"]


@pytest.mark.machine
@pytest.mark.parametrize("words, parts", [
    ([], ["--mode", "--help"]),
    (["--mode", "train"], ["--config"]),
    (["--mode", "train", *DIGITS, "--workdir", ""], ["--workdir"]),
    (["--mode", "train", *DIGITS, "--config.data.dataset=folder", "--config.data.path=/nope"], [
        "'/nope'", "does not exist"]),
    (["--mode", "trian", *DIGITS], ["--mode", "train", "likelihood"]),
    (["--stepz", "3", "--mode", "sample", *DIGITS], ["stepz", "steps"]),
    (["extra", "--mode", "train", *DIGITS], ["extra"]),
    (["--mode", "train", "--config", "configs/vp_digit.py"], ["vp_digit.py", "'configs/vp_digits.py'", "--config"]),
    (["--mode", "train", *DIGITS, "--config.training.batchsize=3"], ["training.batchsize", "'training.batch_size'"]),
    (["--mode", "train", *DIGITS, "--config.training=3"], ["section", "batch_size"]),
    (["--mode", "train", *DIGITS, "--config.training.batch_size=big"], ["training.batch_size", "a whole number", "'big'"]),
    (["--mode", "train", *DIGITS, "--config.training.batch_size=-3"], ["training.batch_size", "above 0", "-3"]),
    (["--mode", "train", *DIGITS, "--config.training.learning_rate=nan"], ["finite number", "'nan'"]),
    (["--mode", "train", *DIGITS, "--config.training.learning_rate=None"], ["finite number", "'None'"]),
    (["--mode", "train", *DIGITS, "--config.training.steps=1e400"], ["training.steps", "whole number"]),
    (["--mode", "train", *DIGITS, "--device", "cpu:abc"], ["'cpu:abc'", "--device"]),
    (["--mode", "train", *DIGITS, "--config.data.path=/tmp"], ["'digits'", "--config.data.path"]),
    (["--mode", "train", "--config", ROOT / "configs/vp_swiss_roll.py", "--config.data.flip=true"], ["--config.data.flip"]),
    (["--mode", "train", *DIGITS, "--config.training.steps=0"], ["--config.training.steps"]),
    (["--mode", "train", *DIGITS, "--config.training.ema_decay=1.5"], ["--config.training.ema_decay", "[0, 1)"]),
    (["--mode", "train", *DIGITS, "--config.training.weighting=simpel"], ["simpel", "simple, likelihood, uniform"]),
    (["--mode", "train", *DIGITS, "--config.training.compile=perhaps"], ["true or false", "'perhaps'"]),
    (["--mode", "train", *DIGITS, "--config.data.dataset=digit"], ["'digit'", "'digits'", "--config.data.dataset"]),
    (["--mode", "train", *DIGITS, "--config.data.image_size=16"],
     ["'digits' takes no 'image_size'", "--config.data.image_size"]),
    (["--mode", "train", *DIGITS, "--config.data.low=2"], ["--config.data.low"]),
    (["--mode", "train", *DIGITS, "--config.sde.name=vpp"], ["'vpp'", "subvp", "--config.sde.name"]),
    (["--mode", "train", *DIGITS, "--config.sde.sigma_max=3"], ["sigma_max", "beta_min, beta_max"]),
    (["--mode", "train", *DIGITS, "--config.sde.beta_min=-1"], ["beta_min", "-1"]),
    (["--mode", "train", *DIGITS, "--config.model.layers=3"], ["layers", "width"]),
    (["--mode", "train", *DIGITS, "--config.model.width=-8"], ["-8", "--config.model.width"]),
    (["--mode", "train", *DIGITS, "--config.model.network=unett"], ["'unett'", "unet, ncsnpp, mlp, dit"]),
    (["--mode", "train", *DIGITS, "--config.model.parametrization=noise"], ["'noise'", "eps, x0, v, score"]),
    (["--mode", "train", *DIGITS, "--sampler", "ode"], ["--sampler", "mode sample"]),
    (["--mode", "train", *DIGITS, "--device", "tpu"], ["'tpu'", "auto, cuda, mps, cpu", "--device"]),
    (["--mode", "train", "--config", ROOT / "configs/vp_cifar10.py", "--config.data.path=/nowhere"],
     ["/nowhere", "--config.data.path"]),
])
def test_a_mistake_before_training_is_one_clear_line_and_writes_nothing(words, parts, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(command(*words), *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, parts", [
    (["--mode", "sample", "--sampler", "ddpmm"], ["'ddpmm'", "euler_maruyama", "--sampler"]),
    (["--mode", "sample", "--sampler", "ode", "--steps", "5"], ["'ode'", "steps", "rtol"]),
    (["--mode", "sample", "--steps", "0"], ["steps must be at least 1", "--steps"]),
    (["--mode", "sample", "--steps", "3000000000"], ["at most 1000000", "--steps"]),
    (["--mode", "sample", "--sampler", "dpm_solver", "--method", "singlestep", "--steps", "99999999999999999999"],
     ["whole number", "--steps"]),
    (["--mode", "sample", "--num_samples", "99999999999999"], ["--num_samples"]),
    (["--mode", "sample", "--sampler", "euler_maruyama", "--eta", "1e30"], ["--eta", "[0, 100]"]),
    (["--mode", "sample", "--steps", "5.5"], ["--steps", "5.5"]),
    (["--mode", "sample", "--num_samples", "-4"], ["--num_samples", "-4"]),
    (["--mode", "sample", "--seed", "-4"], ["--seed", "-4"]),
    (["--mode", "sample", "--t_end", "0"], ["t_end", "--t_end"]),
    (["--mode", "sample", "--grid", "1,x"], ["--grid", "1,x", "logsnr"]),
    (["--mode", "sample", "--grid", "0.1,0.5"], ["decrease", "--grid"]),
    (["--mode", "sample", "--eta", "-1", "--sampler", "euler_maruyama"], ["--eta", "-1"]),
    (["--mode", "sample", "--eta", "2", "--sampler", "ddim"], ["--eta", "[0, 1]"]),
    (["--mode", "sample", "--order", "3", "--sampler", "dpm_solver", "--steps", "2"], ["order 3", "at least 3 steps"]),
    (["--mode", "sample", "--snr", "0.1"], ["'auto'", "snr", "data_std"]),
    (["--mode", "sample", "--precision", "fp8"], ["'fp8'", "auto, fp32, bf16", "(--precision)"]),
    (["--mode", "sample", "--probes", "3"], ["--probes", "likelihood"]),
    (["--mode", "likelihood", "--divergence", "exakt"], ["'exakt'", "exact, hutchinson"]),
    (["--mode", "likelihood", "--rtol", "0"], ["--rtol"]),
    (["--mode", "likelihood", "--steps", "30"], ["'dopri5' takes no steps", "--steps"]),
    (["--mode", "likelihood", "--method", "exponential", "--rtol", "0.1"], ["takes no rtol", "--rtol"]),
    (["--mode", "likelihood", "--divergence", "exact", "--probes", "3"], ["--probes", "hutchinson"]),
    (["--mode", "likelihood", "--estimator", "elbo", "--rtol", "0.1"], ["'elbo' takes no rtol", "--rtol"]),
    (["--mode", "likelihood", "--estimator", "elbo", "--bound_draws", "3"], ["even", "--bound_draws"]),
    (["--mode", "likelihood", "--images", "/nowhere"], ["--images", "/nowhere", "does not exist"]),
    (["--mode", "likelihood", "--images", "/tmp", "--split", "train"], ["--images", "--split"]),
    (["--mode", "likelihood", "--compare", "tset"], ["--compare", "tset"]),
    (["--mode", "likelihood", "--max_evaluations", "5"], ["more than 5 evaluations", "raise max_evaluations"]),
    (["--mode", "likelihood", "--config.model.width=16"], ["another experiment", "model.width", "8", "16"]),
    (["--mode", "train", "--config.model.width=16"], ["another experiment", "model.width"]),
    (["--mode", "sample", "--config", ROOT / "configs/vp_swiss_roll.py"], ["'vp_digits'", "'vp_swiss_roll'"]),
    (["--mode", "train", "--config", ROOT / "configs/vp_swiss_roll.py"], ["another experiment"]),
])
def test_a_mistake_with_a_run_is_one_clear_line_and_changes_nothing(words, parts, command, digits_run):
    before = {path: path.stat().st_mtime_ns for path in sorted(digits_run.rglob("*")) if path.is_file()}
    refused(command("--workdir", digits_run, *words), *parts)
    assert before == {path: path.stat().st_mtime_ns for path in sorted(digits_run.rglob("*")) if path.is_file()}


def test_folders_that_are_no_run_are_left_alone(command, tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    refused(command(*DIGITS, "--mode", "train", "--workdir", tmp_path, *SMALL), "not empty", "--workdir")
    refused(command(*DIGITS, "--mode", "train", "--workdir", tmp_path / "thesis.tex"), "not a folder", "--workdir")
    refused(command(*DIGITS, "--mode", "sample", "--workdir", tmp_path / "none"), "holds no run", "--mode train")
    refused(command("--mode", "report", "--workdir", tmp_path), "holds no run")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_one_clear_line(command, tmp_path):
    tmp_path.chmod(0o500)
    refused(command(*DIGITS, "--mode", "train", "--workdir", tmp_path / "run", *SMALL), "Permission denied")


@pytest.mark.machine
def test_damaged_files_of_a_run_are_one_clear_line(command, tmp_path):
    run = tmp_path / "run"
    where = ["--workdir", run, *DIGITS]
    assert command(*where, "--mode", "train", *SMALL, "--config.training.keep=1")[0] == 0
    checkpoint = next((run / "checkpoints").iterdir())
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        weights = archive.read(max(archive.infolist(), key=lambda record: record.file_size))      # of one layer, as stored
    content[content.index(weights) + 100] ^= 1
    checkpoint.write_bytes(content)
    refused(command("--workdir", run, "--mode", "sample"), str(checkpoint), "damaged")
    checkpoint.write_bytes(content[:1000])
    refused(command(*where, "--mode", "train", *SMALL, "--config.training.steps=6"), str(checkpoint), "truncated")
    (run / "config.json").write_text("[]")
    refused(command("--workdir", run, "--mode", "sample"), "config.json", "damaged")
    (run / "config.json").write_text("{}")
    refused(command("--workdir", run, "--mode", "sample"), "config.json", "damaged")
    (run / "config.json").write_text("{")
    refused(command("--workdir", run, "--mode", "sample"), "config.json", "damaged")


def test_what_processes_cannot_share_is_refused_under_torchrun(command, digits_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(command("--workdir", digits_run, "--mode", "report"), "one process", "--mode train, sample")


EXPONENTIAL = "_method_exponential_steps8"
SCORE = ["--mode", "likelihood", "--method", "exponential", "--steps", 8, "--batch_size", 4]


def test_a_score_has_a_row_an_example_a_summary_and_a_histogram(command, digits_run):
    code, out, err = command("--workdir", digits_run, *SCORE, "--num_images", 10, "--draws", 2, "--probes", 2)
    assert code == 0 and "10 test examples" in out, err
    stem = digits_run / "likelihood" / f"summary{EXPONENTIAL}_probes2_draws2_num_images10"
    summary = json.loads(stem.with_suffix(".json").read_text())
    rows = np.genfromtxt(stem.with_suffix(".csv"), delimiter=",", names=True)
    assert len(rows) == 10 and rows["bits_per_dim"].mean() == pytest.approx(summary["bits_per_dim"])
    assert set(summary["standard_error_parts"]) == {"data", "dequantization", "probes"}
    assert summary["nfe"] == 16 and summary["draws"] == 2 and summary["solver_error"] > 0
    with Image.open(stem.with_suffix(".png")) as histogram:
        assert min(histogram.size) > 200
    assert not (digits_run / "likelihood/partial").exists()


@pytest.mark.slow
def test_two_processes_score_as_one_to_the_bit(tmp_path, digits_run):
    for processes in (1, 2):
        shutil.copytree(digits_run, tmp_path / str(processes))
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"] if processes == 2 else []
        subprocess.run([sys.executable, *launcher, "main.py", "--workdir", str(tmp_path / str(processes)), *map(str, SCORE),
                        "--num_images", "14"], check=True, cwd=ROOT, capture_output=True, timeout=120,
                       env=os.environ | {"OMP_NUM_THREADS": "1"})
    name = f"likelihood/summary{EXPONENTIAL}_num_images14"
    one, two = ((tmp_path / str(processes) / f"{name}.csv").read_bytes() for processes in (1, 2))
    assert one == two
    assert json.loads((tmp_path / f"2/{name}.json").read_text())["processes"] == 2


def test_a_killed_evaluation_goes_on(command, digits_run, monkeypatch):
    where = ["--workdir", digits_run, *SCORE, "--num_images", 12, "--seed", 5]
    assert command(*where)[0] == 0
    written = digits_run / f"likelihood/summary{EXPONENTIAL}_num_images12_seed5.csv"
    whole = written.read_bytes()
    evaluate, done = Evaluation._evaluate, []

    def kill(self, unit):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(unit)
        return evaluate(self, unit)

    monkeypatch.setattr(Evaluation, "_evaluate", kill)
    assert command(*where)[0] == 130
    monkeypatch.setattr(Evaluation, "_evaluate", evaluate)
    code, out, err = command(*where, "--seed", 6)      # another seed is another evaluation
    assert code == 0 and "continuing" not in out, err
    code, out, err = command(*where)
    assert code == 0 and "continuing: 1 of 3 batches are done" in out, err
    assert written.read_bytes() == whole


def test_images_of_ones_own_and_a_second_set(command, digits_run, tmp_path):
    k = np.random.default_rng(0).integers(0, 17, (6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", k)
    code, out, err = command("--workdir", digits_run, *SCORE, "--num_images", 6, "--compare", tmp_path / "noise.npz")
    assert code == 0 and "AUROC" in out, err
    noise = f"images_{name_of_place(tmp_path / 'noise.npz')}"
    stem = f"{digits_run}/likelihood/test_vs_{noise}{EXPONENTIAL}_num_images6"
    summary = json.loads(Path(f"{stem}.json").read_text())
    assert 0 <= summary["auroc"] <= 1 and summary["compare"]["num_images"] == 6 and Path(f"{stem}.png").exists()
    code, out, err = command("--workdir", digits_run, *SCORE, "--images", tmp_path / "noise.npz")
    assert code == 0 and (digits_run / f"likelihood/{noise}{EXPONENTIAL}.csv").exists(), err
    assert noise in command("--workdir", digits_run, "--mode", "report")[1]
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other/noise.npz", k[:3])      # of the same stem
    code, out, err = command("--workdir", digits_run, *SCORE, "--images", tmp_path / "other/noise.npz")
    numbers = [len(path.read_text().splitlines()) for path in (digits_run / "likelihood").glob("images_noise_*.csv")]
    assert code == 0 and sorted(numbers) == [4, 7], err
    np.savez(tmp_path / "noise.npz", np.full((6, 8, 8), 17, np.uint8))
    refused(command("--workdir", digits_run, *SCORE, "--images", tmp_path / "noise.npz"), "17", "levels are 0 .. 16")


@pytest.mark.machine
def test_a_folder_of_pictures_is_scored_by_name(command, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i}.png")
    write_cifar10(tmp_path / "data", num_train=200, num_test=20)
    where = ["--workdir", tmp_path / "run"]
    assert command("--config", ROOT / "configs/vp_cifar10.py", *where, "--mode", "train",
                   f"--config.data.path={tmp_path / 'data'}", *SMALL)[0] == 0
    code, out, err = command(*where, *SCORE, "--images", tmp_path / "pictures")
    assert code == 0, err
    name = f"images_{name_of_place(tmp_path / 'pictures')}{EXPONENTIAL}"
    lines = (tmp_path / f"run/likelihood/{name}.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["file", "0.png", "1.png", "2.png"]


@pytest.mark.parametrize("estimator, options, name", [("elbo", ["--bound_draws", 4], "_bound_draws4"),
                                                      ("chain_elbo", ["--steps", 5], "_steps5")])
def test_bounds_are_scored_by_a_flag(estimator, options, name, command, digits_run):
    code, _, err = command("--workdir", digits_run, "--mode", "likelihood", "--estimator", estimator, *options,
                           "--num_images", 4)
    assert code == 0, err
    summary = json.loads((digits_run / f"likelihood/{estimator}_test{name}_num_images4.json").read_text())
    assert np.isfinite(summary["bits_per_dim"]) and summary["estimator"] == estimator and summary["nfe"] in (4, 5)


@pytest.mark.machine
def test_a_run_on_a_chain_is_scored_through_its_sde_and_says_so(command, tmp_path):
    where = ["--workdir", tmp_path / "run"]
    assert command("--config", ROOT / "configs/vp_digits.py", "--config.sde.name=ddpm", *where, "--mode", "train",
                   *SMALL)[0] == 0
    code, out, err = command(*where, *SCORE, "--num_images", 4)
    assert code == 0 and "discrete chain of 1000 steps" in out and "1/1000" in out, err
    assert "chain" in json.loads((tmp_path / f"run/likelihood/summary{EXPONENTIAL}_num_images4.json").read_text())["note"]


def test_the_exact_trace_of_a_convolutional_network_is_scored(command, digits_run):
    code, out, err = command("--workdir", digits_run, *SCORE, "--num_images", 2, "--divergence", "exact")
    assert code == 0 and "2 test examples" in out, err


def test_every_summary_is_valid_json(command, digits_run):
    assert command("--workdir", digits_run, "--mode", "sample", "--sampler", "edm", "--steps", 3)[0] == 0
    assert command("--workdir", digits_run, "--mode", "likelihood", "--num_images", 1, "--rtol", 0.1, "--atol", 0.1)[0] == 0

    def refuse(word):
        raise AssertionError(word)

    edm = json.loads((digits_run / "samples/edm_steps3.json").read_text(), parse_constant=refuse)
    assert edm["settings"]["s_max"] is None
    summary = (digits_run / "likelihood/summary_rtol0.1_atol0.1_num_images1.json").read_text()
    assert json.loads(summary, parse_constant=refuse)["standard_error"] is None


@pytest.mark.machine
@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_the_same_command_finishes(command, tmp_path):
    words = [sys.executable, "main.py", *map(str, DIGITS), "--mode", "train", "--workdir", str(tmp_path / "run"), *SMALL,
             "--config.training.steps=100000", "--config.training.log_every=1",
             "--config.training.checkpoint_every=100000", "--config.training.sample_every=0"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stats, deadline = tmp_path / "run/stats.jsonl", time.monotonic() + 90
    while not (stats.exists() and len(stats.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    step = int(re.search(r"holds step (\d+)", err).group(1))
    assert (tmp_path / f"run/checkpoints/step_{step:08d}.pt").exists()
    words[words.index("--config.training.steps=100000")] = f"--config.training.steps={step + 2}"
    code, out, _ = command(*words[2:])
    assert code == 0 and f"step_{step + 2:08d}.pt" in out


def test_help_names_modes_samplers_and_configs_and_may_be_of_one_mode(command):
    code, out, _ = command("--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 118
    one = command("--mode", "convert", "--help")[1]
    assert "--output" in one and "--num_samples" not in one and len(one) < len(out) / 2
    for word in [*main.MODES, *SAMPLERS, *config_names()]:
        assert word in out, word


def test_a_run_made_before_a_field_existed_takes_its_default(command, digits_run, tmp_path):
    older = shutil.copytree(digits_run, tmp_path / "older")
    stored = json.loads((older / "config.json").read_text())
    del stored["training"]["activation_checkpointing"], stored["model"]["norm_eps"], stored["data"]["high"]
    (older / "config.json").write_text(json.dumps(stored))
    code, _, err = command("--mode", "sample", "--workdir", older, "--num_samples", 2, "--steps", 3)
    assert code == 0, err
    code, _, err = command("--mode", "train", "--config", ROOT / "configs/vp_digits.py", "--workdir", older, *SMALL,
                           "--config.training.steps=8")
    assert code == 0, err
    stored["training"]["depth"] = 3
    (older / "config.json").write_text(json.dumps(stored))
    code, _, err = command("--mode", "sample", "--workdir", older)
    assert code == 1 and "takes no 'depth'" in err


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_valid_and_short(name):
    path = ROOT / f"configs/{name}.py"
    require_sections(load_config(str(path)))
    assert len(path.read_text().splitlines()) <= 35


def test_overrides_keep_the_type_of_their_field():
    config = load_config(str(ROOT / "configs/vp_digits.py"))
    rest, overrides = main.split_overrides(["--config", "x", "--config.training.learning_rate=1",
                                            "--config.model.multipliers", "(1,2,4)", "--config.sde.beta_max=3",
                                            "--config.model.attention_resolutions=4", "--config.data.flip=true"])
    assert rest == ["--config", "x"]
    apply(config, overrides)
    assert config.training.learning_rate == 1.0 and isinstance(config.training.learning_rate, float)
    assert config.model.multipliers == (1, 2, 4) and config.model.attention_resolutions == (4,)
    assert isinstance(config.sde.beta_max, float) and config.data.flip is True
    apply(config, [("sde.betas", "(0.1, 0.2, 1e-3)"), ("sde.name", "ddpm")])      # the class first, whatever the order
    assert config.sde.betas == (0.1, 0.2, 1e-3)
    with pytest.raises(ValueError, match=r"model.multipliers must be whole numbers such as \(1, 2\), got '\(1, 1.5\)'"):
        apply(config, [("model.multipliers", "(1, 1.5)")])


def test_naming_another_class_replaces_its_section_and_keeps_the_range_of_the_data():
    config = load_config(str(ROOT / "configs/ve_cifar10.py"))
    apply(config, [("data.image_size", "16"), ("data.dataset", "folder"), ("sde.name", "cosine")])
    assert config.data.to_dict() == {"dataset": "folder", "path": "", "image_size": 16, "channels": 3,
                                     "background": "white", "flip": True, "low": 0.0, "high": 1.0, "dequantize": False,
                                     "degradation": "", "low_res_noise": 0.0, "reduce": 1, "autoencoder": ""}
    assert config.sde.to_dict() == {"name": "cosine", "s": 0.008, "beta_max": 999.0}


def test_a_config_that_names_a_class_without_its_section_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from scorefield.configs import default\n\n\ndef get_config():\n    config = default.get_config()\n"
                    "    config.sde.name = 've'\n    return config\n")
    with pytest.raises(ValueError, match="mine.py' is not usable: 've' takes no 'beta_m"):
        load_config(str(file))


def test_tensorboard_holds_scalars_and_a_picture_of_samples(digits_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(digits_run / "tensorboard"))
    events.Reload()
    assert {"training/loss", "training/held_out_loss", "training/learning_rate"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["samples"]


@pytest.mark.machine
def test_the_seed_of_a_run_settles_its_weights(command, tmp_path):
    for name in ("a", "b"):
        assert command(*DIGITS, "--mode", "train", "--workdir", tmp_path / name, *SMALL)[0] == 0
    a, b = (torch.load(tmp_path / name / "checkpoints/step_00000004.pt", weights_only=True)["ema"] for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
