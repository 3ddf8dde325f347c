"""Runs of students: they begin with their teacher, go on to the bit, have their own sampler, and refuse the rest."""

import json

import pytest
import torch

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import newest_sound
from scorefield.cli.main import main
from scorefield.guidance import classifier_free
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from tests.helpers import ROOT

TINY = ["--config.model.width=8", "--config.model.layers=1", "--config.training.steps=4", "--config.training.batch_size=8",
        "--config.training.log_every=2", "--config.training.eval_every=2", "--config.training.sample_every=4",
        "--config.training.checkpoint_every=2", "--config.training.sample_steps=2"]

pytestmark = pytest.mark.one_machine


def train(config, run, *more):
    main(["--config", str(ROOT / f"configs/{config}.py"), "--mode", "train", "--workdir", str(run), *TINY, *more])
    return run


def taught(config, run, teacher, *more):
    return train(config, run, f"--config.training.teacher={teacher}", *more)


def weights(run):
    state = newest_sound(run).state
    return {**state["network"], **{f"ema.{name}": tensor for name, tensor in state["ema"].items()}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train("digits_teacher", tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.costly
@pytest.mark.parametrize("config", ["digits_progressive", "digits_scm"])
def test_a_resumed_student_is_that_of_a_run_that_never_stopped(config, teacher, tmp_path):
    """Its count of updates and its teacher's digest are a part of the run's state."""
    more = ["--config.training.decay=constant"]
    whole = weights(taught(config, tmp_path / "whole", teacher, *more))
    taught(config, tmp_path / "parts", teacher, *more, "--config.training.steps=2")
    parts = newest_sound(taught(config, tmp_path / "parts", teacher, *more))
    assert int(parts.state["objective"]["updates"]) == 4
    assert all(torch.equal(tensor, weights(tmp_path / "parts")[name]) for name, tensor in whole.items())


def test_a_student_begins_with_the_weights_of_its_teacher_or_at_random(teacher, tmp_path):
    there = load_denoiser(teacher).network.state_dict()
    for word, same in (("teacher", True), ("random", False), (str(teacher), True)):
        run = taught("digits_progressive", tmp_path / f"run_{same}_{len(word)}", teacher,
                     f"--config.training.initial={word}", "--config.training.learning_rate=1e-12")
        mine = load_denoiser(run, ema=False).network.state_dict()
        assert all(torch.allclose(mine[name], there[name], atol=1e-9) for name in there) is same


def test_a_student_goes_on_only_with_the_teacher_that_it_has_learned_from(teacher, tmp_path):
    run = taught("digits_progressive", tmp_path / "run", teacher, "--config.training.steps=2")
    other = train("digits_teacher", tmp_path / "other", "--config.training.seed=1")
    with pytest.raises(ArgumentError, match="has learned from another teacher than .*other is now"):
        taught("digits_progressive", run, other)
    taught("digits_progressive", run, teacher)


def test_a_student_of_a_student_halves_its_steps_and_no_other_number_is_taken(teacher, tmp_path, capsys):
    four = taught("digits_progressive", tmp_path / "four", teacher, "--config.training.student_steps=4")
    two = taught("digits_progressive", tmp_path / "two", four, "--config.training.student_steps=2")
    with pytest.raises(ArgumentError, match="is a student of 4 steps of DDIM .* and a student of 3 steps needs one of 6"):
        taught("digits_progressive", tmp_path / "three", four, "--config.training.student_steps=3")
    sample = ["--workdir", str(two), "--mode", "sample", "--num_samples", "3", "--label", "1"]
    main(sample)
    record = json.loads((two / "samples/ddim_steps2_grid_uniform_label_1.json").read_text())
    assert record["sampler"] == "ddim" and record["nfe"] == 2
    for more in (["--steps", "3"], ["--sampler", "auto"], ["--sampler", "ddim", "--steps", "8"]):
        with pytest.raises(ArgumentError, match="the model is a student of 2 steps of DDIM"):
            main([*sample, *more])
    with pytest.raises(ArgumentError, match="guidance needs a score model"):
        main([*sample, "--guidance", "2"])
    with pytest.raises(ArgumentError, match="a likelihood needs a score model, and this is a student of 2 steps"):
        main(["--workdir", str(two), "--mode", "likelihood", "--num_images", "2"])


def test_a_guided_student_costs_one_evaluation_a_step_and_takes_any_scale_of_its_range(teacher, tmp_path):
    run = taught("digits_guided", tmp_path / "run", teacher, "--config.training.steps=2",
                 "--config.training.learning_rate=1e-12")
    sample = ["--workdir", str(run), "--mode", "sample", "--num_samples", "3", "--steps", "4", "--label", "3"]
    main([*sample, "--guidance", "2"])
    main(sample)
    record = json.loads((run / "samples/auto_steps4_label_3_guidance_2.json").read_text())
    assert record["nfe"] == 4 and (run / "samples/auto_steps4_label_3.npz").exists()
    with pytest.raises(ArgumentError, match="distilled for guidance from 0 to 4, got 9"):
        main([*sample, "--guidance", "9"])
    with pytest.raises(ArgumentError, match="leave out interval"):
        main([*sample, "--guidance", "2", "--guidance_interval", "0.1,0.5"])
    fresh, x = load_denoiser(run), prior_sample(load_denoiser(run).sde, (1, 8, 8), range(2))      # as its teacher, at first
    assert torch.allclose(fresh.given(label=3, guidance=2.0).x0(x, 0.5), load_denoiser(teacher).given(label=3).x0(x, 0.5),
                          atol=1e-5)
    guided = taught("digits_progressive", tmp_path / "both", run, "--config.model.guidance=0,4")
    main(["--workdir", str(guided), "--mode", "sample", "--num_samples", "2", "--label", "3", "--guidance", "1.5"])
    assert json.loads((guided / "samples/ddim_steps32_grid_uniform_label_3_guidance_1.5.json").read_text())["nfe"] == 32
    with pytest.raises(ArgumentError, match="the student must; set model.guidance"):
        taught("digits_progressive", tmp_path / "none", run)
    with pytest.raises(ArgumentError, match="cannot be guided afterwards|needs a score model"):
        classifier_free(load_denoiser(guided), 2.0, label=3)


def test_a_consistency_model_takes_any_number_of_its_own_steps(teacher, tmp_path):
    run = taught("digits_consistency", tmp_path / "run", teacher, "--config.training.intervals=4")
    for more, name, nfe in (([], "consistency_label_2", 2), (["--steps", "1"], "consistency_steps1_label_2", 1)):
        main(["--workdir", str(run), "--mode", "sample", "--num_samples", "3", "--label", "2", *more])
        assert json.loads((run / f"samples/{name}.json").read_text())["nfe"] == nfe
    model = load_denoiser(run).given(label=2)
    x_T = prior_sample(model.sde, (1, 8, 8), range(3))
    assert make_sampler("consistency", steps=3)(model, x_T, range(3)).nfe == 3
    with pytest.raises(ArgumentError, match="is a consistency model, and only its own sampler may use it"):
        make_sampler("auto", steps=5)(model, x_T)


def test_figures_and_previews_of_a_student_in_training_are_those_of_its_own_sampler(teacher, tmp_path):
    run = taught("digits_consistency", tmp_path / "run", teacher, "--config.training.metrics_every=4",
                 "--config.training.metrics=sliced_wasserstein", "--config.training.metrics_samples=20")
    assert "sliced_wasserstein" in (run / "stats.jsonl").read_text()


def test_teachers_that_are_none_or_of_other_data_are_refused_in_one_line(teacher, tmp_path):
    with pytest.raises(ArgumentError, match="a student needs a teacher"):
        taught("digits_progressive", tmp_path / "run", "")
    with pytest.raises(ArgumentError, match="of data of another kind|data of another kind"):
        taught("digits_progressive", tmp_path / "run", teacher, "--config.data.low=0.0")
    with pytest.raises(ArgumentError, match="has sde|has the SDE|must be the same"):
        taught("digits_progressive", tmp_path / "run", teacher, "--config.sde.name=vp")
    with pytest.raises(ArgumentError, match="or begin with training.initial=random"):
        taught("digits_progressive", tmp_path / "run", teacher, "--config.model.width=12")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_reflown_model_learns_from_a_run_and_is_drawn_without_noise(tmp_path):
    first = train("flow_swiss_roll", tmp_path / "first", "--config.training.coupling=independent")
    second = taught("flow_swiss_roll", tmp_path / "second", first, "--config.training.coupling=reflow",
                    "--config.training.flow_steps=2")
    for run in (first, second):
        main(["--workdir", str(run), "--mode", "sample", "--sampler", "euler", "--steps", "2", "--num_samples", "3"])
    main(["--workdir", str(first), "--mode", "sample", "--sampler", "euler_maruyama", "--steps", "2", "--num_samples", "3"])
    with pytest.raises(ArgumentError, match="flow of coupled pairs, which has no score: choose a deterministic sampler"):
        main(["--workdir", str(second), "--mode", "sample", "--sampler", "euler_maruyama", "--steps", "2"])
    with pytest.raises(ArgumentError, match="a bound needs a score model"):
        main(["--workdir", str(second), "--mode", "likelihood", "--estimator", "elbo", "--num_images", "2"])
