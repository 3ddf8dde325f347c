"""Training in latents: encoded data are those of the codec, kept once, and only for their autoencoder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from scorefield.checkpoints import read_checkpoint
from scorefield.checkpoints.formats import diffusers, scorefield
from scorefield.checkpoints.latents import autoencoder_at, codec_of, latents_of, standard_noise
from scorefield.configs.loading import load_config
from scorefield.data import from_arrays
from scorefield.data.degradations import pictures_as_said
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE
from scorefield.training import Batches, ScoreMatching, train
from scorefield.training.latents import codec_of_encoded, encoded, measured
from tests.helpers import ROOT, made_once

BRIEF = {"training.steps": 2, "training.batch_size": 8, "training.eval_every": 2, "training.checkpoint_every": 1,
         "training.log_every": 1, "training.memory_format": "contiguous", "training.sample_every": 0,
         "training.precision": "fp32"}
AUTOENCODER = {**BRIEF, "model.width": 8, "model.multipliers": (1, 2), "model.latent_channels": 2, "model.discriminator": 8}
LATENTS = {**BRIEF, "model.width": 8, "model.num_blocks": 1, "model.attention_resolutions": (), "training.batch_size": 8}


def pictures(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, 8)
    x = torch.rand(n, 1, 1, 1, generator=generator) * ramp + torch.rand(n, 1, 1, 1, generator=generator) * ramp[:, None]
    return from_arrays((127 * x).round().to(torch.uint8), y_train=torch.arange(n) % 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    def make(folder):
        train(load_config(str(ROOT / "configs/fashion_autoencoder.py")), pictures(), folder / "ae", progress=False,
              device="cpu", overrides=AUTOENCODER)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCOREFIELD_DATA", str(folder / "cache"))
            train_latents(folder, folder / "run")

    return made_once(tmp_path_factory, "autoencoder", make)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "cache"))


def train_latents(place, run, dataset=None, **more):
    return train(load_config(str(ROOT / "configs/fashion_latents.py")), dataset or pictures(), run, progress=False,
                 device="cpu", overrides={**LATENTS, "data.autoencoder": str(place / "ae"), **more})


def codec_in(run):
    stored = json.loads((run / "config.json").read_text())
    return codec_of(stored["data"], stored)


def test_a_run_of_an_autoencoder_resumes_to_the_bit(place, tmp_path):
    config = load_config(str(ROOT / "configs/fashion_autoencoder.py"))
    for steps in (1, 2):
        train(config, pictures(), tmp_path / "ae", progress=False, device="cpu",
              overrides={**AUTOENCODER, "training.steps": steps, "training.decay": "constant"})
    train(config, pictures(), tmp_path / "whole", progress=False, device="cpu",
          overrides={**AUTOENCODER, "training.decay": "constant"})
    halves, whole = (read_checkpoint(tmp_path / name) for name in ("ae", "whole"))
    assert halves.further["objective"] == {"updates": 2}
    for name, weight in whole.raw.items():
        assert torch.equal(weight, halves.raw[name]), name


def test_a_run_of_latents_trains_on_what_the_codec_makes_of_its_data(place, tmp_path):
    run, data = place / "run", pictures()
    codec = codec_in(run)
    objective = ScoreMatching(VPSDE())
    seen, own = encoded(codec, data), codec_of_encoded(codec)
    batches = Batches(seen, own, objective, 8, 0, torch.device("cpu"))
    batch, _ = batches(3)
    moments = codec.moments(data.train[batches.indices(3)][0])
    mean, log_variance = moments.chunk(2, 1)
    noise = (batch.x * torch.tensor(codec.std)[:, None, None] + torch.tensor(codec.mean)[:, None, None] - mean)
    noise = noise / (log_variance / 2).exp()
    assert torch.equal(batch.condition["label"], data.train[batches.indices(3)][1]["label"])
    assert abs(float(noise.mean())) < 0.15 and float(noise.std()) == pytest.approx(1, abs=0.15)      # 256 numbers
    assert torch.equal(batches(3)[0].x, batch.x) and not torch.equal(batches(4)[0].x, batch.x)


def test_latents_are_standardised_over_the_training_examples(place, tmp_path):
    run, data = place / "run", pictures()
    codec = codec_in(run)
    u = torch.rand(400, *codec.latent, generator=torch.Generator().manual_seed(0))
    x = codec.encode(data.train[torch.arange(36)][0].repeat(12, 1, 1, 1)[:400], u).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(2).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(2).double(), atol=0.05, rtol=0)


def test_the_decoder_has_the_deviation_under_which_the_data_are_likeliest(place):
    found, data = autoencoder_at(str(place / "ae")), pictures()
    levels = data.train[torch.arange(36)][0]
    moments = latents_of(found, found.stored()).moments(levels).numpy()
    codec = latents_of(found, measured(found, moments, data.train))
    x_hat = codec.pictures(codec.encode(levels, standard_noise((36, *codec.latent))))
    best, *others = (float(codec.log_prob(levels, x_hat, codec.decoder_std * f).sum()) for f in (1, 0.97, 1.03))
    assert best > max(others)


def test_a_scaling_of_the_autoencoder_is_kept(place):
    found = autoencoder_at(str(place / "ae"))
    found.network.scaling, found.network.shift = 0.5, 0.25
    stored = measured(found, np.zeros((36, 4, 4, 4), np.float32), pictures().train)
    assert stored["mean"] == [0.25, 0.25] and stored["std"] == [2.0, 2.0]


def test_data_are_encoded_once(place, monkeypatch):
    codec = codec_in(place / "run")
    encoded(codec, pictures())
    monkeypatch.setattr("scorefield.training.latents._encode", lambda *_: pytest.fail("encoded again"))
    encoded(codec, pictures())


def test_mirrored_data_are_latents_of_mirrored_pictures(place, tmp_path):
    data = dataclasses.replace(pictures(), flip=True)
    run = place / "run"
    codec = codec_in(run)
    train_split, levels = encoded(codec, data).train, data.train[torch.arange(36)][0]
    assert len(train_split) == 72 and not encoded(codec, data).flip
    for begin, of in ((0, levels), (36, levels.flip(-1))):
        torch.testing.assert_close(train_split[torch.arange(begin, begin + 36)][0], codec.moments(of))
    assert torch.equal(train_split[torch.tensor([37])][1]["label"], data.train[torch.tensor([1])][1]["label"])


def test_low_res_is_made_of_the_pictures_in_each_step(place, tmp_path):
    plain = pictures()
    codec, data = codec_in(place / "run"), pictures_as_said(plain, {"degradation": "downsample:factor=2"})
    batches = Batches(encoded(codec, data), codec_of_encoded(codec), ScoreMatching(VPSDE()), 8, 0, torch.device("cpu"))
    batch, _ = batches(0)
    numbers = batches.indices(0)
    expected = data.low_res.of_examples(plain.train[numbers][0], numbers.tolist())
    torch.testing.assert_close(batch.condition["low_res"], expected)
    assert set(batch.condition) == {"label", "low_res"}


def test_another_autoencoder_is_refused(place, tmp_path):
    run, other, checkpoint = place / "run", tmp_path / "other.safetensors", read_checkpoint(place / "ae")
    checkpoint.averaged["decoder.conv_out.bias"] += 1e-3
    scorefield.write(checkpoint, other)
    with pytest.raises(ArgumentError, match=r"is another autoencoder \(\w+\) than the one whose latents this run has"):
        train_latents(place, run, **{"data.autoencoder": str(other), "training.steps": 3})
    stored = json.loads((run / "config.json").read_text())
    with pytest.raises(ArgumentError, match="is another autoencoder"):
        codec_of({**stored["data"], "autoencoder": str(other)}, stored)
    with pytest.raises(ArgumentError, match="has learned the latents of an autoencoder; name that"):
        codec_of({**stored["data"], "autoencoder": ""}, stored)
    with pytest.raises(ArgumentError, match="this one has learned none"):
        codec_of(stored["data"], {"levels": 256})


@pytest.mark.parametrize(("fields", "match"), [
    ({"data.dequantize": True}, "dequantize is False there and True here"),
    ({"data.low": 0.0}, "low is -1.0 there and 0.0 here"), ({"data.autoencoder": "nowhere/x.pt"}, "no autoencoder: "),
])
def test_an_autoencoder_of_other_data_is_refused(place, tmp_path, fields, match):
    with pytest.raises(ArgumentError, match=match):
        train_latents(place, tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


def test_pictures_of_another_size_are_refused(place, tmp_path):
    small = from_arrays(torch.zeros(20, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match=r"shape is \(1, 8, 8\) there and \(1, 4, 4\) here"):
        train_latents(place, tmp_path / "run", small)


def test_a_score_model_is_no_autoencoder(place):
    with pytest.raises(ArgumentError, match="is no autoencoder, but a unet; train one"):
        autoencoder_at(str(place / "run"))


def test_a_folder_of_diffusers_takes_pictures_of_any_size(place, tmp_path):
    diffusers.write(read_checkpoint(place / "ae"), tmp_path / "vae")
    assert autoencoder_at(str(tmp_path / "vae"), shape=(1, 16, 12)).network.latent == (2, 8, 6)


@pytest.mark.slow
def test_a_run_of_latents_resumes_to_the_bit_wherever_its_autoencoder_lies(place, tmp_path):
    for steps in (1, 2):
        train_latents(place, tmp_path / "halves", **{"training.steps": steps})
    shutil.copytree(place / "ae", tmp_path / "moved")
    for run, more in (("halves", {"data.autoencoder": str(tmp_path / "moved")}), ("whole", {})):
        train_latents(place, tmp_path / run, **{"training.steps": 3, **more})
    halves, whole = (read_checkpoint(tmp_path / name).raw for name in ("halves", "whole"))
    assert all(torch.equal(halves[name], whole[name]) for name in whole)
