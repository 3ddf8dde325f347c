"""The training examples of both ends of a bridge, from which its paths are simulated."""

import torch
from torch import Tensor

from scorefield.data.codec import Codec
from scorefield.data.dataset import Dataset
from scorefield.models.networks.two_way import SOURCE
from scorefield.numerics.errors import ArgumentError


class TrainingEnds:
    """Examples of a pair of data sets (data/pair.py), encoded, on a device.

        ends = TrainingEnds(dataset, codec, device)
        x = ends.examples("target", 4096, torch.Generator().manual_seed(0))
    """

    def __init__(self, dataset: Dataset, codec: Codec, device: torch.device):
        self.dataset, self.codec, self.device = dataset, codec, device

    def examples(self, end: str, n: int, generator: torch.Generator) -> Tensor:
        """n examples of "source" or "target", (n, *event): all of them as often as n allows, the rest at random.

        generator  on the CPU; the examples depend on nothing else
        """
        of_end = self.dataset if end == SOURCE else self.dataset.target
        if of_end is None:
            raise ArgumentError("a bridge needs two data sets: choose data.dataset=pair, with a source and a target",
                                "data.dataset")
        size = len(of_end.train)
        order = torch.cat([torch.randperm(size, generator=generator) for _ in range(-(-n // size))])[:n]
        data = of_end.train[order][0]
        u = torch.rand(data.shape, generator=generator) if self.codec.noisy else None
        return self.codec.encode(data, u).to(self.device)
