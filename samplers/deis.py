"""Multistep rules that predict the noise: DEIS and iPNDM.

With z = x / alpha and rho = sigma / alpha the flow of any SDE is dz/drho = eps, so that exactly

    x_(i+1) = alpha_(i+1) / alpha_i x_i + alpha_(i+1) int eps drho        over [rho_i, rho_(i+1)]

DEIS (Zhang and Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", equations 14 and 15) integrates a
polynomial through the last values of eps, in t ("tAB"), in rho ("rhoAB") or in log rho, exactly. iPNDM (their appendix H.2,
after Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds") takes one DDIM step with the combination
of the last values that Adams and Bashforth have for equal steps, whatever the steps are.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option
from scorefield.numerics.quadrature import LEGENDRE, lagrange
from scorefield.samplers.base import GRID
from scorefield.samplers.multistep import MultistepSampler, Rule, Schedule, prediction

VARIABLES = ("t", "rho", "log_rho")
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True, kw_only=True)
class NoiseMultistep(MultistepSampler):
    """Rules whose prediction is eps, of order 1 (DDIM) to 4; a subclass writes the weights of a step."""

    order: int = option(3, "values of eps that a step combines, 1 to 4")
    grid: str | Sequence[float] = option("quadratic", GRID)

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise ArgumentError(f"order must lie between 1 and 4, got {self.order}", "order")

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        return prediction("noise", s)

    def rules(self, s: Schedule) -> list[Rule]:
        n = len(s.lam) - 1
        weights = [s.alpha[i + 1] * self.weights(s, i, min(self.order, i + 1)) for i in range(n)]
        return [Rule(float(s.alpha[i + 1] / s.alpha[i]), weights[i].tolist()) for i in range(n)]

    @abstractmethod
    def weights(self, s: Schedule, i: int, depth: int) -> np.ndarray:
        """(depth,): of the last values of eps, newest first, in the integral of eps over rho from time i to i + 1."""


@dataclass(frozen=True, kw_only=True)
class DEIS(NoiseMultistep):
    """DEIS, one evaluation a step. tAB-r of the paper, a polynomial of degree r in t, has the order r + 1."""

    variable: str = option("t", "of the polynomial: t (tAB), rho = sigma / alpha (rhoAB), or log_rho")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable not in VARIABLES:
            raise ArgumentError(f"unknown variable {self.variable!r}; choose from {', '.join(VARIABLES)}", "variable")

    def weights(self, s: Schedule, i: int, depth: int) -> np.ndarray:
        places, weights = LEGENDRE
        half = (s.lam[i + 1] - s.lam[i]) / 2
        lam = s.lam[i] + half * (places + 1)
        if self.variable == "t":
            at_nodes, at_places = s.t, s.time(lam)
        elif self.variable == "rho":
            at_nodes, at_places = np.exp(-s.lam), np.exp(-lam)
        else:
            at_nodes, at_places = -s.lam, -lam
        basis = lagrange(at_nodes[i - depth + 1:i + 1][::-1], at_places)
        return basis @ (-half * weights * np.exp(-lam))      # drho = -rho dlambda


@dataclass(frozen=True, kw_only=True)
class IPNDM(NoiseMultistep):
    """iPNDM, one evaluation a step. Order 2 on grids that are smooth in t, since its weights are those of equal steps."""

    order: int = option(4, "values of eps that a step combines, 1 to 4")

    def weights(self, s: Schedule, i: int, depth: int) -> np.ndarray:
        return np.array(ADAMS_BASHFORTH[depth - 1]) * (np.exp(-s.lam[i + 1]) - np.exp(-s.lam[i]))
