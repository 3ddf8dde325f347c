"""Training on pairs of a picture and its low_res."""

import pytest
import torch

from scorefield.configs import vp_digits
from scorefield.data import codec_of, from_arrays, load_dataset, quantize
from scorefield.data.degradations import LowRes, pictures_as_said
from scorefield.models import build_denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.training import train
from scorefield.training.batches import Batches, held_out
from scorefield.training.labels import require_fit
from scorefield.training.objectives import build_objective

CPU = torch.device("cpu")
BATCH = 64


def config(noise=0.3, flip=False, degradation="downsample:factor=2", **model):
    made = vp_digits.get_config()
    made.data.flip, made.data.degradation, made.data.low_res_noise = flip, degradation, noise
    made.model.width, made.model.low_res, made.model.low_res_noise = 8, 1, noise > 0
    for name, value in model.items():
        made.model[name] = value
    return made


def parts(made, world=None):
    dataset = load_dataset(made.data)
    codec = codec_of(made.data, dataset)
    torch.manual_seed(0)
    model = build_denoiser(made, codec.event(dataset.shape))
    objective = build_objective(model, made.training, codec)
    return dataset, codec, model, objective, Batches(dataset, codec, objective, BATCH, 0, CPU, world)


def test_low_res_belongs_to_the_mirrored_picture_and_is_made_of_its_levels():
    dataset, codec, _, _, batches = parts(config(noise=0.0, flip=True))
    batch, _ = batches(3)
    levels = quantize(batch.x, 17, -1.0, 1.0, dequantized=True)
    expected = LowRes("downsample:factor=2", (1, 8, 8), 17).of(levels, torch.zeros(BATCH, 0))
    assert torch.equal(batch.condition["low_res"], expected)
    assert set(batch.condition) == {"label", "low_res"}


def test_the_noise_in_low_res_is_that_of_the_level_that_the_model_is_told():
    _, _, _, _, batches = parts(config())
    eps, levels = [], []
    for step in range(8):
        batch, _ = batches(step)
        levels_of = quantize(batch.x, 17, -1.0, 1.0, True)
        clean = LowRes("downsample:factor=2", (1, 8, 8), 17).of(levels_of, torch.zeros(BATCH, 0))
        s = batch.condition["low_res_noise"]
        factor = s.reshape(-1, 1, 1, 1)
        eps.append((batch.condition["low_res"] - (1 - factor**2).sqrt() * clean) / factor)
        levels.append(s)
    eps, levels = torch.cat(eps), torch.cat(levels)
    assert float(eps.mean()) == pytest.approx(0, abs=4 / eps.numel()**0.5)
    assert float(eps.var()) == pytest.approx(1, abs=4 * (2 / eps.numel())**0.5)
    assert 0 <= float(levels.min()) and float(levels.max()) < 0.3
    assert float(levels.mean()) == pytest.approx(0.15, abs=4 * 0.3 / (12 * len(levels))**0.5)


def test_masks_are_drawn_anew_in_every_step_and_again_by_the_same_step():
    _, _, _, _, batches = parts(config(noise=0.0, degradation="mask:box=0.5", low_res=2))
    first, again, later = (batches(step)[0].condition["low_res"][:, 1] for step in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_two_processes_see_the_noise_of_one():
    whole = parts(config())[-1](2)[0].condition
    for rank in range(2):
        share = parts(config(), World(rank, 2))[-1](2)[0].condition
        for name, value in share.items():
            assert torch.equal(value, whole[name][rank::2]), name


def test_data_without_low_res_are_read_as_before():
    made = config(noise=0.0, degradation="", low_res=0)
    batch, _ = parts(made)[-1](0)
    told, _ = parts(config())[-1](0)
    assert torch.equal(batch.x, told.x) and set(batch.condition) == {"label"}


def test_held_out_examples_are_scored_given_low_res_without_noise():
    dataset, codec, model, objective, _ = parts(config())
    seen = []

    def spy(module, inputs):
        seen.append(inputs[2])

    model.network.register_forward_pre_hook(spy)
    held_out(model, objective, dataset, codec, 32, CPU, limit=32)
    assert torch.equal(seen[0]["low_res_noise"], torch.zeros(32))
    assert torch.equal(seen[0]["low_res"], dataset.test[torch.arange(32)][1]["low_res"])


@pytest.mark.parametrize(("change", "says", "argument"), [
    ({"low_res": 0, "low_res_noise": False}, "takes one of none; set model.low_res to 1", "model.low_res"),
    ({"low_res": 3}, "takes one of 3; set model.low_res to 1", "model.low_res"),
    ({"low_res_noise": False}, "not told the noise of low_res; set model.low_res_noise=true", "model.low_res_noise"),
    ({"degradation": "", "noise": 0.0, "low_res_noise": False}, "set data.degradation", "model.low_res"),
    ({"noise": 0.0, "low_res_noise": True}, "set data.low_res_noise above 0", "model.low_res_noise")])
def test_a_network_that_does_not_fit_the_data_is_refused_before_training(change, says, argument):
    made = config(**change)
    with pytest.raises(ArgumentError, match=says) as error:
        require_fit(made, load_dataset(made.data))
    assert error.value.arguments[0] == argument


@pytest.mark.machine
def test_data_given_in_python_are_degraded_as_the_config_says(tmp_path):
    pictures = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = config(noise=0.0)
    made.training.steps, made.training.batch_size, made.training.eval_every, made.training.sample_every = 2, 8, 2, 0
    made.training.warmup = 1
    run = train(made, from_arrays(pictures, levels=17), tmp_path / "run", device="cpu", progress=False)
    assert (run / "checkpoints" / "step_00000002.pt").exists()
    given = pictures_as_said(from_arrays(pictures, levels=17), made.data)
    assert given.test[torch.arange(2)][1]["low_res"].shape == (2, 1, 4, 4)


@pytest.mark.parametrize(("settings", "says"), [({"low_res_noise": 1.0}, r"must lie in \[0, 1\)"),
                                                ({"low_res_noise": 0.1, "degradation": ""}, "which a degradation makes"),
                                                ({"reduce": 0}, "at least 1"),
                                                ({"degradation": "blot"}, "unknown degradation")])
def test_a_setting_out_of_range_is_refused(settings, says, tmp_path):
    made = config()
    for name, value in settings.items():
        made.data[name] = value
    with pytest.raises(ArgumentError, match=says) as error:
        train(made, workdir=tmp_path / "run", device="cpu", progress=False)
    assert set(error.value.arguments) <= {f"data.{name}" for name in ("reduce", "degradation", "low_res_noise")}
    assert not (tmp_path / "run" / "config.json").exists()
