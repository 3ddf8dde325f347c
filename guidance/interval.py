"""An interval of time within which a guidance holds (Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval
Improves Sample and Distribution Quality in Diffusion Models", who state it in noise levels).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, as_time


@dataclass(frozen=True)
class Interval:
    """The times low <= t <= high of a process whose times end at t_max."""

    low: float
    high: float
    t_max: float

    @classmethod
    def of(cls, times: tuple[float, float] | None, sde: SDE) -> "Interval | None":
        """The interval between two times; None for all times. ArgumentError unless 0 <= LO < HI <= t_max."""
        if times is None:
            return None
        try:
            low, high = (float(end) for end in times)
        except (TypeError, ValueError):
            low = high = math.nan
        if not 0 <= low < high <= sde.t_max:
            raise ArgumentError(f"interval must be two times (LO, HI) with 0 <= LO < HI <= {sde.t_max:g}, got {times}",
                                "interval")
        return None if (low, high) == (0, sde.t_max) else cls(low, high, sde.t_max)

    def holds(self, t: float | Tensor) -> bool | Tensor:
        """Whether t lies within; for t (batch,) which of it do, a mask (batch,), unless it is all or none.

        A tensor on another device than the CPU gives a mask, since reading it would make the CPU wait.
        """
        t = as_time(t)
        t = t.clamp(0, self.t_max)      # the rounding that check_time allows
        mask = (self.low <= t) & (t <= self.high)
        if t.device.type != "cpu" or torch.compiler.is_compiling():
            return mask
        return mask if t.ndim and bool(mask.any()) and not bool(mask.all()) else bool(mask.any())


def holds(interval: Interval | None, t: float | Tensor) -> bool | Tensor:
    """As Interval.holds; True where there is no interval."""
    return True if interval is None else interval.holds(t)
