"""Multistep rules for reverse-time SDEs of any amount of noise, predicting the data: SA-Solver and ER-SDE-Solver.

Both solve the linear part of an SDE exactly, draw its noise exactly, and replace x_0 by a polynomial:

    SA-Solver   x_t = sigma_t e^(-tau^2 h) / sigma_s x_s + sigma_t sqrt(1 - e^(-2 tau^2 h)) z
                      + sigma_t (1 + tau^2) int e^(lambda - tau^2 (lambda_t - lambda)) x_0 dlambda
    ER-SDE      x_t = alpha_t / alpha_s r x_s + alpha_t [(1 - r) x_0 + ...] + alpha_t sqrt(rho_t^2 - r^2 rho_s^2) z
                      r = phi(rho_t) / phi(rho_s),  rho = sigma / alpha

for a step from s to t, with the integral over [lambda_s, lambda_t] and h its length.

Xue et al. 2023 ("SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", propositions 4.2 and 4.3), with
tau constant within a step; Cui et al. 2023 ("Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion
Models", propositions 3 to 5). tau = 0 and phi(rho) = rho are the probability flow, tau = 1 and phi(rho) = rho^2 the
reverse-time SDE.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option
from scorefield.numerics.quadrature import LEGENDRE, lagrange
from scorefield.samplers.multistep import MultistepSampler, Rule, Schedule, prediction

PHI: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "er": lambda rho: rho * (np.exp(rho**0.3) + 10),      # their ER SDE 5
    "sde": lambda rho: rho**2,
    "ode": lambda rho: rho,
}


@dataclass(frozen=True, kw_only=True)
class SASolver(MultistepSampler):
    """SA-Solver: Adams predictor and corrector for a reverse-time SDE, one evaluation a step."""

    order: int = option(3, "order of the predictor without noise, 1 to 4")
    correct: bool = option(True, "improve each step with a corrector of one order more, which needs no extra evaluation")
    tau: float = option(1.0, "noise of the reverse process: 1 is the reverse-time SDE, 0 the probability flow")
    s_min: float = option(0.0, "smallest level sigma/alpha at which a step has noise")
    s_max: float = option(math.inf, "largest level sigma/alpha at which a step has noise")

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise ArgumentError(f"order must lie between 1 and 4, got {self.order}", "order")
        if not 0 <= self.tau <= 10:
            raise ArgumentError(f"tau must lie in [0, 10], got {self.tau}", "tau")
        if not 0 <= self.s_min <= self.s_max:
            raise ArgumentError(f"need 0 <= s_min <= s_max, got {self.s_min} and {self.s_max}", "s_min", "s_max")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.tau > 0

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        return prediction("data", s)

    def rules(self, s: Schedule) -> list[Rule]:
        n = len(s.lam) - 1
        rules = []
        for i in range(n):
            tau = self.tau if self.s_min <= math.exp(-s.lam[i]) <= self.s_max else 0.0
            earlier = s.lam[max(i - self.order + 1, 0):i + 1][::-1]
            correct: Sequence[float] = ()
            if self.correct and i < n - 1:
                correct = self._weights(s, i, np.concatenate([s.lam[i + 1:i + 2], earlier]), tau)
            decay = math.exp(-tau**2 * (s.lam[i + 1] - s.lam[i]))
            rules.append(Rule(float(s.sigma[i + 1] / s.sigma[i] * decay), self._weights(s, i, earlier, tau), correct,
                              float(s.sigma[i + 1] * math.sqrt(1 - decay**2))))
        return rules

    def _weights(self, s: Schedule, i: int, nodes: np.ndarray, tau: float) -> list[float]:
        places, weights = LEGENDRE
        half = (s.lam[i + 1] - s.lam[i]) / 2
        lam = s.lam[i] + half * (places + 1)
        # sigma_t e^lambda = alpha_t e^(lambda - lambda_t)
        kernel = s.alpha[i + 1] * (1 + tau**2) * np.exp((1 + tau**2) * (lam - s.lam[i + 1]))
        return (lagrange(nodes, lam) @ (half * weights * kernel)).tolist()


@dataclass(frozen=True, kw_only=True)
class ERSDE(MultistepSampler):
    """ER-SDE-Solver, one evaluation a step: Taylor expansions of x_0 in rho by differences of its last values."""

    order: int = option(3, "terms of the expansion, 1 to 3")
    phi: str = option("er", "noise of the reverse process: er, the authors' rho (exp(rho^0.3) + 10); sde; or ode, none")

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ArgumentError(f"order must lie between 1 and 3, got {self.order}", "order")
        if self.phi not in PHI:
            raise ArgumentError(f"unknown phi {self.phi!r}; choose from {', '.join(PHI)}", "phi")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.phi != "ode"

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        return prediction("data", s)

    def rules(self, s: Schedule) -> list[Rule]:
        n = len(s.lam) - 1
        return [self._rule(s, i, min(self.order, i + 1)) for i in range(n)]

    def _rule(self, s: Schedule, i: int, order: int) -> Rule:
        phi, rho = PHI[self.phi], np.exp(-s.lam)
        start, end = rho[i], rho[i + 1]
        r = float(phi(end) / phi(start))
        places, weights = LEGENDRE
        half = (s.lam[i + 1] - s.lam[i]) / 2
        inner = np.exp(-(s.lam[i] + half * (places + 1)))
        per_phi = half * weights * inner / phi(inner)      # of the integral of 1 / phi over rho, from the end to the start
        of_x0 = np.zeros(order)
        of_x0[0] = 1 - r
        if order > 1:
            slope = np.zeros(order)
            slope[:2] = np.array([1.0, -1.0]) / (start - rho[i - 1])
            of_x0 += (end - start + phi(end) * per_phi.sum()) * slope
        if order > 2:
            before = np.array([0.0, 1.0, -1.0]) / (rho[i - 1] - rho[i - 2])
            curvature = (slope - before) / ((start - rho[i - 2]) / 2)
            of_x0 += ((end - start) ** 2 / 2 + phi(end) * (per_phi * (inner - start)).sum()) * curvature
        noise = math.sqrt(max(end**2 - (r * start) ** 2, 0.0)) if self.stochastic else 0.0
        return Rule(float(s.alpha[i + 1] / s.alpha[i] * r), (s.alpha[i + 1] * of_x0).tolist(),
                    noise=float(s.alpha[i + 1] * noise))
