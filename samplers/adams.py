"""An exponential Adams predictor-corrector on the probability-flow ODE: the sampler "auto".

The flow of data N(0, v I) is known: z = x / alpha is proportional to R(lambda) = sqrt(v + e^(-2 lambda)). For other data,
y = z / R moves by the difference between the data's prediction and that of the Gaussian,

    dy/dlambda = (e^-lambda / R^2) m,      m = (e^-lambda x_0 - v eps) / R

v = 0 is data prediction (DPM-Solver++), and v -> infinity is noise prediction (DPM-Solver). v = 1 under a
variance-preserving SDE is the v-prediction of Salimans and Ho 2022 with the opposite sign. For v between the two ends, m
changes slowly where the noise hides the data, and also where the noise is finer than the data's own spread.

The predictor interpolates the last `order` values of m in lambda. The corrector interpolates these and the new one. Both
integrate the polynomial against the weight, exactly to rounding. They are Adams-Bashforth and Adams-Moulton in exponential
form (Hochbruck and Ostermann 2010, section 2.5). The corrector needs no extra evaluation (UniPC, Zhao et al. 2023).

Sources: the method is the predictor-corrector of DPM-Solver-v3 (Zheng et al. 2023, "DPM-Solver-v3: Improved diffusion ODE
solver with empirical model statistics"), whose coefficients are here l = e^(-2 lambda) / R^2, s = l - 1 and b = 0 instead
of measurements on a network. The predictor with v = 1 is REABSampler of azula (Rozet, version 0.7 and later). The ODE in y
with free v is that of EDM's sigma_data (Karras et al. 2022) and of TrigFlow (Lu and Song 2025). docs/samplers.md compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option
from scorefield.numerics.quadrature import exponential_weights
from scorefield.samplers.base import GRID
from scorefield.samplers.multistep import MultistepSampler, Rule, Schedule

MANY = 15      # steps from which order 3 is better than order 2 on most problems (benchmarks/accuracy.py)


@dataclass(frozen=True, kw_only=True)
class ExponentialAdams(MultistepSampler):
    """The default: the flow measured against that of a Gaussian, one evaluation a step."""

    order: int | None = option(  # type: ignore[assignment]      # of a base whose subclasses know their number
        None, f"order of the predictor, 1 to 5; the corrector has one more; by default 2 below {MANY} steps, else 3")
    grid: str | Sequence[float] = option("sinh", GRID)
    data_std: float = option(1.0, "sqrt(v), the spread of the Gaussian against which the flow is measured")
    correct: bool = option(True, "improve each step with a corrector, which needs no extra evaluation")

    def __post_init__(self) -> None:
        if self.order is not None and not 1 <= self.order <= 5:
            raise ArgumentError(f"order must lie between 1 and 5, got {self.order}", "order")
        if not 0 <= self.data_std < float("inf"):
            raise ArgumentError(f"data_std must lie in [0, inf), got {self.data_std}", "data_std")

    def order_in(self, steps: int) -> int:
        return (2 if steps < MANY else 3) if self.order is None else self.order

    def _spread(self, s: Schedule) -> np.ndarray:
        return np.sqrt(self.data_std**2 + np.exp(-2 * s.lam))

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        spread = self._spread(s)
        return np.exp(-s.lam) / (s.alpha * spread), -spread

    def rules(self, s: Schedule) -> list[Rule]:
        n, scale = len(s.lam) - 1, s.alpha * self._spread(s)
        order = self.order_in(n)
        rules = []
        for i in range(n):
            depth = min(order, i + 1)
            earlier = s.lam[i - depth + 1:i + 1][::-1]
            predict = scale[i + 1] * exponential_weights(s.lam[i], s.lam[i + 1], earlier, self.data_std)
            correct: Sequence[float] = ()
            if self.correct and i < n - 1:
                nodes = np.concatenate([s.lam[i + 1:i + 2], earlier])
                weights = exponential_weights(s.lam[i], s.lam[i + 1], nodes, self.data_std)
                correct = (scale[i + 1] * weights).tolist()
            rules.append(Rule(float(scale[i + 1] / scale[i]), predict.tolist(), correct))
        return rules
