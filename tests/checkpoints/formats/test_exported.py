"""A network as a program of torch.export and of ONNX: the same outputs for any batch, without this project."""

import json

import pytest
import torch
from helpers import randomised

from scorefield.checkpoints import Checkpoint
from scorefield.checkpoints.formats import run as run_format
from scorefield.checkpoints.formats.exported import PT2, Plain, write_onnx
from scorefield.configs.loading import load_config
from scorefield.models import build_denoiser
from scorefield.numerics.errors import ArgumentError

SHAPE = (1, 8, 8)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint():
    """Of a small U-Net with labels, whose every layer lets something through."""
    config = load_config("configs/vp_digits_labels.py")
    config.model.update(width=8, multipliers=(1,), num_blocks=1, attention_resolutions=(8,))
    torch.manual_seed(0)
    model = build_denoiser(config, SHAPE)
    weights = {name: tensor / 3 for name, tensor in randomised(model.network).state_dict().items()}
    stored = config.to_dict() | {"config": "vp_digits_labels", "shape": list(SHAPE), "levels": 17, "standard": None,
                                 "class_names": [str(i) for i in range(10)]}
    return Checkpoint(stored, weights, step=3, ema_updates=3, source="here")


def of_batch(n):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, *SHAPE, generator=generator), 999 * torch.rand(n, generator=generator), torch.arange(n) % 11


@pytest.fixture(scope="module")
def pt2(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "new" / "digits.pt2"
    assert PT2.write(checkpoint, path) == ""
    return path


def test_a_program_of_torch_export_gives_the_networks_outputs_for_any_batch(checkpoint, pt2):
    extra = {"config.json": ""}
    program = torch.export.load(pt2, extra_files=extra).module()
    network = Plain(checkpoint.denoiser().network, True)
    for n in (1, 2, 9):
        expected = network(*of_batch(n))
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(program(*of_batch(n)), expected, **CLOSE)
    told = json.loads(extra["config.json"])
    assert told["model"]["parametrization"] == "eps" and "path" not in told["data"]


def test_an_onnx_file_gives_the_networks_outputs_for_any_batch(checkpoint, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_onnx(checkpoint, tmp_path / "digits.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "digits.onnx"))
    names = [put.name for put in session.get_inputs()]
    assert names == ["x", "time", "label"]
    network = Plain(checkpoint.denoiser().network, True)
    for n in (1, 9):
        (output,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, of_batch(n), strict=True)})
        torch.testing.assert_close(torch.from_numpy(output), network(*of_batch(n)), **CLOSE)
    assert json.loads(session.get_modelmeta().custom_metadata_map["config"])["shape"] == list(SHAPE)


def test_onnx_without_its_packages_is_one_line(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="needs onnx and onnxscript.*or choose the format pt2"):
        write_onnx(checkpoint, tmp_path / "digits.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_mode_convert_writes_a_program_by_its_suffix(checkpoint, command, tmp_path):
    run_format.write(checkpoint, tmp_path / "run")
    code, out, err = command("--mode=convert", f"--workdir={tmp_path}/run", f"--output={tmp_path}/digits.pt2")
    assert code == 0 and "digits.pt2 (pt2, averaged weights)" in out, err
    program = torch.export.load(tmp_path / "digits.pt2").module()
    torch.testing.assert_close(program(*of_batch(3)), Plain(checkpoint.denoiser().network, True)(*of_batch(3)), **CLOSE)
    code, _, err = command("--mode=convert", f"--workdir={tmp_path}/run", f"--output={tmp_path}/digits.pt", "--format=pt2")
    assert code == 1 and "the format pt2 writes a name that ends in .pt2" in err
