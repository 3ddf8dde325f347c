"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework"), orders 1 to 3, after algorithms 1 to 4.

With z = h for noise prediction and -h for data prediction, r_j = (lambda_(i-j) - lambda_i)/h the places of the earlier
predictions (and r = 1 the new one for the corrector), D_j = (m_j - m_0)/r_j and B = z ("bh1") or e^z - 1 ("bh2"),

    x_(i+1) = keep x_i - scale [phi_1 m_0 + B sum_j rho_j D_j]

where the rho solve sum_j r_j^(k-1) rho_j = k! phi_(k+1)(z) / B for k = 1, 2, ... (their theorem 3.1).
"""

import math
from dataclasses import dataclass

import numpy as np

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option
from scorefield.samplers.dpm_solver import Step
from scorefield.samplers.multistep import PREDICTIONS, MultistepSampler, Rule, Schedule, prediction

VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True, kw_only=True)
class UniPC(MultistepSampler):
    """UniPC with its corrector, one evaluation a step."""

    order: int = option(2, "order of the predictor: 1, 2 or 3; the corrector has one order more")
    prediction: str = option("data", "data or noise")
    variant: str = option("bh2", "bh1 or bh2, the function B")
    lower_order_final: bool = option(False, "lower the order in the last steps, as diffusers does below 15 steps")

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ArgumentError(f"order must be 1, 2 or 3, got {self.order}", "order")
        if self.prediction not in PREDICTIONS:
            raise ArgumentError(f"unknown prediction {self.prediction!r}; choose from {', '.join(PREDICTIONS)}",
                                "prediction")
        if self.variant not in VARIANTS:
            raise ArgumentError(f"unknown variant {self.variant!r}; choose from {', '.join(VARIANTS)}", "variant")

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        return prediction(self.prediction, s)

    def rules(self, s: Schedule) -> list[Rule]:
        n = len(s.lam) - 1
        return [self.rule(s, i, min(self.order, i + 1, n - i if self.lower_order_final else self.order),
                          corrector=i < n - 1) for i in range(n)]

    def rule(self, s: Schedule, i: int, order: int, corrector: bool) -> Rule:
        h = s.lam[i + 1] - s.lam[i]
        step = Step.between(self.prediction, (s.alpha[i], s.alpha[i + 1]), (s.sigma[i], s.sigma[i + 1]), h)
        earlier = [(s.lam[i - j] - s.lam[i]) / h for j in range(1, order)]
        predict = self._weights(step, earlier)
        correct = self._weights(step, [*earlier, 1.0]) if corrector else []
        # the corrector's newest prediction stands last among its r, and comes first in the history
        return Rule(float(step.keep), predict, [correct[-1], *correct[:-1]] if corrector else [])

    def _weights(self, step: Step, r: list[float]) -> list[float]:
        """Weights of m_0 and then of the prediction at each of r."""
        z, k = step.z, len(r)
        b = z if self.variant == "bh1" else math.expm1(z)
        # k! phi_(k+1): phi_2 = phi_1/z - 1 and so on, each the last over z minus 1/k!
        targets, phi, factorial = [], math.expm1(z) / z - 1, 1
        for j in range(1, k + 1):
            targets.append(phi * factorial / b)
            factorial *= j + 1
            phi = phi / z - 1 / factorial
        if k == 1:
            rho = np.array([0.5])      # as published, in place of phi_2 / B
        else:
            rho = np.linalg.solve(np.power.outer(np.array(r), np.arange(k)).T, targets) if k else np.zeros(0)
        scaled = b * rho / np.array(r) if k else rho
        weights = np.array([math.expm1(z) - scaled.sum(), *scaled])
        return (-step.scale * weights).tolist()
