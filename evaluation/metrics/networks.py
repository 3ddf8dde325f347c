"""Small classifiers of the project's pictures, whose features stand in for Inception's on digits and Fashion-MNIST.

Their weights lie in weights/, so that a distance means the same on every machine: float16 safetensors, whose metadata name
the command that made them and their accuracy on the held-out examples, which they were not trained on.
The features have a mean square of 1 over the training examples.

    digits          8 x 8, 17 levels    16, 32 and 32 convolutions, 64 features
    fashion_mnist   28 x 28             16, 32 and 64 convolutions, 64 features
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Design:
    """Convolutions 3 x 3 with these channels, each with a maximum over squares of `pools` pixels; then the features.

    shape, levels  of the pictures
    classes        of the labels
    """

    shape: tuple[int, int, int]
    levels: int
    channels: tuple[int, ...]
    pools: tuple[int, ...]
    features: int = 64
    classes: int = 10

    @property
    def flat(self) -> int:
        """The numbers that the last convolution leaves."""
        side = self.shape[1]
        for pool in self.pools:
            side //= pool
        return self.channels[-1] * side * side


DESIGNS = {"digits": Design((1, 8, 8), 17, (16, 32, 32), (1, 1, 2)),
           "fashion_mnist": Design((1, 28, 28), 256, (16, 32, 64), (2, 2, 2))}


class SmallClassifier(nn.Module):
    """Pictures (B, C, H, W), integers 0 .. levels-1, to features (B, 64) after the ReLU, and logits (B, 10)."""

    def __init__(self, design: Design):
        super().__init__()
        ends = (design.shape[0], *design.channels)
        self.design = design
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(ends, ends[1:], strict=False))
        self.hidden = nn.Linear(design.flat, design.features)
        self.logits = nn.Linear(design.features, design.classes)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = pictures.float() / (self.design.levels - 1)
        for convolution, pool in zip(self.convolutions, self.design.pools, strict=True):
            x = F.max_pool2d(F.relu(convolution(x)), pool)
        features = F.relu(self.hidden(x.flatten(1)))
        return features, self.logits(features)


def load_classifier(name: str) -> SmallClassifier:
    """The classifier of that name, "digits" or "fashion_mnist", with its weights."""
    from safetensors.torch import load_file

    network = SmallClassifier(DESIGNS[name])
    weights = load_file(WEIGHTS / f"{name}.safetensors")
    network.load_state_dict(OrderedDict((key, tensor.float()) for key, tensor in weights.items()))
    return network.eval().requires_grad_(False)


def accuracy(network: SmallClassifier, pictures: Tensor, label: Tensor) -> float:
    """The share of pictures that the classifier takes for their label."""
    with torch.no_grad():
        right = [network(x)[1].argmax(1) == y for x, y in zip(pictures.split(1000), label.split(1000), strict=True)]
    return float(torch.cat(right).double().mean())
