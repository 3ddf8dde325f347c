"""Mode fit_variance, and what takes the variance that it leaves in a run."""

import json
import shutil

import numpy as np
import pytest

from scorefield.checkpoints import load_denoiser
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation import fit_moments

FIT = ["--mode", "fit_variance", "--num_examples", 6, "--num_times", 5]
ANALYTIC = ["--mode", "sample", "--sampler", "ancestral", "--steps", 3, "--variance", "analytic", "--num_samples", 4]


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run")


@pytest.fixture
def fitted(command, run):
    code, out, err = command("--workdir", run, *FIT)
    assert code == 0, err
    return run


def file_of(run):
    return next((run / "variance").glob("*.npz"))


def test_it_keeps_the_moments_of_the_newest_checkpoint(command, fitted):
    with np.load(file_of(fitted)) as arrays:
        data, codec = load_dataset({"dataset": "digits"}), make_codec(17, dequantize=True)
        moments = fit_moments(load_denoiser(fitted), data, codec, 6, 5)
        np.testing.assert_allclose(arrays["residual"], moments.residual.numpy(), rtol=1e-4)
        assert arrays["n"] == 6 and arrays["residual"].shape == (5, 1, 8, 8)


def test_samples_bounds_and_comparisons_take_it(command, fitted):
    code, out, err = command("--workdir", fitted, *ANALYTIC)
    assert code == 0 and "3 evaluations each" in out, err
    code, out, err = command("--workdir", fitted, *FIT, "--covariance", "isotropic")
    assert code == 0 and "took the moments that were there" in out and "isotropic variance" in out, err
    code, out, err = command("--workdir", fitted, *ANALYTIC)
    assert code == 0 and "these samples have replaced them" in out, err      # those of the other variance are not taken
    assert "drawn before" in command("--workdir", fitted, *ANALYTIC)[1]
    bounds = {}
    for variance in ("beta", "analytic"):
        code, out, err = command("--workdir", fitted, "--mode", "likelihood", "--estimator", "chain_elbo", "--steps", 5,
                                 "--variance", variance, "--num_images", 4)
        assert code == 0, err
        name = f"chain_elbo_test{'_variance_analytic' * (variance == 'analytic')}_steps5_num_images4.json"
        bounds[variance] = json.loads((fitted / "likelihood" / name).read_text())["bits_per_dim"]
    assert bounds["analytic"] < bounds["beta"] - 0.1
    for words in (["progressive", "--sampler", "ancestral", "--steps", 3, "--variance", "analytic", "--grid", "optimal",
                   "--num_samples", 2, "--frames", 2], ["rate_distortion", "--steps", 5, "--variance", "analytic",
                                                        "--grid", "optimal", "--num_samples", 2]):
        code, out, err = command("--workdir", fitted, "--mode", "explore", "--what", *words)
        assert code == 0 and "wrote" in out, err
    code, out, err = command("--workdir", fitted, "--mode", "compare", "--budgets", 3,
                             "--samplers", "ancestral:variance=analytic:grid=optimal",
                             "--num_samples", 50, "--likelihood_examples", 0, "--bootstrap", 0)
    assert code == 0 and "left out" not in out, err + out


def test_what_is_not_there_damaged_or_of_another_model_is_one_line(command, fitted):
    for words, line in ((["--noema"], "there is no fitted variance"), (["--seed", 1], None)):
        code, _, err = command("--workdir", fitted, *ANALYTIC, *words)
        assert (code == 0) == (line is None) and (line or "") in err
    path = file_of(fitted)
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"residual": arrays["residual"] / 2})
    code, _, err = command("--workdir", fitted, *ANALYTIC)
    assert code == 1 and "is damaged (its checksum is another); fit it again with mode fit_variance" in err
    path.write_bytes(whole[:100])
    code, _, err = command("--workdir", fitted, *ANALYTIC)
    assert code == 1 and "is damaged" in err and err.count("\n") == 1
    path.write_bytes(whole)
    code, _, err = command("--workdir", fitted, "--mode", "train", "--config.training.steps=5")
    assert code == 0, err
    newer = path.with_name(path.name.replace("00000004", "00000005"))
    assert not newer.exists()
    shutil.copy(path, newer)
    code, _, err = command("--workdir", fitted, *ANALYTIC)
    assert code == 1 and "was fitted to another model: its weights differ; fit it again with mode fit_variance" in err


@pytest.mark.parametrize("words, line", [
    (["--num_examples", 1], "num_examples must lie in 2 .."), (["--num_times", 1], "num_times must lie in 2 .."),
    (["--covariance", "full"], "diagonal, isotropic"), (["--label", "true"], "the model takes no label"),
    (["--label", "3"], "unknown label '3'; choose from true")])
def test_wrong_flags_are_one_line(words, line, command, run):
    code, _, err = command("--workdir", run, *FIT, *words)
    assert code == 1 and line in err and err.count("\n") == 1


def test_a_sampler_that_needs_a_fit_names_the_command(command, run):
    for words in (ANALYTIC, ["--mode", "sample", "--sampler", "ddim", "--grid", "optimal"],
                  ["--mode", "likelihood", "--estimator", "chain_elbo", "--variance", "analytic"]):
        code, _, err = command("--workdir", run, *words)
        assert code == 1 and "fit it first with mode fit_variance" in err and err.count("\n") == 1
