"""Feature networks: pictures in, vectors out.

A metric of pictures compares the features of a network: Inception's, a classifier's of the project, or any of the user's.
"""

from __future__ import annotations

import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.data import Dataset
from scorefield.evaluation.metrics import inception_network, networks
from scorefield.numerics.errors import ArgumentError, MissingFileError
from scorefield.numerics.files import digest, sha256_of
from scorefield.numerics.text import choose

SCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".jit", ".torchscript")


class Features:
    """A network (or any function) from pictures (B, C, H, W) to features (B, D).

        features = Features(lambda pictures: pictures.flatten(1).float() / 255, name="pixels")

    network  is called with uint8 pictures, 0 .. levels-1. With `classes` it gives a pair: features, and logits (B, classes)
    name     for messages
    shape    (C, H, W) that the network takes; None: any
    levels   of the pictures that it takes; those of a data set with others are scaled and rounded
    classes  that its logits are of; None: it has none, and is good for no inception_score
    weights  SHA-256 of its weights, for the cache; that of a torch module is computed
    """

    def __init__(self, network: Callable[[Tensor], Any], name: str = "features", shape: tuple[int, ...] | None = None,
                 levels: int = 256, classes: int | None = None, weights: str | None = None):
        self.network, self.name, self.shape, self.levels, self.classes = network, name, shape, levels, classes
        self._weights = weights
        if isinstance(network, nn.Module):
            network.eval()

    @property
    def digest(self) -> str:
        """SHA-256 of the name, the levels and the weights."""
        if self._weights is None:
            self._weights = digest(self.network.state_dict()) if isinstance(self.network, nn.Module) else ""
        return digest([self.name, self.levels, self._weights])

    def check(self, dataset: Dataset) -> None:
        """ArgumentError unless the network takes the examples of a data set."""
        if dataset.levels is None or len(dataset.shape) != 3:
            raise ArgumentError(f"the feature network {self.name!r} takes pictures of integer levels, but data set "
                                f"{dataset.name!r} has examples of shape {dataset.shape}"
                                f"{' that are reals' if dataset.levels is None else ''}", "features")
        if self.shape is not None and dataset.shape != self.shape:
            raise ArgumentError(f"the feature network {self.name!r} takes pictures of shape {self.shape}, but those of data "
                                f"set {dataset.name!r} have {dataset.shape}", "features")

    @torch.no_grad()
    def outputs(self, x: Tensor, levels: int | None) -> dict[str, Tensor]:
        """The features (B, D), and the logits if it has classes, of pictures with these levels; float32, on the CPU.

        ArgumentError if the network does not take the pictures, or gives anything else or numbers that are not finite.
        """
        if levels is not None and levels != self.levels:
            x = (x.double() * ((self.levels - 1) / (levels - 1))).round().to(torch.uint8)
        if isinstance(self.network, nn.Module):
            self.network.to(x.device)
        try:
            with torch.backends.cudnn.flags(allow_tf32=False):      # whose ten bits a Frechet distance shows
                y = self.network(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ArgumentError(f"the feature network {self.name!r} does not take pictures of shape {tuple(x.shape[1:])} "
                                f"({textwrap.shorten((str(error).strip().splitlines() or [''])[-1], 200)})",
                                "features") from error      # of a TorchScript's lines the last one says what is wrong
        parts = y if isinstance(y, tuple) and self.classes is not None else (y,)
        found = {}
        for part, name, wanted in zip(parts, ("features", "logits"), ("D", self.classes), strict=False):
            if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(x) or wanted not in ("D", part.shape[1]):
                got = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
                raise ArgumentError(f"the feature network {self.name!r} must give {name} of shape ({len(x)}, {wanted}), got "
                                    f"{got}", "features")
            if name == "features" and not bool(part.isfinite().all()):
                raise ArgumentError(f"the feature network {self.name!r} gave features that are not finite", "features")
            found[name] = part.float().cpu()
        return found


def features_of(name: str | None, dataset: Dataset, weights: str | Path | None = None) -> Features | None:
    """The feature network of that name for a data set.

        features = features_of("digits", dataset)
        features = features_of("inception", dataset, weights="weights-inception-2015-12-05-6726825d.pth")

    name     "digits" or "fashion_mnist", the project's classifiers (networks.py); "inception" (inception_network.py); or a
             TorchScript file, which gets uint8 pictures (B, C, H, W), 0 .. 255, and gives features (B, D). None: the
             project's own classifier of this data set, or None where there is none
    weights  a local file of Inception's weights; None downloads them once

    ArgumentError for another name, a network that does not take the data, and a file or package that is missing.
    """
    if weights is not None and name != "inception":
        raise ArgumentError("weights are those of the feature network 'inception', "
                            + (f"not of {name!r}" if name else "so give features 'inception', too"), "weights", "features")
    if name is None:
        name = dataset.name
        if name not in networks.DESIGNS or dataset.shape != networks.DESIGNS[name].shape or dataset.levels is None:
            return None
    if name in networks.DESIGNS:
        network, design = networks.load_classifier(name), networks.DESIGNS[name]
        features = Features(network, name, design.shape, design.levels, design.classes)
    elif name == "inception":
        features = load_inception(weights)
    elif Path(name).suffix in SCRIPT_SUFFIXES or Path(name).exists():
        features = torchscript(name)
    else:
        choose("feature network", (*networks.DESIGNS, "inception", "FILE.pt"), name, "features")
    features.check(dataset)
    return features


def load_inception(weights: str | Path | None = None) -> Features:
    """The Inception network of the literature, by torch-fidelity, or a TorchScript file of it (inception_network.py)."""
    path = inception_network.find(weights)
    if is_torchscript(path):
        return torchscript(path)
    network, sha256 = inception_network.load(path)
    return Features(network, "inception", classes=inception_network.CLASSES, weights=sha256)


def torchscript(path: str | Path) -> Features:
    """The network in a TorchScript file. NVIDIA's inception-2015-12-05.pt is asked for its features (2048)."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f"there is no file {str(path)!r}; give a feature network: {', '.join(networks.DESIGNS)}, "
                               "inception or a TorchScript file", "features")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # that TorchScript is deprecated, which is not the user's choice
            script = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise ArgumentError(f"{path} is not a TorchScript file ({textwrap.shorten(str(error), 100)}); torch.jit.save writes "
                            "one", "features") from None
    asked = {"return_features": True} if "return_features" in {a.name for a in script.forward.schema.arguments} else {}

    def network(pictures: Tensor) -> Tensor:
        y = script.to(pictures.device)(pictures, **asked)
        return y.flatten(1) if isinstance(y, Tensor) and y.ndim == 4 and y.shape[2:] == (1, 1) else y

    return Features(network, path.name, weights=sha256_of(path))


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, which holds code; torch.save writes one of weights alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
