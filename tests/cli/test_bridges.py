"""Runs of bridges: they go on to the bit, are sampled and scored in both directions, and refuse the rest in one line."""

import json

import numpy as np
import pytest
import torch

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import newest_sound
from scorefield.cli.main import main
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation import evaluate
from scorefield.evaluation.starts import Starts
from scorefield.numerics.errors import ArgumentError
from tests.helpers import ROOT

TINY = ["--config.model.width=8", "--config.model.layers=1", "--config.training.steps=6", "--config.training.batch_size=8",
        "--config.training.log_every=2", "--config.training.eval_every=3", "--config.training.sample_every=0",
        "--config.training.checkpoint_every=3", "--config.training.paths=16", "--config.training.sim_steps=3",
        "--config.training.refresh=2", "--config.training.decay=constant", "--config.data.source=swiss_roll:size=64",
        "--config.data.target=gaussians8:size=48"]
DSBM = ["--config.training.first_updates=2"]
DSB = ["--config.training.objective=dsb", "--config.training.turn=2"]

pytestmark = pytest.mark.one_machine


def train(run, *more):
    main(["--config", str(ROOT / "configs/bridge_swiss_to_gaussians.py"), "--mode", "train", "--workdir", str(run), *TINY,
          *more])
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("bridge") / "run", *DSBM, "--config.training.sample_every=6")


@pytest.mark.slow
@pytest.mark.costly
@pytest.mark.parametrize("more", [DSBM, DSB], ids=["dsbm", "dsb"])
def test_a_resumed_bridge_is_that_of_a_run_that_never_stopped(more, tmp_path):
    """What was simulated is a part of the run's state: step 3 lies between two simulations."""
    more = [*more, "--config.training.refresh=10"] if more is DSBM else more
    train(tmp_path / "parts", *more, "--config.training.steps=4" if more[0] == DSB[0] else "--config.training.steps=3")
    whole, parts = (newest_sound(train(tmp_path / name, *more)).state for name in ("whole", "parts"))
    for section in ("network", "ema", "objective"):
        assert whole[section].keys() == parts[section].keys() and whole[section]
        assert all(torch.equal(tensor, parts[section][name]) for name, tensor in whole[section].items()), section


@pytest.mark.slow
@pytest.mark.costly
def test_dsb_leaves_the_network_of_the_other_turn_as_it_is(tmp_path):
    """Turns of 2 of 5 updates: toward the source at 1, 2 and 5, toward the target at 3 and 4."""
    states = {}
    for steps in (4, 5):
        train(tmp_path / "run", *DSB, f"--config.training.steps={steps}")
        states[steps] = {name: tensor.clone() for name, tensor in newest_sound(tmp_path / "run").state["network"].items()}
    same = {name.partition(".")[0] for name in states[4] if torch.equal(states[4][name], states[5][name])}
    other = {name.partition(".")[0] for name in states[4] if not torch.equal(states[4][name], states[5][name])}
    assert same >= {"to_target"} and other == {"to_source"}


@pytest.mark.parametrize(("direction", "start"), [("forward", "source"), ("backward", "target")])
def test_samples_begin_with_held_out_examples_of_the_other_end_one_by_one(run, direction, start):
    main(["--workdir", str(run), "--mode", "sample", "--direction", direction, "--num_samples", "5", "--steps", "4"])
    stem = run / "samples" / f"bridge_steps4_{direction}"
    record, x = json.loads(stem.with_suffix(".json").read_text()), np.load(stem.with_suffix(".npz"))["x"]
    assert record["direction"] == direction and record["sampler"] == "bridge" and record["nfe"] == 7
    pair = load_dataset({"dataset": "pair", "source": "swiss_roll:size=64", "target": "gaussians8:size=48"})
    ends, codec = {"source": pair, "target": pair.target}, make_codec(None)
    goal = "target" if start == "source" else "source"
    model = load_denoiser(run).toward(goal, Starts(ends[start].test, codec, start))
    first = model.sde.prior.sample((2,), [(0, i) for i in range(5)])
    assert torch.equal(first, ends[start].test[torch.arange(5)][0])
    from scorefield.samplers import make_sampler, sample_seeds

    again = make_sampler("bridge", steps=4)(model, first, sample_seeds(0, 0, 5)).x
    assert torch.allclose(again, torch.from_numpy(x), atol=1e-5)


