"""Scorefield's own .safetensors: all comes back, nothing runs, and what was altered is refused."""

import json

import pytest
import safetensors.torch
import torch
from ml_collections import ConfigDict

from scorefield.checkpoints import Checkpoint, load_denoiser
from scorefield.checkpoints.formats import scorefield
from scorefield.models import build_denoiser

CONFIG = {"sde": {"name": "ve", "sigma_max": 30.0}, "data": {"low": -1.0, "high": 1.0}, "shape": [1, 8, 8], "levels": 17,
          "model": {"network": "unet", "parametrization": "v", "time_input": "log_sigma", "input_std": 0.5, "width": 8,
                    "multipliers": [1, 2], "num_blocks": 1, "attention_resolutions": []}}


def random_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    network = build_denoiser(ConfigDict(CONFIG), CONFIG["shape"]).network.to(memory_format=torch.channels_last)
    return {name: torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator))
            for name, weight in network.state_dict().items()}


@pytest.fixture
def checkpoint():
    return Checkpoint(CONFIG, random_weights(0), random_weights(1), step=42)


@pytest.fixture
def path(checkpoint, tmp_path):
    scorefield.write(checkpoint, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("ema", [True, False])
def test_weights_config_and_step_come_back(checkpoint, tmp_path, ema):
    path = tmp_path / "model.safetensors"
    scorefield.write(checkpoint, path, ema)
    back = scorefield.read(path)
    expected = checkpoint.averaged if ema else checkpoint.raw
    assert back.averaged.keys() == expected.keys() and all(torch.equal(back.averaged[k], expected[k]) for k in expected)
    assert back.config == CONFIG and back.step == 42 and back.raw is None and back.optimizer is None
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_denoiser(path).score(x, 0.3), checkpoint.denoiser(ema).score(x, 0.3))


def test_any_reader_of_safetensors_reads_the_weights(path, checkpoint):
    weights = safetensors.torch.load_file(path)
    assert all(torch.equal(weights[name], weight) for name, weight in checkpoint.averaged.items())


def test_every_flipped_byte_is_found(path):
    content = path.read_bytes()
    places = [*range(0, 1200), *range(1200, len(content), 997), len(content) - 1]
    for place in places:
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"model\.safetensors (is truncated, altered|was not written|is altered)"):
            scorefield.read(path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match="truncated, altered or not a .safetensors"):
        scorefield.read(path)


def test_a_config_exchanged_with_a_tool_is_refused(path):
    weights = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps(CONFIG | {"sde": {"name": "vp"}})
    safetensors.torch.save_file(weights, path, metadata)
    with pytest.raises(ValueError, match="does not match its checksum"):
        scorefield.read(path)


@pytest.mark.parametrize("change", [
    {"config": "[" * 100_000}, {"config": "[]"}, {"config": "x"}, {"config": None}, {"step": "x"}, {"step": "-1"},
    {"step": "9" * 5000}, {"config": json.dumps(CONFIG | {"shape": ["a"]})},
    {"config": json.dumps(CONFIG | {"model": None})}, {"config": json.dumps(CONFIG | {"levels": "17"})},
    {"config": json.dumps(CONFIG | {"levels": 1})}, {"config": json.dumps(CONFIG | {"data": {"low": "0", "high": 1.0}})},
    {"config": json.dumps({k: v for k, v in CONFIG.items() if k != "shape"})}], ids=range(13))
def test_metadata_that_say_nothing_useful_are_refused_even_with_their_checksum(path, change):
    reseal(path, change)
    with pytest.raises(ValueError, match="was not written by Scorefield|is not a config of Scorefield"):
        scorefield.read(path)


@pytest.mark.parametrize("change", [
    {"sde": {"name": "ddpm", "steps": 10**11}}, {"model": CONFIG["model"] | {"width": 10**7}}, {"sde": {}},
    {"model": CONFIG["model"] | {"width": "wide"}}, {"model": CONFIG["model"] | {"wdith": 8}}], ids=str)
def test_a_config_that_builds_nothing_or_too_much_is_one_line(path, change):
    reseal(path, {"config": json.dumps(CONFIG | change)})
    with pytest.raises(ValueError) as caught:
        load_denoiser(path)
    assert "\n" not in str(caught.value)


def reseal(path, change):
    """Exchange metadata of a file (None: leave out) and compute its checksum anew."""
    weights = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = {k: v for k, v in ({**file.metadata()} | change).items() if v is not None and k != "sha256"}
    safetensors.torch.save_file(weights, path, scorefield._sealed(metadata, weights))


def test_a_foreign_file_is_refused_with_what_to_do(tmp_path, checkpoint):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="format='pt', not 'scorefield 1'; for a diffusers model, give the folder"):
        scorefield.read(path)


def test_what_is_asked_of_it_must_agree_with_what_it_says(path):
    assert scorefield.read(path, {"sde": {"name": "ve"}, "model": {"multipliers": (1, 2), "width": None}}).step == 42
    with pytest.raises(ValueError, match="trained with sde.sigma_max=30.0, not 50.0"):
        scorefield.read(path, {"sde": {"sigma_max": 50.0}})


def test_a_missing_file_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        scorefield.read(tmp_path / "none.safetensors")
