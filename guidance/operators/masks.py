"""Masks: the measurement is a part of the elements, as they are. A A^T = I, so A^+ = A^T, which puts them in their
places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.guidance.operators.base import LinearOperator, Operator
from scorefield.numerics.errors import ArgumentError, MissingFileError
from scorefield.numerics.options import option
from scorefield.numerics.pictures import HALVES, in_box, without_half


class Selection(LinearOperator):
    """The elements that a mask keeps, (n,) in the order of the event.

    keep  True where an element is known, of the event's shape

    Raises ArgumentError if it keeps all or none. One use:

    >>> from scorefield.guidance.operators import Selection
    >>> Selection(torch.tensor([True, False, True]))(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 3.]])
    """

    places: Tensor

    def __init__(self, keep: Tensor):
        known = int(keep.sum())
        if not 0 < known < keep.numel():
            raise ArgumentError(f"a mask must keep some elements and hide some; this one keeps {known} of {keep.numel()}",
                                "operator")
        super().__init__(keep.shape, (known,))
        self.register_buffer("places", keep.flatten().nonzero()[:, 0], persistent=False)
        self.register_buffer("eigenvalues", torch.ones(known, dtype=torch.float64), persistent=False)

    @property
    def keep(self) -> Tensor:
        """True where an element is known, of the event's shape."""
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool, device=self.places.device)
        return mask.index_fill(0, self.places, True).reshape(self.shape)

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        """x with the known elements in their places, to the bit."""
        self.check_measurement(y)
        return x.flatten(1).index_copy(1, self.places, y.to(x).expand(len(x), -1)).reshape(x.shape)

    def _measure(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.places)

    def _transpose(self, y: Tensor) -> Tensor:
        empty = y.new_zeros(len(y), math.prod(self.shape))
        return empty.index_copy(1, self.places, y).reshape(len(y), *self.shape)


@dataclass(frozen=True)
class Mask:
    """A mask by one of four rules; by default a box of half the sides in the middle is missing."""

    box: float | None = option(None, "missing: a box in the middle, of this share of each side")
    random: float | None = option(None, "missing: this share of the pixels, drawn by the seed")
    half: str | None = option(None, "missing: left, right, top or bottom")
    path: str | None = option(None, "a picture of the event's size: known where it is white, missing where black")

    def make(self, shape: Sequence[int], seed: int = 0) -> Operator:
        chosen = [name for name in ("box", "random", "half", "path") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ArgumentError(f"a mask has one of box, random, half and path; got {' and '.join(chosen)}", "operator")
        plane = tuple(shape[1:]) if len(shape) == 3 else tuple(shape)      # all channels of a pixel are known, or none
        known = getattr(self, f"_{chosen[0] if chosen else 'box'}")(plane, seed)
        return Selection(torch.as_tensor(known).expand(shape) if len(shape) == 3 else torch.as_tensor(known))

    def _box(self, plane: tuple[int, ...], seed: int) -> Tensor:
        return ~in_box(plane, _share(0.5 if self.box is None else self.box, "box"))

    def _random(self, plane: tuple[int, ...], seed: int) -> Tensor:
        assert self.random is not None
        n = math.prod(plane)
        missing = round(_share(self.random, "random") * n)
        known = torch.ones(n, dtype=torch.bool)
        known[torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).permutation(n)[:missing])] = False
        return known.reshape(plane)

    def _half(self, plane: tuple[int, ...], seed: int) -> Tensor:
        if self.half not in HALVES or -HALVES[self.half][0] > len(plane):
            allowed = [word for word, (axis, _) in HALVES.items() if -axis <= len(plane)]
            raise ArgumentError(f"half must be one of {', '.join(allowed)}, got {self.half!r}", "operator")
        return without_half(plane, self.half)

    def _path(self, plane: tuple[int, ...], seed: int) -> Tensor:
        assert self.path is not None
        grey = read_grey(self.path)
        if grey.shape != plane:
            raise ArgumentError(f"{self.path} is a mask of {' x '.join(map(str, grey.shape))}, and the events are "
                                f"{' x '.join(map(str, plane))}", "operator")
        return torch.from_numpy(grey > 127)


def _share(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise ArgumentError(f"{name} is a share between 0 and 1, got {value:g}", "operator")
    return value


def read_grey(path: str) -> np.ndarray:
    """A picture file as bytes of grey, (height, width); one line for a file that is missing or no picture."""
    from PIL import Image

    if not Path(path).is_file():
        raise MissingFileError(f"there is no file {path}", "operator")
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArgumentError(f"{path} cannot be read as a picture ({type(error).__name__})", "operator") from error
