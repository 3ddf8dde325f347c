"""Times of a chain drawn in proportion to their losses (Nichol and Dhariwal 2021, section 3.3).

    p_t ~ sqrt(E[L_t^2]),      weight 1 / (T p_t)

with the mean over the last KEPT losses at each of the T times. Until every time has as many, p_t is uniform. A share LEAST
of it is always uniform, so that no time is left out and the weighted mean of the losses stays unbiased.

The history is a part of the state of a run. Every process keeps the whole one: after each update it takes in the losses of
all processes in the order of the batch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.sde_lib.sde import SDE
from scorefield.training.times import TIME_SAMPLERS

KEPT = 10
LEAST = 1e-3


class LossHistory:
    """The last losses at each time of a chain, and times drawn by them.

    losses  float64 (T, KEPT), in no order; counts  int64 (T,): how many a time has had

    Raises ArgumentError for an SDE that is not a chain's.
    """

    def __init__(self, sde: SDE, sampling: str):
        if sde.steps is None:
            raise ArgumentError(f"times drawn by their losses need a chain, and {sde} is none; choose sde.name=ddpm, or "
                                "leave out resample", "method")
        self.steps, self.t_max, self.sampling = sde.steps, sde.t_max, sampling
        self.losses = torch.zeros(self.steps, KEPT, dtype=torch.float64)
        self.counts = torch.zeros(self.steps, dtype=torch.int64)
        self._noted: list[tuple[Tensor, Tensor]] = []

    def probabilities(self) -> Tensor:
        """p_t, float64 (T,)."""
        uniform = torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        if bool((self.counts < KEPT).any()):
            return uniform
        size = self.losses.square().mean(1).sqrt()
        return torch.lerp(size / size.sum(), uniform, LEAST) if bool(size.sum() > 0) else uniform

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times t ~ p and weights 1 / (T p_t), both float64 (batch,)."""
        p = self.probabilities()
        sums = p.cumsum(0)
        u = TIME_SAMPLERS[self.sampling](batch, generator)
        index = torch.searchsorted(sums, u * sums[-1], right=True).clamp(max=self.steps - 1)
        return self.t_max * (index + 1).double() / self.steps, 1 / (self.steps * p[index])

    def note(self, t: Tensor, losses: Tensor) -> None:
        """Keep the losses (batch,) at times t for `learn`."""
        self._noted.append((t, losses.detach()))

    def learn(self, world: World) -> None:
        """Take in what has been noted, of all processes, which must call this together; what is not finite is left out."""
        if not self._noted:
            return
        noted = torch.cat([torch.stack([t.float(), losses.float()], 1) for t, losses in self._noted])
        self._noted = []
        for t, loss in world.interleaved(noted).tolist():
            index = round(t / self.t_max * self.steps) - 1
            if abs(loss) < float("inf"):
                self.losses[index, self.counts[index] % KEPT] = loss
                self.counts[index] += 1

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one of another chain is left out."""
        if state["losses"].shape == self.losses.shape:
            self.losses.copy_(state["losses"])
            self.counts.copy_(state["counts"])
