"""Diffusion Schroedinger bridge matching: both directions of the Markov process whose bridges join pairs of ends.

Shi et al. 2023, "Diffusion Schroedinger Bridge Matching", algorithm 1 (iterative Markovian fitting, IMF; also Peluchetti
2023, "Diffusion Bridge Mixture Transports"). With pairs (x_0, x_1) of source and target, and x_t on the reference's bridge
between,

    loss = E_t | (m_0(x_t, t) - x_0) / c_0(t) |^2 / 2 + | (m_1(x_t, t) - x_1) / c_1(t) |^2 / 2

per element, so that each network learns the mean of its end (models/bridge.py), with c the scale of its output. The pairs
are independent at first. Then, again and again, half of them are simulated from examples of the source and half from
examples of the target: their ends are those of the process that was learned last. The Schroedinger bridge is the only fixed
point (their theorem 8). Both directions learn from the same pairs, so at any time they are those of one process, whose flow
is known; half of the ends of pairs are examples, so an error of simulation is halved each time (compare their section
4.1; De Bortoli et al. 2024, "Schroedinger Bridge Flow", do both in each step). Nothing is kept of a path but its ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.bridge import Bridge
from scorefield.models.networks.two_way import SOURCE, TARGET
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import expand_as
from scorefield.training.objectives.bridging import Bridging, Lot, followed, target_of, time_of
from scorefield.training.objectives.objective import Batch


@dataclass(frozen=True)
class DSBM(Bridging):
    """The training loss of a bridge by iterative Markovian fitting.

        objective = DSBM(ends=ends, first_updates=500, refresh=250)

    first_updates  on independent pairs
    refresh        updates between simulations of pairs, each of which begins an iteration
    paths          pairs that are simulated at a time, half of them toward each end

    The other arguments are those of Bridging.
    """

    first_updates: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.first_updates <= 10**12:
            raise ArgumentError(f"first_updates must be at least 1, got {self.first_updates}", "first_updates")

    def loss(self, model: Bridge, batch: Batch, draw: Lot) -> Tensor:
        """The mean over both directions and all elements, (batch,)."""
        if self.progress.updates < self.first_updates and not draw.held_out:
            source, target = batch.x, target_of(batch)
        else:
            known, row = self.known(model, batch, draw, stale=self.progress.made_at < self.first_updates)
            source, target = known[SOURCE][row], known[TARGET][row]
        t = time_of(draw.time, self.crowding)
        a, b, std = (expand_as(of_t, source) for of_t in model.sde.between(t))
        x = a * source + b * target + std * draw.eps
        to_source, to_target, of_source, of_target = model.ends(x, t)
        errors = ((to_source - source) / of_source).square() + ((to_target - target) / of_target).square()
        return errors.flatten(1).mean(1) / 2

    def simulated(self, model: Bridge, source: Tensor, target: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        half = (len(source) + 1) // 2
        known, other = source[:half], target[half:]
        there = followed(model.toward(TARGET), known, self.sim_steps, self.crowding, generator)
        back = followed(model.toward(SOURCE), other, self.sim_steps, self.crowding, generator)
        return {SOURCE: torch.cat([known, back]), TARGET: torch.cat([there, other])}
