"""Degradations: what is left of a picture, the condition "low_res" from which a model learns to restore it.

    low_res = degradation(x, u)      x (batch, channels, height, width) in [0, 1], u uniform numbers (batch, *numbers)

A model of p(x given low_res), learned from such pairs, is super-resolution (Saharia et al. 2021, SR3), colourisation,
inpainting, uncropping or the removal of JPEG's artefacts (Saharia et al. 2022, "Palette"). In a cascade (Ho et al. 2022) it
is the second stage, and the first one draws low_res. Since no model draws that without error, training adds noise of a
random level s, which the model is told as "low_res_noise" (their section 4.2, by the variance-preserving rule):

    low_res_s = sqrt(1 - s^2) low_res + s eps      s ~ U[0, low_res_noise)
"""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Condition, Dataset, Examples, Split
from scorefield.data.transforms import to_unit
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.noise import CONDITION, NoiseStream
from scorefield.numerics.options import option, worded
from scorefield.numerics.pictures import (
    HALVES,
    KERNELS,
    in_box,
    resampled,
    resampling_matrix,
    weighted_channels,
    without_half,
)

LOW_RES, LOW_RES_NOISE = "low_res", "low_res_noise"


_weights = cache(resampling_matrix)      # which a training wants for every batch


class Degradation(ABC):
    """What every degradation offers. To add one, write a frozen dataclass with options and add a line to DEGRADATIONS."""

    @abstractmethod
    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of low_res for pictures of `shape` (channels, height, width); ArgumentError if these do not fit."""

    def numbers(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the uniform numbers that it wants for each picture; (0,): none."""
        return (0,)

    @abstractmethod
    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """low_res (batch, *shape) of x (batch, channels, height, width) in [0, 1], by u in [0, 1) (batch, *numbers)."""


@dataclass(frozen=True)
class Downsample(Degradation):
    """A smaller picture: means of blocks, or resized with a filter against aliasing, as Pillow does."""

    factor: int = option(2, "how many times smaller each side becomes")
    kernel: str = option("box", "filter: box, linear or bicubic")

    def __post_init__(self) -> None:
        if self.factor < 2 or self.kernel not in KERNELS:
            raise ArgumentError(f"downsample takes a factor of at least 2 and a kernel of {', '.join(KERNELS)}, got "
                                f"{self.factor} and {self.kernel!r}", "degradation")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if any(side % self.factor for side in shape[1:]):
            raise ArgumentError(f"pictures of {shape[1]}x{shape[2]} pixels cannot be made {self.factor} times smaller; "
                                "choose a factor that divides both sides", "degradation")
        return (shape[0], *(side // self.factor for side in shape[1:]))

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        rows, columns = (_weights(side, self.factor, self.kernel) for side in x.shape[2:])
        return resampled(x, rows, columns)


@dataclass(frozen=True)
class Grey(Degradation):
    """One channel (colourisation). Pictures that programs made grey have the weights 0.299,0.587,0.114 (ITU-R BT.601)."""

    weights: tuple[float, ...] = option((), "of the channels, of sum 1; by default their mean")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] == 1:
            raise ArgumentError("grey is made of pictures with several channels, and these have one", "degradation")
        if self.weights and (len(self.weights) != shape[0] or abs(sum(self.weights) - 1) > 1e-6):
            raise ArgumentError(f"grey of {shape[0]} channels takes so many weights of sum 1, got {self.weights}",
                                "degradation")
        return (1, *shape[1:])

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return weighted_channels(x, torch.tensor(self.weights or (1 / x.shape[1],) * x.shape[1], dtype=torch.float64))


@dataclass(frozen=True)
class Mask(Degradation):
    """The picture with missing pixels, in their place the middle grey 1/2, and a further channel: 1 where a pixel is known.

    Of its options exactly one is given.
    """

    box: float = option(0.0, "share of each side of a rectangle that is missing, at a random place")
    random: float = option(0.0, "share of the pixels that is missing, each at random")
    half: str = option("", "the missing half: left, right, top or bottom")
    border: float = option(0.0, "share of each side that is missing around the middle of the picture (uncropping)")

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value]
        if len(given) != 1:
            raise ArgumentError("mask takes one of box, random, half and border, such as mask:box=0.5, got "
                                f"{' and '.join(given) or 'none'}", "degradation")
        if self.half and self.half not in HALVES:
            raise ArgumentError(f"the half of a mask must be {', '.join(HALVES)}, got {self.half!r}", "degradation")
        if not self.half and not 0 < (share := getattr(self, given[0])) < 1:
            raise ArgumentError(f"the {given[0]} of a mask must lie between 0 and 1, got {share}", "degradation")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.random:      # each pixel has its own chance
            return (shape[0] + 1, *shape[1:])
        known = self.known(torch.full((1, *self.numbers(shape)), 0.5), shape[1], shape[2])
        if bool(known.all()) or not bool(known.any()):
            raise ArgumentError(f"of pictures of {shape[1]}x{shape[2]} pixels this mask leaves "
                                f"{'all' if bool(known.all()) else 'nothing'}; choose another share", "degradation")
        return (shape[0] + 1, *shape[1:])

    def numbers(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2,) if self.box else tuple(shape[1:]) if self.random else (0,)

    def known(self, u: Tensor, height: int, width: int) -> Tensor:
        """Which pixels are known, bool (batch, height, width)."""
        if self.random:
            return u >= self.random
        plane = (height, width)
        if self.box:
            return ~in_box(plane, self.box, u)
        known = without_half(plane, self.half) if self.half else in_box(plane, 1 - self.border)
        return known.to(u.device).expand(len(u), *plane)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        known = self.known(u, x.shape[2], x.shape[3])[:, None]
        return torch.cat([torch.where(known, x, 0.5), known.to(x)], dim=1)


