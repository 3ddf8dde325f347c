"""Samples as one picture, and a picture of samples while training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.data import Codec, Dataset, Points
from scorefield.evaluation import plots
from scorefield.evaluation.array_plots import picture_of_numbers
from scorefield.evaluation.draw import draw
from scorefield.evaluation.given import of_held_out
from scorefield.evaluation.starts import joined
from scorefield.guidance.guided import guided
from scorefield.models import ScoreModel
from scorefield.models.bridge import BridgeModel
from scorefield.models.networks.autoencoder import Autoencoder, autoencoder_of
from scorefield.samplers import make_sampler, own_sampler

SHOWN_IMAGES, SHOWN_POINTS = 64, 2000
SHOWN_CLASSES, SHOWN_OF_A_CLASS = 16, 8
MOST_IMAGES, MOST_POINTS, MOST_PIXELS = 400, 10_000, 2**24      # of one picture of many samples


def shown(codec: Codec, shape: tuple[int, ...]) -> int:
    """How many of many samples one picture shows: the first ones."""
    if len(shape) == 1:
        return MOST_POINTS
    return max(1, min(MOST_IMAGES, MOST_PIXELS // math.prod(shape[1:])))


def picture(x: Tensor, codec: Codec, dataset: Dataset | None = None, label: Tensor | None = None,
            names: Sequence[str] = ()) -> Tensor:
    """Samples x (N, *event) as a uint8 picture (3, height, width): a grid, or points over the data set's.

    x             as the model sees it; `picture_of_data` takes what the codec decodes
    label, names  (N,), the class of each sample, and the names of the classes: a grid has a row for each class that occurs,
                  in the order in which they occur first; points have a colour for each
    """
    return picture_of_data(codec.decode(x), codec, dataset, label, names)


def picture_of_data(data: Tensor, codec: Codec, dataset: Dataset | None = None, label: Tensor | None = None,
                    names: Sequence[str] = ()) -> Tensor:
    """As `picture`, of samples as data (N, *shape)."""
    if codec.levels is not None:
        return plots.image_grid(data, codec.levels, plots.rows_of(label))
    n = SHOWN_POINTS if data.ndim == 2 else SHOWN_IMAGES
    behind = None if dataset is None else dataset.train[torch.arange(min(len(dataset.train), n))][0]
    return picture_of_numbers(data, behind, codec.columns if isinstance(codec, Points) else (), label, names)


@dataclass(frozen=True)
class Preview:
    """Samples of a model in training, from the same noise every time; if it takes labels, a row for each class.

        train("configs/vp_digits.py", preview=Preview())

    Of more than SHOWN_CLASSES classes, the first ones are shown. A model that takes low_res gets that of held-out examples.
    Of an autoencoder it shows held-out examples, each row with its reconstructions below.

    steps  of Euler-Maruyama, at most those of a chain; a student is sampled by its own sampler
    """

    steps: int = 100

    def __call__(self, model: ScoreModel, dataset: Dataset, codec: Codec) -> Tensor:
        if (autoencoder := autoencoder_of(model)) is not None:
            return _reconstructions(autoencoder, dataset, codec)
        of_points = len(dataset.shape) == 1
        n = SHOWN_POINTS if of_points else SHOWN_IMAGES
        device, label = next(model.parameters()).device, None
        if isinstance(model, BridgeModel):
            model, dataset = joined(model, dataset, codec)
        if model.takes.classes is not None:
            classes = min(model.takes.classes, SHOWN_CLASSES)
            n = n if of_points else classes * SHOWN_OF_A_CLASS
            label = torch.arange(n) % classes
            model = guided(model, label.to(device))
        sampler = own_sampler(model, make_sampler("euler_maruyama", steps=min(self.steps, model.sde.steps or self.steps)))
        samples = draw(of_held_out(model, dataset, device), sampler, codec.event(dataset.shape), n, seed=0, batch_size=n,
                       device=device, progress=False)
        return picture(samples.x, codec, dataset, label, dataset.class_names)


def _reconstructions(autoencoder: Autoencoder, dataset: Dataset, codec: Codec) -> Tensor:
    """Rows of SHOWN_OF_A_CLASS held-out examples and of what the autoencoder makes of them."""
    levels = dataset.test[torch.arange(min(SHOWN_IMAGES // 2, len(dataset.test)))][0]
    u = torch.full(levels.shape, 0.5) if codec.noisy else None
    device = next(autoencoder.parameters()).device
    with torch.no_grad():
        made = codec.decode(autoencoder(codec.encode(levels, u).to(device))).cpu()
    pairs = zip(levels.split(SHOWN_OF_A_CLASS), made.split(SHOWN_OF_A_CLASS), strict=True)
    rows = [row for pair in pairs for row in pair]
    return picture_of_data(torch.cat(rows), codec, label=torch.repeat_interleave(torch.tensor([len(row) for row in rows])))
