"""Diffusion Schroedinger bridge: iterative proportional fitting (IPF) with cached paths and the mean-matching loss.

De Bortoli et al. 2021, "Diffusion Schroedinger Bridge", algorithm 1. In turns, one direction is learned from paths of the
other, which stays as it is meanwhile; at first that is the reference itself, from the source. With times 0 = s_0 < .. < s_N
= 1 seen from the goal, y = x / alpha, and O_k(y), the mean of the other direction's step from y at s_k, a path is

    y_(k+1) = O_k(y_k) + sqrt(V(s_(k+1)) - V(s_k)) z

from examples of the goal, and the mean of the step back is learned by (their proposition 3)

    loss = E | B_(k+1)(y_(k+1)) - [y_(k+1) + O_k(y_k) - O_k(y_(k+1))] |^2 / (V(s_(k+1)) - V(s_k))

per element, without the gradients of the other. The network gives the end that B points to, B = y + (u_(k+1) - u_k) /
u_(k+1) (m - y). What is kept are the states y_(k+1), and the ends to which the brackets point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.bridge import GOALS, Bridge
from scorefield.models.networks.two_way import SOURCE
from scorefield.models.score_model import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.reference import crowded
from scorefield.sde_lib.sde import expand_as
from scorefield.training.objectives.bridging import Bridging, Lot
from scorefield.training.objectives.objective import Batch


@dataclass(frozen=True)
class DSB(Bridging):
    """The training loss of a bridge by iterative proportional fitting.

        objective = DSB(ends=ends, turn=1000, sim_steps=20)

    turn     updates of one direction, before the other one's turn; two turns are an iteration
    refresh  updates between simulations of paths within a turn, by new examples and noise

    The other arguments are those of Bridging. Raises ArgumentError also for a training that ends in its first iteration,
    when one direction has learned nothing.
    """

    turn: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.turn <= 10**12:
            raise ArgumentError(f"turn must be at least 1, got {self.turn}", "turn")
        if self.updates is not None and self.updates < 2 * self.turn:
            raise ArgumentError(f"training ends after {self.updates} updates, before both directions have had their turn of "
                                f"{self.turn}; set training.steps to at least {2 * self.turn}", "turn", "training.steps")

    def goal(self) -> str:
        """The end toward which is learned now."""
        return GOALS[self.progress.updates // self.turn % 2]

    def loss(self, model: Bridge, batch: Batch, draw: Lot) -> Tensor:
        """(batch,), with a gradient by the network toward the end of this turn only."""
        progress, goal = self.progress, self.goal()
        known, row = self.known(model, batch, draw, stale=progress.made_at // self.turn != progress.updates // self.turn)
        bridge, times = model.toward(goal), crowded(self.sim_steps, self.crowding).flip(0)
        k = (draw.time * self.sim_steps).long().clamp(max=self.sim_steps - 1).cpu()
        alpha, u = bridge.sde.alpha(times), bridge.sde.share(times)
        s, at, passed = times[1:][k], alpha[1:][k], (u.diff() / u[1:].square())[k]
        y, pointed = (known[name][row, k.to(row.device)] for name in ("state", "end"))
        mean = bridge.goal_mean(expand_as(at, y) * y, s.to(y))
        weight = (passed / bridge.sde.total).to(y)
        return weight * (mean - pointed).square().flatten(1).mean(1)

    @torch.no_grad()
    def simulated(self, model: Bridge, source: Tensor, target: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        goal = self.goal()
        bridge, first = model.toward(goal), self.progress.updates < self.turn
        times = crowded(self.sim_steps, self.crowding).flip(0)
        alpha, u = bridge.sde.alpha(times), bridge.sde.share(times).tolist()
        other, y = bridge.back, source if goal == SOURCE else target
        states, ends = [], []

        def stepped(y: Tensor, k: int) -> Tensor:
            """O_k(y)."""
            if first:
                return y
            start = other.goal_mean(float(alpha[k]) * y, 1 - times[k]) / bridge.sde.end
            return y + (u[k + 1] - u[k]) / (1 - u[k]) * (start - y)

        with evaluation_mode(model):
            for k in range(self.sim_steps):
                mean, moved = stepped(y, k), u[k + 1] - u[k]
                z = torch.randn(y.shape, generator=generator, device=y.device)
                y = torch.add(mean, z, alpha=(bridge.sde.total * moved) ** 0.5)
                states.append(y)
                ends.append(y + u[k + 1] / moved * (mean - stepped(y, k)))
        return {"state": torch.stack(states, 1), "end": torch.stack(ends, 1)}

