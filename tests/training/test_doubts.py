"""Settings that do nothing or harm are said when training starts, one line each; those of the published configs are not."""

import numpy as np
import pytest
import torch

from scorefield.configs import default
from scorefield.configs.loading import apply, config_names, load_config
from scorefield.data import Dataset, Examples, codec_of, from_arrays
from scorefield.models import build_denoiser
from scorefield.training import train
from scorefield.training.doubts import IGNORED, doubts

PICTURES = torch.randint(0, 256, (50, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
SMALL = {"model.width": 8, "model.multipliers": "(1, 2)", "model.num_blocks": 1}


def said(dataset, **overrides):
    """The lines for a config of that data, with fields by their names, __ for the point."""
    config = default.get_config()
    fields = {**(SMALL if dataset.levels or len(dataset.shape) > 1 else {"model.network": "mlp"}), "training.warmup": 0}
    fields |= {name.replace("__", "."): value for name, value in overrides.items()}
    apply(config, [(name, str(value)) for name, value in fields.items()])
    with torch.device("meta"):
        model = build_denoiser(config, dataset.shape)
    return doubts(config, dataset, model, codec_of(config.data, dataset))


def test_nothing_is_said_where_nothing_is_amiss():
    assert said(from_arrays(PICTURES)) == []
    assert said(from_arrays(NUMBERS)) == []
    assert said(from_arrays(NUMBERS * 1000 + 7, standardise=True)) == []
    assert said(from_arrays(PICTURES), sde__name="ve", data__low=0, model__centred=False) == []


def test_attention_at_a_resolution_that_is_never_reached():
    (line,) = said(from_arrays(PICTURES), model__attention_resolutions="(16, 4, 7)")
    assert "the network never has 4 or 7, only 16, 8" in line
    assert said(from_arrays(PICTURES[..., :8]), model__attention_resolutions="(16, 8)") == []      # by the longer side


@pytest.mark.parametrize("network, field, value", [
    ("ncsnpp", "model.fourier_scale", 7.0), ("ncsnpp", "model.combine", "cat"),
    ("unet", "training.label_dropout", 0.3), ("unet", "training.importance", True), ("unet", "training.sample_steps", 7),
    ("unet", "training.snapshots_precision", "fp16"),
    ("unet", "training.metrics", "energy"), ("mlp", "training.metrics_samples", 50),
    ("mlp", "training.memory_format", "channels_last"), ("ncsnpp-fourier", "model.freq_shift", 0),
    ("ncsnpp-fourier", "model.last_label", 5), ("unet-one", "model.downsample_padding", 1)])
def test_a_field_that_another_makes_meaningless(network, field, value):
    name, _, variant = network.partition("-")
    extra = {"fourier": {"model__embedding": "fourier"}, "one": {"model__multipliers": "(1,)"}}.get(variant, {})
    extra |= {"training__sample_every": 0} if field == "training.sample_steps" else {}
    data = from_arrays(NUMBERS) if name == "mlp" else from_arrays(PICTURES)
    before = said(data, model__network=name, **extra)
    lines = said(data, model__network=name, **extra, **{field.replace(".", "__"): value})
    assert len(lines) == len(before) + 1 and any(line.startswith(f"{field}={value} does nothing: ") for line in lines)
    assert field in {field for field, *_ in IGNORED}


def test_processes_that_would_read_what_is_in_memory():
    (line,) = said(from_arrays(PICTURES), training__workers=4)
    assert line.startswith("training.workers=4 does nothing: the examples are in memory")
    assert said(from_arrays(PICTURES), training__workers=0) == []


def test_a_warm_up_that_never_ends():
    (line,) = said(from_arrays(PICTURES), training__warmup=5000, training__steps=1000)
    assert "training.warmup=5000" in line and "4e-05 of 0.0002" in line


def test_a_schedule_that_does_not_fit_the_number_of_steps():
    (line,) = said(from_arrays(PICTURES), training__decay="cooldown", training__cooldown=500, training__steps=400)
    assert "training.cooldown=500" in line and "falls over the last 400 steps" in line
    (line,) = said(from_arrays(PICTURES), training__decay="inverse_sqrt", training__reference=500, training__steps=400)
    assert "training.reference=500 is not reached" in line
    assert said(from_arrays(PICTURES), training__decay="cooldown", training__cooldown=300, training__steps=400) == []


@pytest.mark.parametrize("scale, shift, parts", [
    (255.0, 0.0, ["which the noise of VPSDE", "does not hide", "data.standardise"]),
    (1.0, 1000.0, ["does not hide"]), (0.001, 0.0, ["little beside the least noise"])])
def test_numbers_that_the_noise_does_not_fit(scale, shift, parts):
    (line,) = said(from_arrays(NUMBERS * scale + shift))
    assert all(part in line for part in parts)
    assert said(from_arrays(NUMBERS * scale + shift, standardise=True)) == []


def test_floats_that_look_like_the_unit_interval():
    floats = torch.rand(300, 5, generator=torch.Generator().manual_seed(0))
    (line,) = said(from_arrays(floats))
    assert "as if scaled to [0, 1]" in line and "data.standardise" in line
    assert said(from_arrays(floats), sde__name="ve") == [] and said(from_arrays(2 * floats - 1)) == []


def test_pictures_scaled_to_another_interval_than_the_model_is_for():
    (line,) = said(from_arrays(PICTURES), data__low=0)
    assert "go from 0 to 1" in line and "data.low=-1" in line
    (line,) = said(from_arrays(PICTURES), data__low=0, data__high=255)
    assert "does not hide" in line and "data.low=-1" in line
    (line,) = said(from_arrays(PICTURES), model__centred=False)
    assert "the network sees 2 x - 1" in line and "in [-1, 1]" in line


def test_the_interval_of_levels_does_nothing_for_numbers():
    (line,) = said(from_arrays(NUMBERS), data__low=0)
    assert "data.low=0 and data.high=1 do nothing" in line


def test_an_input_std_that_is_not_that_of_the_data():
    (line,) = said(from_arrays(NUMBERS), model__input_std=0.5, model__parametrization="edm", training__weighting="edm")
    assert "model.input_std=0.5" in line and "is 0.9" in line or "is 1" in line
    assert said(from_arrays(NUMBERS), model__input_std=1.0, model__parametrization="edm") == []


def test_labels_that_were_named_and_the_model_is_not_told(tmp_path, capsys):
    table = np.c_[NUMBERS.numpy(), np.arange(300) % 3]
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,c,d,e,kind")
    overrides = {"data.path": str(tmp_path / "t.csv"), "data.label": "kind", "training.steps": 1, "training.warmup": 0}
    run = train("configs/vp_table.py", workdir=tmp_path / "run", overrides=overrides)
    assert "set model.classes=3" in capsys.readouterr().out and run.exists()


def published():
    kinds = ("ve_", "vp_cifar10", "subvp_", "edm_", "vp_digits", "flow_")
    return [name for name in config_names() if name.startswith(kinds)]


@pytest.mark.parametrize("name", published())
def test_a_published_config_has_no_doubts(name):
    config = load_config(f"configs/{name}.py")
    shape = {"digits": (1, 8, 8), "folder": (3, config.data.get("image_size"), config.data.get("image_size"))}.get(
        config.data.dataset, (3, 32, 32))
    levels = 17 if config.data.dataset == "digits" else 256
    some = torch.randint(0, levels, (8, *[min(n, 32) for n in shape]), dtype=torch.uint8)
    split = Examples(some, {"label": torch.arange(8)} if config.model.get("classes") else {})
    dataset = Dataset("some", split, split, shape, levels)
    with torch.device("meta"):
        model = build_denoiser(config, shape)
    assert doubts(config, dataset, model, codec_of(config.data, dataset)) == []
