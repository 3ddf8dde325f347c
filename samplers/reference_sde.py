"""Strong reference solutions of the reverse-time SDE through torchsde, on one Brownian path a sample.

With time running from 0 at t = t_max: dx = -[f x - (1 + eta^2)/2 g^2 score] dtau + eta g dw, tau = t_max - t.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import make_grid
from scorefield.numerics.noise import NoiseStream, Seed
from scorefield.numerics.options import option
from scorefield.samplers.base import ETA, CountedModel, Sampler

METHODS = {"euler": 0.5, "milstein": 1.0, "srk": 1.5}      # and their strong orders for additive noise


DEPTH = 16      # of a Brownian tree; steps number at most 2 ** DEPTH


class BrownianPaths:
    """One Brownian tree on [0, end] for each sample, seeded by itself, stacked along the batch; events flat (batch, D).

    It has what torchsde asks of a Brownian motion, and does not derive from torchsde.BaseBrownian, whose import is slow.
    A dyadic tree gives the same path whatever steps ask for it, so that solutions converge to one another. It is asked at
    multiples of 2 ** -DEPTH of [0, end] alone, which torchsde's decimal rounding of times leaves as they are.
    """

    def __init__(self, seeds: Sequence[Seed], end: float, dimensions: int, dtype: torch.dtype, device: torch.device):
        from torchsde import BrownianInterval  # slow to import, as it loads scipy

        self.end, self.paths = end, []
        for seed in seeds:
            words = list(seed) if isinstance(seed, tuple) else [int(seed), 0]
            entropy = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
            self.paths.append(BrownianInterval(0.0, 1.0, size=(1, dimensions), dtype=dtype, device=device, entropy=entropy,
                                               levy_area_approximation="space-time", halfway_tree=True, tol=10.0**-DEPTH))

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        ta, tb = (round(float(t) / self.end * 2**DEPTH) / 2**DEPTH for t in (ta, tb))
        results = [path(ta, tb, return_U=return_U, return_A=return_A) for path in self.paths]
        if isinstance(results[0], Tensor):
            return torch.cat(results) * self.end**0.5
        w, u = (torch.cat(parts) for parts in zip(*results, strict=True))
        return w * self.end**0.5, u * self.end**1.5      # u is the integral of w over the time from ta

    @property
    def dtype(self):
        return self.paths[0].dtype

    @property
    def device(self):
        return self.paths[0].device

    @property
    def shape(self):
        return (len(self.paths), *self.paths[0].shape[1:])

    @property
    def levy_area_approximation(self):
        return "space-time"

    def __repr__(self) -> str:
        return f"BrownianPaths(shape={tuple(self.shape)})"


@dataclass(frozen=True, kw_only=True)
class ReferenceSDE(Sampler):
    """torchsde's solver on equal steps in t."""

    steps: int = option(1024, "steps of the solver, a power of two, so that all solutions share the Brownian paths")
    method: str = option("srk", "euler, milstein or srk; srk takes two evaluations of the drift per step")
    eta: float = option(1.0, ETA + "; must be above 0")
    stochastic = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ArgumentError(f"unknown method {self.method!r}; choose from {', '.join(METHODS)}", "method")
        if not (0 < self.steps <= 2**DEPTH and self.steps.bit_count() == 1):
            raise ArgumentError(f"steps of torchsde must be a power of two, at most {2**DEPTH}, got {self.steps}", "steps")
        if not 0 < self.eta <= 100:
            raise ArgumentError(f"eta must lie in (0, 100], got {self.eta}; without noise use the sampler 'ode'", "eta")

    @property
    def order(self) -> float:
        return METHODS[self.method]

    def times(self, model: ScoreModel) -> Tensor:
        return make_grid("uniform", model.sde, self.steps, self.end(model))

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        import torchsde  # slow to import

        assert noise is not None
        sde, event, eta, t_max = model.sde, x.shape, self.eta, model.sde.t_max
        end = float(times[0] - times[-1])

        class Reverse(torch.nn.Module):
            noise_type, sde_type = "diagonal", "ito"

            def f(self, tau: Tensor, y: Tensor) -> Tensor:
                t = (t_max - tau.double()).clamp(t_max - end, t_max)
                state = y.reshape(event)
                return -sde.reverse_drift(state, t, model.score(state, t), eta).reshape(y.shape)

            def g(self, tau: Tensor, y: Tensor) -> Tensor:
                t = (t_max - tau.double()).clamp(t_max - end, t_max)
                return torch.full_like(y, eta * float(sde.g2(t).sqrt()))

        flat = x.flatten(1)
        paths = BrownianPaths(noise.seeds, end, flat.shape[1], x.dtype, x.device)
        taus = (t_max - times).to(x.device)
        states = torchsde.sdeint(Reverse(), flat, taus, bm=paths, method=self.method, dt=end / self.steps)
        for state in states[1:]:
            yield state.reshape(event)
