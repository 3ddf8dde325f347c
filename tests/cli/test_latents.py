"""Runs of autoencoders and of their latents by the command line: every mode, and what is refused."""

import json

import numpy as np
import pytest
import torch

from scorefield.cli.main import main
from scorefield.models import Autoencoder
from tests.helpers import ROOT, made_once

BRIEF = ["--config.data.dataset=digits", "--config.model.width=8", "--config.model.num_blocks=1",
         "--config.training.steps=2", "--config.training.batch_size=8", "--config.training.memory_format=contiguous",
         "--config.training.precision=fp32", "--config.training.eval_every=0", "--device", "cpu"]
LATENTS = [*BRIEF, "--config.model.attention_resolutions=()", "--config.model.classes=10",
           "--config.training.label_dropout=0.2", "--config.training.sample_every=2", "--config.training.sample_steps=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCOREFIELD_DATA", str(folder / "cache"))
            train = ["--mode", "train", "--config", str(ROOT / "configs")]
            main([*train[:3], f"{train[3]}/fashion_autoencoder.py", "--workdir", str(folder / "ae"), *BRIEF,
                  "--config.model.multipliers=(1,2)", "--config.model.latent_channels=2"])
            main([*train[:3], f"{train[3]}/fashion_latents.py", "--workdir", str(folder / "run"), *LATENTS,
                  f"--config.data.autoencoder={folder / 'ae'}"])

    return made_once(tmp_path_factory, "latents", make)


def call(run, mode, *more):
    main(["--workdir", str(run), "--mode", mode, "--device", "cpu", *more])


def refused(run, mode, *more):
    with pytest.raises(ValueError) as error:
        call(run, mode, *more)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.machine
def test_samples_are_decoded_once_to_levels(place, monkeypatch):
    calls = []
    decode = Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, z: calls.append(len(z)) or decode(self, z))
    call(place / "run", "sample", "--num_samples", "6", "--batch_size", "4", "--steps", "3", "--label", "all", "--guidance",
         "2")
    file, = (place / "run" / "samples").glob("*.npz")
    x = np.load(file)["x"]
    assert x.shape == (6, 1, 8, 8) and x.dtype == np.uint8 and x.max() <= 16 and calls == [4, 2]


@pytest.mark.machine
def test_bits_are_split_into_the_parts_of_the_bound(place):
    call(place / "run", "likelihood", "--method", "exponential", "--num_images", "8", "--draws", "2")
    file, = (place / "run" / "likelihood").glob("*.json")
    found = json.loads(file.read_text())
    assert set(found["terms"]) == {"density", "reconstruction", "posterior", "offset"}
    assert found["bits_per_dim"] == pytest.approx(sum(found["terms"].values()), abs=1e-9)
    assert found["levels"] == 17 and found["standard_error"] > 0


@pytest.mark.machine
@pytest.mark.slow
@pytest.mark.parametrize("more", [
    ("evaluate", "--num_samples", "150", "--bootstrap", "0", "--steps", "3", "--likelihood"),
    ("compare", "--samplers", "auto,ddim", "--budgets", "3", "--num_samples", "150"), ("tune", "--steps", "4"),
    ("explore", "--what", "progressive,inversion,forward,slerp", "--steps", "4"),
    ("fit_variance", "--num_examples", "16", "--num_times", "3"),
])
def test_other_modes_work_on_latents(place, more):
    call(place / "run", *more)


@pytest.mark.machine
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--sampler", "auto", "--steps", "3", "--method", "dps")])
def test_measurements_of_pictures_are_restored(place, more):
    call(place / "run", "restore", "--operator", "mask:half=right", "--measurement", "data", "--noise", "0.05",
         "--num_images", "2", "--samples", "2", *(more or ("--particles", "4", "--steps", "3")))
    found = [np.load(file) for file in (place / "run" / "restore").glob("*.npz")]
    assert all(of["x"].shape == (2, 2, 1, 8, 8) and of["x"].dtype == np.uint8 for of in found)


@pytest.mark.parametrize(("more", "match"), [
    (("sample", "--threshold", "static"), "latents have no range to keep to"),
    (("restore", "--measurement", "data", "--operator", "identity", "--threshold", "static"), "latents have no range"),
    (("explore", "--what", "rate_distortion"), "the chain of a model of latents has their rate alone"),
    (("sample", "--config.data.autoencoder=nowhere/x.pt"), "no autoencoder: nowhere/x.pt does not exist"),
    (("sample", "--config.data.autoencoder="), "has learned the latents of an autoencoder; name that"),
])
@pytest.mark.machine
def test_what_makes_no_sense_of_latents_is_refused(place, more, match):
    assert match in refused(place / "run", *more)


@pytest.mark.parametrize("more", [("sample",), ("likelihood",), ("evaluate",), ("compare",)])
@pytest.mark.machine
def test_an_autoencoder_draws_no_samples(place, more):
    assert "this is an autoencoder, which has no score" in refused(place / "ae", *more)


@pytest.mark.machine
def test_the_run_of_an_autoencoder_becomes_a_folder_of_diffusers(place, tmp_path):
    call(place / "ae", "convert", "--output", str(tmp_path / "vae"), "--format", "diffusers")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert model.encode(torch.zeros(1, 1, 8, 8)).latent_dist.mean.shape == (1, 2, 4, 4)