def test_the_default_direction_is_forward_and_figures_are_against_its_goal(run, capsys):
    main(["--workdir", str(run), "--mode", "sample", "--num_samples", "3", "--steps", "2"])
    assert (run / "samples/bridge_steps2_forward.npz").exists()
    found = {}
    for direction, name in (("forward", "gaussians8"), ("backward", "swiss_roll")):
        main(["--workdir", str(run), "--mode", "evaluate", "--direction", direction, "--num_samples", "32", "--steps", "2",
              "--metrics", "energy", "--bootstrap", "0"])
        path = run / f"evaluation/bridge_steps2_{direction}_num_samples32_bootstrap0.json"
        record = json.loads(path.read_text())
        assert record["data"]["name"] == name and record["direction"] == direction
        found[direction] = record["results"]["6"]["metrics"]["energy"]["value"]
    pair = load_dataset({"dataset": "pair", "source": "swiss_roll:size=64", "target": "gaussians8:size=48"})
    from scorefield.samplers import make_sampler

    for goal, direction in (("target", "forward"), ("source", "backward")):      # the same in Python
        quality = evaluate(load_denoiser(run).toward(goal), pair, n=32, sampler=make_sampler("bridge", steps=2),
                           metrics=["energy"], bootstrap=0, progress=False)
        assert quality.figures["energy"].value == pytest.approx(found[direction], rel=1e-3)


def test_the_flow_scores_the_end_whose_start_has_a_known_density(run):
    main(["--workdir", str(run), "--mode", "likelihood", "--num_images", "2", "--rtol", "1e-2", "--atol", "1e-2", "--t_min",
          "0.01"])
    path = next((run / "likelihood").glob("summary_backward*.json"))
    assert json.loads(path.read_text())["direction"] == "backward"
    with pytest.raises(ArgumentError, match="that of data set 'swiss_roll' is not known, only those of gaussians8"):
        main(["--workdir", str(run), "--mode", "likelihood", "--direction", "forward"])


@pytest.mark.parametrize(("words", "match"), [
    (["--mode", "compare"], "mode compare takes no bridge"),
    (["--mode", "sample", "--sampler", "auto"], "only its own sampler"),
    (["--mode", "sample", "--guidance", "2"], "guid"),
    (["--mode", "sample", "--label", "2"], "the model takes no label"),
    (["--mode", "likelihood", "--estimator", "elbo"], "and no elbo; choose estimator ode"),
    (["--mode", "likelihood", "--method", "exponential"], "choose an adaptive method"),
    (["--mode", "evaluate", "--likelihood", "--num_samples", "16"], "bits/dim of a bridge come from mode likelihood"),
])
def test_what_a_bridge_cannot_do_is_refused_in_one_line(run, words, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        main(["--workdir", str(run), *words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("config", "more", "match"), [
    ("vp_swiss_roll", ["--config.training.objective=dsbm"], "model.network=bridge_mlp, bridge_unet or bridge_ncsnpp"),
    ("bridge_swiss_to_gaussians", ["--config.training.objective=score_matching"], "trained by objective dsbm or dsb"),
    ("bridge_swiss_to_gaussians", ["--config.data.dataset=swiss_roll"], "is one data set; a bridge"),
    ("vp_swiss_roll", ["--config.data.dataset=pair"], "is a pair; a bridge"),
    ("bridge_swiss_to_gaussians", ["--config.sde.name=ddpm"], "must be a fixed SDE in continuous time"),
    ("bridge_swiss_to_gaussians", ["--config.model.classes=3"], "take x and time alone, and these take label"),
    ("bridge_swiss_to_gaussians", ["--config.data.target=digits"], "points with points"),
    ("bridge_digits_to_fashion",
     ["--config.data.target=digits", "--config.data.side=None", "--config.data.source=gaussians8"],
     "pictures with pictures"),
    ("bridge_swiss_to_gaussians", ["--config.training.objective=dsb", "--config.training.steps=1500"], "at least 2000"),
])
def test_what_makes_no_bridge_is_refused_before_anything_is_written(config, more, match, tmp_path):
    with pytest.raises(ArgumentError, match=match) as caught:
        main(["--config", str(ROOT / f"configs/{config}.py"), "--mode", "train", "--workdir", str(tmp_path / "run"), *more])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/config.json").exists()


def test_another_model_has_no_direction(tmp_path):
    main(["--config", str(ROOT / "configs/vp_swiss_roll.py"), "--mode", "train", "--workdir", str(tmp_path / "run"),
          "--config.training.steps=1", "--config.training.eval_every=0", "--config.training.sample_every=0"])
    with pytest.raises(ArgumentError, match="the run is no bridge"):
        main(["--workdir", str(tmp_path / "run"), "--mode", "sample", "--direction", "forward"])