@dataclass(frozen=True)
class Jpeg(Degradation):
    """The picture as a JPEG file of low quality has it. Each is compressed on the CPU, which takes time."""

    quality: int = option(10, "of the file, from 1 to 95")

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ArgumentError(f"the quality of JPEG must lie in 1 .. 95, got {self.quality}", "degradation")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] not in (1, 3):
            raise ArgumentError(f"a JPEG file has 1 or 3 channels, and these pictures have {shape[0]}", "degradation")
        return shape

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        bytes_ = (255 * x.clamp(0, 1)).round().byte().movedim(1, -1).cpu().numpy()
        read = np.stack([_compressed(picture, self.quality) for picture in bytes_])
        return torch.from_numpy(read).movedim(-1, 1).to(x) / 255


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    """A picture (height, width, channels) of bytes, through a JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(picture.shape)


DEGRADATIONS: dict[str, type[Degradation]] = {"downsample": Downsample, "grey": Grey, "mask": Mask, "jpeg": Jpeg}


def make_degradation(text: str) -> Degradation:
    """The degradation that NAME[:OPTION=VALUE ...] says; ArgumentError for a word or a value that does not exist.

    >>> from scorefield.data.degradations import make_degradation
    >>> make_degradation("downsample:factor=4").shape((3, 32, 32))
    (3, 8, 8)
    """
    kind, options = worded("degradation", DEGRADATIONS, text, "degradation")
    made: Degradation = kind(**options)
    return made


@dataclass(frozen=True)
class LowRes:
    """How the pictures of a data set become the condition low_res, in the range [low, high] of the model's pictures.

    shape   of the pictures, and their levels
    noise   the largest standard deviation of the noise that training adds; 0: none, and the model is not told any

    low_res is made of the levels themselves, also where the model sees them dequantised. Raises ArgumentError if the
    pictures do not fit.
    """

    text: str
    shape: tuple[int, ...]
    levels: int
    low: float = -1.0
    high: float = 1.0
    noise: float = 0.0
    degradation: Degradation = field(init=False, repr=False, compare=False)
    event: tuple[int, ...] = field(init=False, repr=False, compare=False)      # the shape of one low_res

    def __post_init__(self) -> None:
        object.__setattr__(self, "degradation", make_degradation(self.text))
        object.__setattr__(self, "event", self.degradation.shape(self.shape))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The shape of the uniform numbers that `of` wants for each picture."""
        return self.degradation.numbers(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the conditions."""
        return (LOW_RES, *([LOW_RES_NOISE] if self.noise else []))

    def of(self, data: Tensor, u: Tensor) -> Tensor:
        """low_res (batch, *event), float32, of levels (batch, *shape) and u (batch, *numbers)."""
        return self.placed(self.degradation(to_unit(data, self.levels, 0.0, 1.0), u))

    def placed(self, unit: Tensor) -> Tensor:
        """A low_res in [0, 1] in the range of the model's pictures."""
        return self.low + (self.high - self.low) * unit

    def of_examples(self, data: Tensor, numbers: list[int]) -> Tensor:
        """low_res of examples with these numbers; its random part depends on the number alone."""
        return self.of_pictures(to_unit(data, self.levels, 0.0, 1.0), numbers)

    def of_pictures(self, unit: Tensor, numbers: list[int]) -> Tensor:
        """As `of_examples`, of pictures in [0, 1]."""
        u = NoiseStream([(0, i) for i in numbers], CONDITION).uniform(torch.empty(len(unit), *self.numbers))
        return self.placed(self.degradation(unit, u))


def noisy(low_res: Tensor, level: Tensor, eps: Tensor) -> Tensor:
    """sqrt(1 - s^2) low_res + s eps, with s = level (batch,) in [0, 1)."""
    s = level.to(low_res).reshape(-1, *[1] * (low_res.ndim - 1))
    return (1 - s.square()).sqrt() * low_res + s * eps


@dataclass(frozen=True, eq=False)
class Degraded:
    """A split whose conditions hold low_res, too, without noise; of example i its random part depends on i alone."""

    split: Split
    rule: LowRes

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        data, condition = self.split[index]
        return data, {**condition, LOW_RES: self.rule.of_examples(data, index.tolist()),
                      **({LOW_RES_NOISE: torch.zeros(len(data))} if self.rule.noise else {})}

    @property
    def in_memory(self) -> bool:
        return getattr(self.split, "in_memory", False)

    @property
    def condition(self) -> Any:
        """The conditions that are in memory, which low_res is not. AttributeError if the split does not have that."""
        return self.split.condition      # type: ignore[attr-defined]

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the conditions that are made when examples are read."""
        return self.rule.names


@dataclass(frozen=True, eq=False)
class Reduced:
    """A split of pictures `factor` times smaller: the means of blocks, as the nearest level."""

    split: Split
    factor: int

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        data, condition = self.split[index]
        return reduced(data, self.factor), condition

    @property
    def condition(self) -> Any:
        """As the split's."""
        return self.split.condition      # type: ignore[attr-defined]


def reduced(data: Tensor, factor: int) -> Tensor:
    """Levels (N, channels, height, width) as pictures `factor` times smaller; halves are rounded up."""
    blocks = data.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).sum((-1, -3), dtype=torch.int64)
    return ((2 * blocks + factor**2) // (2 * factor**2)).to(data.dtype)


def reduced_dataset(dataset: Dataset, factor: int) -> Dataset:
    """The data set with smaller pictures; ArgumentError unless the factor divides both sides."""
    if factor == 1:
        return dataset
    _require_pictures(dataset, "reduce")
    if any(side % factor for side in dataset.shape[1:]):
        raise ArgumentError(f"data set {dataset.name!r} has pictures of {dataset.shape[1]}x{dataset.shape[2]} pixels, which "
                            f"cannot be made {factor} times smaller; choose a factor that divides both", "reduce")
    shape = (dataset.shape[0], *(side // factor for side in dataset.shape[1:]))

    def small(split: Split) -> Split:
        if isinstance(split, Examples) and isinstance(split.data, Tensor):
            return Examples(reduced(split.data, factor), split.condition)
        return Reduced(split, factor)

    target = None if dataset.target is None else reduced_dataset(dataset.target, factor)
    return dataclasses.replace(dataset, train=small(dataset.train), test=small(dataset.test), shape=shape, target=target)


def degraded_dataset(dataset: Dataset, text: str, noise: float, low: float, high: float) -> Dataset:
    """The data set whose examples have low_res, too; ArgumentError if its pictures do not fit."""
    if not text:
        return dataset
    _require_pictures(dataset, "degradation")
    assert dataset.levels is not None
    rule = LowRes(text, dataset.shape, dataset.levels, low, high, noise)
    return dataclasses.replace(dataset, train=Degraded(dataset.train, rule), test=Degraded(dataset.test, rule), low_res=rule)


def pictures_as_said(dataset: Dataset, fields: Any) -> Dataset:
    """The data set as the fields `reduce`, `degradation`, `low_res_noise`, `low` and `high` of a config's section `data`
    say; those that are not there mean nothing to do.
    """
    with renamed("data"):
        if dataset.target is not None and fields.get("degradation"):
            raise ArgumentError("a bridge has no low_res; leave out degradation", "degradation")
        dataset = reduced_dataset(dataset, fields.get("reduce") or 1)
        return degraded_dataset(dataset, fields.get("degradation") or "", fields.get("low_res_noise") or 0.0,
                                fields.get("low", -1.0), fields.get("high", 1.0))


def _require_pictures(dataset: Dataset, argument: str) -> None:
    if dataset.levels is None or len(dataset.shape) != 3:
        raise ArgumentError(f"{argument} is for pictures of levels, and data set {dataset.name!r} has examples of shape "
                            f"{dataset.shape} and {dataset.levels or 'no'} levels", argument)
