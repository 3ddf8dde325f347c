"""The teacher of a student: a trained run, read and compared with the student's config; and the weights to begin with."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from scorefield.checkpoints.load import load_denoiser, read_checkpoint
from scorefield.data.codec import Codec
from scorefield.data.dataset import Dataset
from scorefield.data.datasets import CODEC_FIELDS
from scorefield.data.latents import Latents
from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.dequantizer import dequantizer_of
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.training.objectives.taught import RANDOM, TEACHER


def teacher_of(config: ConfigDict, dataset: Dataset, device: torch.device, codec: Codec | None = None) -> Denoiser | None:
    """The model that `training.teacher` names, with its averaged weights; None if there is none.

    codec  of the student

    Raises ArgumentError if the file is none, or holds a model of data of another kind than the student's.
    """
    source = config.training.get("teacher")
    if not source:
        return None
    try:
        with renamed(names={"config": "training.teacher"}):
            checkpoint = read_checkpoint(source)
    except (OSError, ValueError) as error:      # ValueError: the hub cannot be asked, or the file is none
        raise ArgumentError(f"no teacher: {error}", "training.teacher") from None
    theirs = checkpoint.config
    if (kind := theirs["model"]["network"]) in ("classifier", "autoencoder") or kind.startswith("bridge_"):
        raise ArgumentError(f"the teacher {source} is a{'n' * (kind[0] == 'a')} {kind}; name the run of a score model",
                            "training.teacher")
    same: list[tuple[str, Any, Any]] = [("shape", tuple(dataset.shape), tuple(theirs["shape"])),
                                        ("levels", dataset.levels, theirs.get("levels"))]
    same += [(f"data.{name}", config.data.get(name), theirs["data"].get(name)) for name in CODEC_FIELDS if "levels" in theirs
             and name in config.data and name in theirs["data"]]
    own = None if dataset.standard is None else dataset.standard.stored()
    latents = [None if of is None else of["digest"] for of in (
        codec.stored() if isinstance(codec, Latents) else None, theirs.get("latents"))]
    same += [("standard", own, theirs.get("standard")), ("the autoencoder", latents[0], latents[1])]
    for what, here, there in same:
        if here != there:
            raise ArgumentError(f"the teacher {source} has learned from data of another kind: {what} is {there} there and "
                                f"{here} here", "training.teacher")
    return checkpoint.denoiser().to(device)


SCRIPTS = (".pt", ".pth", ".ts", ".jit", ".torchscript")


def perceptual_of(settings: Any, dataset: Dataset, device: torch.device) -> nn.Module | None:
    """What gives the features that `training.perceptual` names; None if there is none.

    Those of a run of a classifier are what its levels give, at the least noise; a TorchScript file takes pictures as the
    autoencoder sees them, and gives one or several tensors (batch, channels, ...). Raises ArgumentError if the file is
    neither, or the classifier is one of data of another kind.
    """
    source = settings.get("perceptual")
    if not source:
        return None
    path = Path(os.path.expanduser(source))
    if path.is_file() and path.suffix in SCRIPTS:
        try:
            script = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ArgumentError(f"{source} is no TorchScript file ({str(error).splitlines()[0][:100]}); write one with "
                                "torch.jit.script(network).save(file)", "training.perceptual") from None
        for parameter in script.parameters():
            parameter.requires_grad = False
        return script
    try:
        with renamed(names={"config": "training.perceptual"}):
            checkpoint = read_checkpoint(source)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"no features: {error}", "training.perceptual") from None
    config = checkpoint.config
    if config["model"]["network"] != "classifier":
        raise ArgumentError(f"{source} is no classifier, but a {config['model']['network']}; train one, as with "
                            "configs/digits_classifier.py, or give a TorchScript file", "training.perceptual")
    if (tuple(config["shape"]), config["levels"]) != (dataset.shape, dataset.levels):
        raise ArgumentError(f"the classifier {source} was trained on pictures of shape {tuple(config['shape'])} and "
                            f"{config['levels']} levels, and these have {dataset.shape} and {dataset.levels}",
                            "training.perceptual")
    return ClassifierFeatures(checkpoint.denoiser().to(device))


class ClassifierFeatures(nn.Module):
    """What the levels of a classifier of noisy pictures give for pictures without noise."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        t = torch.as_tensor(self.model.sde.t_min, dtype=torch.float64)
        return self.model.network.features(x, self.model.time(t, x))      # type: ignore[operator]


def initial_of(objective: Any) -> tuple[str, str]:
    """The run whose weights a new run begins with, and the field that says so; "" for none."""
    if source := getattr(objective, "score_model", ""):
        return source, "score_model"
    initial = getattr(objective, "initial", RANDOM)
    source = getattr(objective, "teacher", "") if initial == TEACHER else "" if initial == RANDOM else initial
    return source, "teacher" if initial == TEACHER else "initial"


def begin_with(model: Denoiser, source: str | Path, name: str = "score_model") -> None:
    """Copy the averaged weights of a run or a checkpoint into the network of a denoiser. What may be there beside them stays
    as it is: a dequantizer, the embedding of a scale of guidance.

    name  of the field of the section `training` that names the source

    Raises ArgumentError if that is a model of another kind.
    """
    field = f"training.{name}"
    advice = "" if name == "score_model" else ", or begin with training.initial=random"
    with renamed(names={"config": field}):
        found = load_denoiser(source)
    if not isinstance(found, Denoiser):
        raise ArgumentError(f"the {name} {source} is a bridge; name the run of a score model", field)
    for what, here, there in _views(model, found):
        if here != there:
            raise ArgumentError(f"the {name} {source} has {what} {there}, and this config has {here}; the sections sde and "
                                "model must be those of its run, but for model.dequantizer and model.guidance" + advice,
                                field)
    own, weights = model.network.state_dict(), found.network.state_dict()
    lacking = [name for name, tensor in own.items() if name not in weights or weights[name].shape != tensor.shape]
    new = [prefix for prefix, is_new in (
        ("dequantizer.", dequantizer_of(found) is None and dequantizer_of(model) is not None),
        ("scale_embedding.", found.takes.guidance is None and model.takes.guidance is not None)) if is_new]
    if [name for name in lacking if not name.startswith(tuple(new))] or weights.keys() - own.keys():
        raise ArgumentError(f"the {name} {source} has other weights; the section model must be that of its run, but for a "
                            f"model.dequantizer or a model.guidance that it lacks{advice}", field)
    model.network.load_state_dict(weights, strict=False)


def _views(model: Denoiser, other: Denoiser) -> Iterator[tuple[str, Any, Any]]:
    """What two denoisers make of their networks, by name."""
    yield "sde", repr(model.sde), repr(other.sde)
    yield "parametrization", model.parametrization.name, other.parametrization.name
    for name in ("time_input", "input_std", "energy"):
        yield name, getattr(model, name), getattr(other, name)
