"""The command line of models that take low_res: its sources, a cascade of two runs, likelihoods and figures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import read_config
from scorefield.cli.low_res import GOLDEN
from scorefield.data import codec_of, load_dataset
from scorefield.data.degradations import LowRes
from scorefield.evaluation.draw import draw_batch
from scorefield.samplers import make_sampler
from tests.helpers import made_once, train_briefly

pytestmark = pytest.mark.machine
# Steps so long that a few of them make the samples depend on low_res.
FAST = ("--config.training.learning_rate=0.03", "--config.training.warmup=1", "--config.training.steps=8",
        "--config.training.ema_decay=0.1")
RULE = LowRes("downsample:factor=2", (1, 8, 8), 17, noise=0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    def make(folder):
        train_briefly("digits_cascade_first", folder / "first", "--config.model.multipliers=(1,)", *FAST)
        train_briefly("digits_cascade", folder / "second", *FAST)

    return made_once(tmp_path_factory, "cascade", make)


def sample(command, run, *words, n=6):
    code, out, err = command("--workdir", run, "--mode", "sample", "--steps", 3, "--num_samples", n, *words)
    assert code == 0, err
    stem = out.rpartition("wrote ")[2].partition("{")[0]
    with np.load(f"{stem}.npz") as file:
        return torch.from_numpy(file["x"]), file["nfe"], json.loads(open(f"{stem}.json").read())


def drawn(run, condition, n=6):
    """What the second stage draws given these conditions, without the command line."""
    config = read_config(run / "second")
    codec = codec_of(config["data"], config)
    model = load_denoiser(run / "second").given(**condition)
    return codec.decode(draw_batch(model, make_sampler("auto", steps=3), (1, 8, 8), range(n), 0).x)


@pytest.mark.costly
def test_data_gives_sample_i_the_low_res_of_held_out_example_i(command, runs):
    x, nfe, record = sample(command, runs / "second", "--low_res", "data")
    test = load_dataset(read_config(runs / "second")["data"]).test
    low_res = test[torch.arange(6)][1]["low_res"]
    assert torch.equal(x, drawn(runs, {"low_res": low_res}))
    assert not torch.equal(x, drawn(runs, {"low_res": -low_res}))      # the samples depend on it
    assert (nfe == 3).all() and record["low_res"] == "data"


def test_a_run_gives_its_own_samples_and_their_evaluations_count(command, runs):
    x, nfe, record = sample(command, runs / "second", "--low_res", runs / "first")
    config = read_config(runs / "first")
    codec, model = codec_of(config["data"], config), load_denoiser(runs / "first")
    small = codec.decode(draw_batch(model, make_sampler("auto", steps=3), (1, 4, 4), range(6), GOLDEN).x)
    assert torch.equal(x, drawn(runs, {"low_res": RULE.placed(small / 16)}))
    assert (nfe == 6).all() and record["low_res"] == str(runs / "first")


def test_noise_is_added_and_told_to_the_model(command, runs):
    clean, noisy = (sample(command, runs / "second", "--low_res", "data", *words)[0]
                    for words in ((), ("--low_res_noise", 0.25)))
    assert not torch.equal(clean, noisy)
    again = sample(command, runs / "second", "--low_res", "data", "--low_res_noise", 0.25, "--batch_size", 4)[0]
    assert torch.equal(again, noisy)


def test_pictures_of_either_size_and_arrays_are_taken(command, runs, tmp_path):
    whole = (torch.arange(64, dtype=torch.uint8) % 17).reshape(1, 1, 8, 8)
    low_res = RULE.of(whole, torch.zeros(1, 0))
    expected = drawn(runs, {"low_res": low_res})
    np.savez(tmp_path / "whole.npz", x=whole.numpy())
    np.save(tmp_path / "small.npy", low_res.numpy())
    for name in ("whole.npz", "small.npy"):
        assert torch.equal(sample(command, runs / "second", "--low_res", tmp_path / name)[0], expected), name
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    Image.fromarray(grey).save(tmp_path / "small.png")
    found = sample(command, runs / "second", "--low_res", tmp_path / "small.png")[0]
    given = drawn(runs, {"low_res": torch.from_numpy(grey / 127.5 - 1).float()[None, None]})
    assert torch.equal(found, given)


def test_each_example_is_scored_given_its_own_low_res(command, runs):
    code, out, err = command("--workdir", runs / "second", "--mode", "likelihood", "--estimator", "elbo", "--num_images", 4)
    assert code == 0 and "4 test examples" in out, err


def test_samples_given_held_out_low_res_are_evaluated(command, runs):
    code, out, err = command("--workdir", runs / "second", "--mode", "evaluate", "--steps", 2, "--num_samples", 60,
                             "--metrics", "sliced_wasserstein", "--bootstrap", 0)
    assert code == 0 and "sliced_wasserstein" in out, err


def test_what_does_not_fit_is_refused_in_one_line(command, runs, tmp_path, trained_digits):
    np.save(tmp_path / "odd.npy", np.zeros((2, 1, 5, 5), np.uint8))
    np.save(tmp_path / "bright.npy", np.full((2, 1, 4, 4), 99))
    (tmp_path / "notes.txt").write_text("no picture")
    for words, says in (
            ((), "give data, a picture, a folder, an array, or a run that draws it (--low_res)"),
            (("--low_res", tmp_path / "none.png"), "does not exist"),
            (("--low_res", tmp_path / "odd.npy"), "4x4 with 1 channel"),
            (("--low_res", tmp_path / "bright.npy"), "levels are 0 .. 16"),
            (("--low_res", tmp_path / "notes.txt"), "neither a picture of a known format"),
            (("--low_res", runs / "second"), "draws pictures of shape (1, 8, 8), and low_res has (1, 4, 4)"),
            (("--low_res", "data", "--low_res_noise", 0.5), "must lie in [0, 0.3]")):
        code, _, err = command("--workdir", runs / "second", "--mode", "sample", "--steps", 2, "--num_samples", 2, *words)
        assert code == 1 and says in err and err.count("\n") == 1, err
    code, _, err = command("--workdir", trained_digits, "--mode", "sample", "--low_res", "data")
    assert code == 1 and "the model takes no low_res" in err
    code, _, err = command("--workdir", runs / "second", "--mode", "likelihood", "--low_res", "data")
    assert code == 1 and "given its own low_res" in err
