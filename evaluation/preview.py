"""Samples as one picture, and a picture of samples while training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.data import Codec, Dataset
from scorefield.evaluation import plots
from scorefield.evaluation.draw import draw
from scorefield.models import ScoreModel
from scorefield.samplers import make_sampler

SHOWN_IMAGES, SHOWN_POINTS = 64, 2000


def picture(x: Tensor, codec: Codec, dataset: Dataset | None = None) -> Tensor:
    """Samples x (N, *event) as a uint8 picture (3, height, width): a grid, or points over the data set's."""
    data = codec.decode(x)
    if codec.levels is not None:
        return plots.image_grid(data, codec.levels)
    if dataset is None:
        return plots.points_over_data(data)
    return plots.points_over_data(data, dataset.train[torch.arange(min(len(dataset.train), SHOWN_POINTS))][0])


@dataclass(frozen=True)
class Preview:
    """Samples of a model in training, from the same noise every time; of every class in turn, if it must be told one.

        train("configs/vp_digits.py", preview=Preview())

    steps  of Euler-Maruyama
    """

    steps: int = 100

    def __call__(self, model: ScoreModel, dataset: Dataset, codec: Codec) -> Tensor:
        n = SHOWN_IMAGES if codec.levels is not None else SHOWN_POINTS
        device = next(model.parameters()).device
        takes = model.takes
        if takes.classes is not None and not takes.label_dropout:
            model = model.given(label=torch.arange(n, device=device) % takes.classes)
        samples = draw(model, make_sampler("euler_maruyama", steps=self.steps), codec.event(dataset.shape), n, seed=0,
                       batch_size=n, device=device, progress=False)
        return picture(samples.x, codec, dataset)
