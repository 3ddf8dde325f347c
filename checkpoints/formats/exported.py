"""A network for programs that know nothing of this project: torch.export's .pt2, and ONNX. They are only written here.

    import torch

    program = torch.export.load("digits.pt2").module()
    output = program(x, time)      # x (batch, *event), time (batch,); any batch; and label (batch,), if it takes one

The program is the raw network in float32: `time` is what `model.time_input` makes of t, and the output means what
`model.parametrization` says, its first half where `model.learned_variance` is true. `models.wrap` makes a score model of a
function that calls it. Both files hold the config, too: as the extra file config.json of the .pt2, and as the metadata
"config" of the .onnx.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints.checkpoint import Checkpoint, event_of
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_atomically

LABEL = "label"


class Plain(nn.Module):
    """A network as a function of tensors alone: (x, time), or (x, time, label) if it takes labels."""

    def __init__(self, network: nn.Module, labelled: bool):
        super().__init__()
        self.network, self.labelled = network, labelled

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        output: Tensor = self.network(x, time, {LABEL: label}) if self.labelled else self.network(x, time)
        return output


def exported(model: Any, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The network of a denoiser as a program that takes any batch of examples of `shape`, as the network sees them."""
    names = model.takes.names
    if set(names) - {LABEL}:
        raise ArgumentError(f"only networks that take no condition, or a label, can be exported; this one takes {names}",
                            "format")
    network = Plain(model.network, bool(names)).eval().requires_grad_(False)
    inputs = [torch.zeros(2, *shape), torch.ones(2), *([torch.zeros(2, dtype=torch.int64)] if names else [])]
    batch = torch.export.Dim("batch")
    dynamic = [{0: batch} for _ in inputs] + [None] * (3 - len(inputs))
    return torch.export.export(network, tuple(inputs), dynamic_shapes=tuple(dynamic[:len(inputs)]))


def _event(checkpoint: Checkpoint) -> tuple[int, ...]:
    return event_of(checkpoint.config)


def _config(checkpoint: Checkpoint) -> str:
    """The config without the paths of this machine."""
    config = {key: value for key, value in checkpoint.config.items() if key != "origin"}
    config["data"] = {field: value for field, value in config["data"].items() if field not in ("path", "test_path")}
    return json.dumps(config)


def write_pt2(checkpoint: Checkpoint, path: Path, ema: bool = True) -> str:
    """Write the averaged weights, or the raw ones if `ema` is False, as a program of torch.export. Returns ""."""
    program = exported(checkpoint.denoiser(ema), _event(checkpoint))
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # of torch.export, on its own format
        extra = {"config.json": _config(checkpoint)}
        write_atomically(path, lambda file: torch.export.save(program, file, extra_files=extra))
    return ""


def write_onnx(checkpoint: Checkpoint, path: Path, ema: bool = True) -> str:
    """As write_pt2, as one ONNX file. It needs the packages onnx and onnxscript; ArgumentError without them. Returns ""."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ArgumentError(f"the format onnx needs {' and '.join(missing)}, which are not installed: pip install onnx "
                            "onnxscript; or choose the format pt2", "format")
    onnx: Any = importlib.import_module("onnx")      # an extra
    program = exported(checkpoint.denoiser(ema), _event(checkpoint))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # of onnxscript, on its own versions
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    proto = made.model_proto
    onnx.helper.set_model_props(proto, {"config": _config(checkpoint), "step": str(checkpoint.step)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(proto.SerializeToString()))
    return ""


PT2 = SimpleNamespace(SUFFIX=".pt2", write=write_pt2)
ONNX = SimpleNamespace(SUFFIX=".onnx", write=write_onnx)
EXPORTS = {"pt2": PT2, "onnx": ONNX}      # formats that are only written
