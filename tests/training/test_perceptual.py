"""What gives the features of a perceptual loss: a classifier's run or a TorchScript file, and nothing else."""

import pytest
import torch
from torch import nn

from scorefield.checkpoints import Checkpoint
from scorefield.checkpoints.formats import scorefield
from scorefield.data import from_arrays
from scorefield.models import build_denoiser
from scorefield.numerics.errors import ArgumentError
from scorefield.training.teachers import perceptual_of

CPU = torch.device("cpu")


def pictures(size=8):
    return from_arrays(torch.zeros(20, 1, size, size, dtype=torch.uint8))


def checkpoint(network, path, **settings):
    config = {"sde": {"name": "vp"}, "data": {"low": -1.0, "high": 1.0}, "training": {}, "shape": [1, 8, 8], "levels": 256,
              "config": "x", "model": {"network": network, "time_input": "half_log_snr", **settings}}
    torch.manual_seed(0)
    model = build_denoiser(config, config["shape"])
    scorefield.write(Checkpoint(config, model.network.state_dict()), path)
    return model.eval()


def test_those_of_a_classifier_are_what_its_levels_give(tmp_path):
    model = checkpoint("classifier", tmp_path / "c.safetensors", width=8, multipliers=(1, 2), num_blocks=1)
    features = perceptual_of({"perceptual": str(tmp_path / "c.safetensors")}, pictures(), CPU)
    x = torch.randn(3, 1, 8, 8)
    found = features(x)
    assert [tuple(layer.shape) for layer in found] == [(3, 8, 8, 8), (3, 16, 4, 4)]
    expected = model.network.features(x, model.time(torch.as_tensor(model.sde.t_min, dtype=torch.float64), x))
    for layer, other in zip(found, expected, strict=True):
        torch.testing.assert_close(layer, other)
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_a_torchscript_file_is_called_with_pictures(tmp_path):
    network = nn.Conv2d(1, 4, 3)
    torch.jit.script(network).save(str(tmp_path / "f.pt"))
    features = perceptual_of({"perceptual": str(tmp_path / "f.pt")}, pictures(), CPU)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(features(x), network(x))


def test_without_a_name_there_are_none():
    assert perceptual_of({"perceptual": ""}, pictures(), CPU) is None and perceptual_of({}, pictures(), CPU) is None


def test_what_gives_no_features_is_refused_in_one_line(tmp_path):
    checkpoint("classifier", tmp_path / "c.safetensors", width=8, multipliers=(1, 2), num_blocks=1)
    checkpoint("unet", tmp_path / "u.safetensors", width=8, multipliers=(1, 2), num_blocks=1)
    (tmp_path / "x.pt").write_bytes(b"nothing")
    for name, size, match in (("u.safetensors", 8, "is no classifier, but a unet"), ("x.pt", 8, "is no TorchScript file"),
                              ("none", 8, "no features: "), ("c.safetensors", 4, r"pictures of shape \(1, 8, 8\)")):
        with pytest.raises(ArgumentError, match=match) as error:
            perceptual_of({"perceptual": str(tmp_path / name)}, pictures(size), CPU)
        assert error.value.arguments == ("training.perceptual",) and "\n" not in str(error.value)
