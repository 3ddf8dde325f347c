"""What broke a step: which step first had a gradient or a loss that is not finite, and which of its examples did it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.numerics.processes import own

CHUNK = 64       # steps whose figures wait on the device until they are looked at together
SHOWN = 8        # examples that a message names


class Watch:
    """The first step since `restart` with a loss or a gradient norm that is not finite, without a wait at each step.

    The figures of CHUNK steps are kept as they come from the device, which costs nothing, and are then reduced there to the
    number of the first bad step. Only `first` waits for the device.
    """

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        self._begin, self._seen, self._figures = step, 0, list[Tensor]()
        self._first: Tensor | None = None      # of the losses and of the norms, counted from `_begin`, (2,)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """The figures of the next step."""
        self._figures += (loss, norm)
        if len(self._figures) == 2 * CHUNK:
            self._reduce()

    def first(self) -> tuple[float, float]:
        """The first steps, counted from 0, whose loss, and whose gradient norm, is not finite; inf for none."""
        self._reduce()
        if self._first is None:
            return math.inf, math.inf
        loss, norm = self._first.tolist()
        return self._begin + loss, self._begin + norm

    def _reduce(self) -> None:
        if not self._figures:
            return
        bad = ~torch.stack(self._figures).reshape(-1, 2).isfinite()
        steps = torch.arange(self._seen, self._seen + len(bad), device=bad.device, dtype=torch.float32)
        found = torch.where(bad, steps[:, None], math.inf).amin(0)
        self._first = found if self._first is None else torch.minimum(self._first, found)
        self._seen, self._figures = self._seen + len(bad), []


@torch.no_grad()
def diagnosis(step: int, batches: Any, objective: Any, model: Any) -> tuple[str, bool]:
    """What is wrong in the step of that number, counted from 0, as a clause; and whether it is the data.

    The weights must be those before the step. The batch and its draw depend on the step alone, so they are made again, and
    the loss of each example is looked at.
    """
    batch, draw = batches(step)
    loss = objective.loss(model, batch, draw)      # first: processes that share a network compute it together
    mine = batches.indices(step) if hasattr(batches, "indices") else None
    if bool((bad := _bad(batch.x)).any()):
        return f"the training {_examples(bad, mine)} hold numbers that are not finite", True
    if bool((bad := _bad(loss)).any()):
        return f"the loss of {_examples(bad, mine)} is not finite", False
    every = torch.ones(len(batch.x), dtype=torch.bool)
    return f"the gradient of its {_examples(every, mine)} is not finite", False


def _bad(values: Tensor) -> Tensor:
    return ~values.isfinite().reshape(len(values), -1).all(1).cpu()


def _examples(chosen: Tensor, numbers: Tensor | None) -> str:
    """The examples that are chosen from a batch, by their numbers in the training split."""
    if numbers is None:
        return f"examples ({int(chosen.sum())} of {len(chosen)})"
    found: Sequence[int] = numbers[chosen].tolist()
    rest = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"examples {', '.join(map(str, found[:SHOWN]))}{rest}"


def finite(state: Any) -> bool:
    """Whether every tensor in nested mappings and sequences is finite; of those in shares, this process's share."""
    if isinstance(state, Tensor):
        state = own(state)
        return not state.is_floating_point() or bool(state.isfinite().all())
    if isinstance(state, dict):
        return all(finite(value) for value in state.values())
    return all(finite(value) for value in state) if isinstance(state, list | tuple) else True
