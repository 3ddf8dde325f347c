"""Bridges between Gaussians by DSBM and DSB beside the closed form, iteration by iteration, with exact regression.

    python benchmarks/bridges.py

Each network is linear in x and piecewise linear in time, so that the mean of the closed form is within reach, and each
regression is solved to its minimum (L-BFGS on one large batch). What is left of error is that of the iterations, of the steps of
the simulated paths, and of the number of examples.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scorefield.models.bridge import Bridge
from scorefield.models.gaussian_bridge import Gaussian, GaussianBridge
from scorefield.models.networks.two_way import SOURCE, TARGET, TwoWay
from scorefield.numerics.processes import World
from scorefield.samplers import make_sampler
from scorefield.sde_lib import SDE, BrownianSDE
from scorefield.sde_lib.reference import warped
from scorefield.training.draws import Draws
from scorefield.training.objectives import DSB, DSBM, Bridging
from scorefield.training.objectives.objective import Batch

KNOTS = 16


class Hats(nn.Module):
    """A(s) x + b(s), piecewise linear in the time s between knots that crowd at both ends; A and b start at zero."""

    def __init__(self, d: int, knots: int = KNOTS):
        super().__init__()
        self.register_buffer("knots", warped(torch.linspace(0, 1, knots, dtype=torch.float64), 2.0))
        self.maps = nn.Parameter(torch.zeros(knots, d, d + 1, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        s, knots = time.double() / 999, self.knots
        after = torch.bucketize(s, knots[1:-1]) + 1
        part = ((s - knots[after - 1]) / (knots[after] - knots[after - 1]))[:, None]
        one = torch.cat([x, torch.ones_like(x[:, :1])], 1)[:, :, None]
        # the maps of both knots at all x, by matrix products of those that share a knot
        moved = [torch.bmm(self.maps[k], one)[:, :, 0] for k in (after - 1, after)]
        return moved[0].lerp(moved[1], part.expand_as(x))


class Drawn:
    """Fresh examples of two Gaussians, as the ends of a bridge."""

    device = torch.device("cpu")

    def __init__(self, exact: GaussianBridge):
        self.exact = exact

    def examples(self, end: str, n: int, generator: torch.Generator) -> Tensor:
        gaussian: Gaussian = self.exact.of_end[end]
        z = torch.randn(n, len(gaussian.mean), generator=generator, dtype=torch.float64)
        return gaussian.mean + z @ torch.linalg.cholesky(gaussian.covariance).mT


def problem(d: int, sde: SDE, seed: int = 0) -> GaussianBridge:
    """A bridge between two Gaussians of d dimensions with random means and covariances of mean variance about 1."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian() -> tuple[Tensor, Tensor]:
        a = torch.randn(d, d, generator=generator, dtype=torch.float64)
        return torch.randn(d, generator=generator, dtype=torch.float64), a @ a.mT / d + 0.3 * torch.eye(d).double()

    return GaussianBridge(sde, gaussian(), gaussian())


def iterations(kind: type[Bridging], exact: GaussianBridge, count: int, batch: int, sim_steps: int = 20) -> Iterator[Bridge]:
    """The bridge after each regression: an iteration of DSBM, or one direction's turn of DSB."""
    d, ends = len(exact.cross_covariance), Drawn(exact)
    bridge = Bridge(TwoWay(Hats(d), Hats(d)), exact.reference)
    own = {"first_updates": 1} if kind is DSBM else {"turn": 1}
    objective = kind(ends=ends, paths=batch, refresh=1, sim_steps=sim_steps, **own)      # type: ignore[arg-type]
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        source, target = (ends.examples(end, batch, generator) for end in (SOURCE, TARGET))
        examples = Batch(source, {"target": target})
        lot = objective.draw(examples, Draws(batch, i, ends.device))
        lot = lot._replace(eps=torch.randn(source.shape, generator=generator, dtype=torch.float64),
                           row=torch.randperm(batch, generator=generator))
        optimizer = torch.optim.LBFGS(bridge.network.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def loss(examples: Batch = examples, lot: object = lot) -> Tensor:
            optimizer.zero_grad()
            value = objective.loss(bridge, examples, lot).mean()
            value.backward()
            return value

        optimizer.step(loss)      # type: ignore[no-untyped-call]
        objective.stepped(World())
        yield bridge


def errors(bridge: Bridge, exact: GaussianBridge, goal: str, n: int, steps: int = 20) -> tuple[float, float, float]:
    """Of n samples toward a goal: the largest error of the mean over the largest standard deviation, and of the covariance and
    the cross-covariance, as Frobenius norms over those of the closed form.
    """
    start = exact.toward(goal).sde.prior
    x1 = start.sample((len(start.mean),), range(n), dtype=torch.float64)
    x0 = make_sampler("bridge", steps=steps)(bridge.toward(goal, start), x1, range(n)).x
    d, own, cross = len(start.mean), exact.of_end[goal], exact.cross_covariance
    found = torch.cov(torch.cat([x0, x1], 1).mT)
    cross = cross if goal == SOURCE else cross.mT
    mean = float((x0.mean(0) - own.mean).abs().max() / own.covariance.diagonal().max().sqrt())
    return (mean, float((found[:d, :d] - own.covariance).norm() / own.covariance.norm()),
            float((found[:d, d:] - cross).norm() / cross.norm()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=6)
    arguments = parser.parse_args()
    print("| objective | D | iteration | mean | covariance | cross-covariance |\n|---|---|---|---|---|---|")
    for kind, per in ((DSBM, 1), (DSB, 2)):
        for d in (1, 5):
            exact = problem(d, BrownianSDE())
            for i, bridge in enumerate(iterations(kind, exact, per * arguments.count, arguments.batch), 1):
                if i % per == 0:
                    both = [errors(bridge, exact, goal, arguments.samples) for goal in (SOURCE, TARGET)]
                    shown = " | ".join(f"{100 * max(pair):.1f} %" for pair in zip(*both, strict=True))
                    print(f"| {kind.__name__} | {d} | {i // per} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
