"""Checks of the input that every likelihood shares."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE


def check_input(model: ScoreModel, x: Tensor) -> None:
    """ValueError unless x (batch, *event) is finite, and x and the network's arithmetic are float32 or float64."""
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"x must have the shape (batch, *event) with something in it, got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}: less is too rough for a likelihood")
    finite = x.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"x holds values that are not finite (example {int((~finite).nonzero()[0])} of the batch)")
    rough = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    if rough or any(getattr(part, "autocast", None) is not None for part in model.modules()):      # of a wrapper, too
        raise ValueError("likelihoods need a network in float32 or float64: reduced precision makes the ODE's right-hand "
                         "side too rough for adaptive steps, and loosens a bound; set denoiser.autocast = None, and hold "
                         "the weights in float32")


def start_time(sde: SDE, t_min: float | None) -> float:
    """t_min, or the SDE's own; ValueError if the SDE has no such time."""
    start = sde.t_min if t_min is None else t_min
    if not sde.t_min <= start < sde.t_max:
        raise ArgumentError(f"t_min must lie in [{sde.t_min:g}, {sde.t_max:g}) for {sde}, got {start}", "t_min")
    return start


@contextmanager
def fitting(x: Tensor) -> Iterator[None]:
    """Around a forward of the network: its complaint about the shape of x, as a ValueError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"events of shape {tuple(x.shape[1:])} do not fit the network: "
                         f"{str(error).splitlines()[0][:150]}") from error
