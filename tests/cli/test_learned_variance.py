"""The commands of docs/variances.md: train with a learned variance, sample and bound by it, and what has none."""

import json

import pytest

from tests.helpers import SMALL

CHAIN = ["--config.sde.name=ddpm", "--config.sde.schedule=cosine", "--config.sde.steps=4000",
         "--config.model.time_input=index1000", "--config.model.learned_variance=true",
         "--config.training.objective=learned_variance"]
BOUND = ["--mode", "likelihood", "--estimator", "chain_elbo", "--steps", 3, "--num_images", 8]


@pytest.mark.machine
@pytest.mark.slow
def test_a_chain_of_4000_cosine_steps_is_trained_sampled_in_three_and_bounded(command, tmp_path):
    run = tmp_path / "improved"
    code, out, err = command("--config", "configs/vp_digits.py", "--mode", "train", "--workdir", run, *CHAIN, *SMALL)
    assert code == 0, err
    for variance in ("learned", "analytic", "beta"):
        code, out, err = command("--workdir", run, "--mode", "sample", "--sampler", "ancestral", "--variance", variance,
                                 "--steps", 3, "--num_samples", 2)
        assert code == 0 and "wrote" in out, err
        code, out, err = command("--workdir", run, *BOUND, "--variance", variance)
        assert code == 0 and "bits/dim" in out, err
    assert len(list((run / "samples").glob("*.npz"))) == 3
    found = [json.loads(path.read_text()) for path in (run / "likelihood").glob("chain_elbo*.json")]
    assert len({json.dumps(one) for one in found}) == 3


@pytest.mark.machine
def test_a_run_without_one_refuses_it_in_a_line(command, digits_run):
    for words in (["--mode", "sample", "--sampler", "ancestral", "--steps", 3, "--num_samples", 2], BOUND):
        code, out, err = command("--workdir", digits_run, *words, "--variance", "learned")
        assert code != 0 and "variance 'learned' needs a model that has learned one" in err, err
        assert len(err.strip().splitlines()) == 1
    code, out, err = command("--workdir", digits_run, "--mode", "sample", "--sampler", "ddim", "--variance", "learned")
    assert code != 0 and "unknown variance 'learned'; choose from beta, beta_tilde, analytic" in err
    code, out, err = command("--config", "configs/vp_digits.py", "--mode", "train", "--workdir", digits_run.parent / "other",
                             "--config.training.objective=learned_variance", *SMALL)
    assert code != 0 and "--config.model.learned_variance" in err and len(err.strip().splitlines()) == 1


@pytest.mark.machine
def test_the_square_of_the_errors_is_learned_sampled_and_bounded_and_no_share_of_log_beta(command, tmp_path):
    run = tmp_path / "squares"
    code, out, err = command("--config", "configs/vp_digits_variance.py", "--mode", "train", "--workdir", run, *SMALL)
    assert code == 0, err
    for words in (["--mode", "sample", "--sampler", "ancestral", "--steps", 3, "--num_samples", 2], BOUND):
        code, out, err = command("--workdir", run, *words, "--variance", "analytic")
        assert code == 0, err
        code, out, err = command("--workdir", run, *words, "--variance", "learned")
        assert code == 1 and "this one learned 'residual' (model.variance_output); choose analytic" in err, err
        assert len(err.strip().splitlines()) == 1
    code, out, err = command("--config", "configs/vp_digits_variance.py", "--mode", "train", "--workdir", tmp_path / "other",
                             "--config.training.method=square", "--config.model.variance_output=share", *SMALL)
    assert code == 1 and "--config.training.method" in err and "--config.model.variance_output" in err, err
