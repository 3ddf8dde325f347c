"""What the paths of a bridge begin with: held-out examples of one of its ends, and the data set at the other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.data import Codec, Dataset, mixture_parameters
from scorefield.data.dataset import Split
from scorefield.models.analytic import GaussianMixture
from scorefield.models.bridge import BridgeModel
from scorefield.models.networks.two_way import SOURCE
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import DEQUANTIZATION, NoiseStream, Seed
from scorefield.sde_lib import VPSDE

KNOWN = ("gaussians8", "gaussians25")      # data sets whose density is known


@dataclass(frozen=True, eq=False)
class Starts:
    """Examples as what the paths of a bridge begin with, in place of an SDE's prior.

        model = bridge.toward("target", Starts(dataset.test, codec, dataset.name))

    The sample with the seed (seed, i), or i, begins with example i mod their number. `log_prob` is the density that the
    examples come from; ArgumentError where that is not known.
    """

    examples: Split
    codec: Codec
    name: str

    def sample(self, event_shape: Sequence[int], seeds: Sequence[Seed], device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32) -> Tensor:
        """(len(seeds), *event_shape), as the model sees them."""
        numbers = torch.tensor([seed[1] if isinstance(seed, tuple) else seed for seed in seeds])
        data = self.examples[numbers % len(self.examples)][0]
        u = NoiseStream(seeds, DEQUANTIZATION).uniform(torch.empty(data.shape)) if self.codec.noisy else None
        x = self.codec.encode(data, u)
        if tuple(x.shape[1:]) != tuple(event_shape):
            raise ArgumentError(f"paths begin with examples of {self.name!r} of shape {tuple(x.shape[1:])}, and the bridge "
                                f"has {tuple(event_shape)}", "start")
        return x.to(device, dtype)

    def require_density(self) -> None:
        """ArgumentError unless the density is known."""
        if self.name not in KNOWN:
            raise ArgumentError(f"the likelihood of a bridge needs the density at its start, and that of data set "
                                f"{self.name!r} is not known, only those of {' and '.join(KNOWN)}; choose the other "
                                "direction, or data", "direction", "data.dataset")

    def log_prob(self, x: Tensor) -> Tensor:
        """In nats, (batch,), for x (batch, *event)."""
        self.require_density()
        parameters = (torch.from_numpy(a) for a in mixture_parameters(self.name))
        return GaussianMixture(VPSDE(), *parameters).log_prob(x, 0.0)      # whose data are at t = 0


def joined(model: BridgeModel, dataset: Dataset, codec: Codec) -> tuple[BridgeModel, Dataset]:
    """A bridge whose paths begin with held-out examples, and the data set of its goal; ArgumentError without two data
    sets.
    """
    if dataset.target is None:
        raise ArgumentError(f"a bridge needs two data sets, and {dataset.name!r} is one; give a pair (data.pair.paired)",
                            "dataset")
    goal, start = (dataset, dataset.target) if model.goal == SOURCE else (dataset.target, dataset)
    return model.toward(model.goal, Starts(start.test, codec, start.name)), goal
