"""An exponential Adams predictor-corrector on the probability-flow ODE: what `--sampler auto` is.

For data N(0, v I) the flow is known: z = x / alpha follows R(lambda) = sqrt(v + e^(-2 lambda)). Any data's flow is then
y = z / R carried by how far its prediction is from that of the Gaussian,

    dy/dlambda = (e^-lambda / R^2) m,      m = (e^-lambda x_0 - v eps) / R

v = 0 is data prediction (DPM-Solver++), v -> infinity noise prediction (DPM-Solver), and v = 1 under a
variance-preserving SDE the v-prediction of Salimans and Ho 2022 in their angle. Between the two ends, m changes slowly
both where the noise hides the data and where it is finer than the data's own spread.

m is interpolated in lambda through the last `order` values (predictor) and those with the new one (corrector), and
integrated against the weight exactly (to rounding): Adams-Bashforth and Adams-Moulton in exponential form (Hochbruck and
Ostermann 2010, section 2.5); the corrector takes no evaluation of its own (Zhao et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.quadrature import exponential_weights
from scorefield.samplers.multistep import MultistepSampler, Rule, Schedule


@dataclass(frozen=True, kw_only=True)
class ExponentialAdams(MultistepSampler):
    """order     of the predictor, 1 to 5; the corrector, and with it the method, has one more
    data_std  sqrt(v), the spread of the Gaussian against which the flow is measured
    correct   False leaves the predictor alone
    """

    order: int = 2
    grid: str | Sequence[float] = "sinh"
    data_std: float = 1.0
    correct: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 5:
            raise ArgumentError(f"order must lie between 1 and 5, got {self.order}", "order")
        if not 0 <= self.data_std < float("inf"):
            raise ArgumentError(f"data_std must lie in [0, inf), got {self.data_std}", "data_std")

    def _spread(self, s: Schedule) -> np.ndarray:
        return np.sqrt(self.data_std**2 + np.exp(-2 * s.lam))

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        spread = self._spread(s)
        return np.exp(-s.lam) / (s.alpha * spread), -spread

    def rules(self, s: Schedule) -> list[Rule]:
        n, scale = len(s.lam) - 1, s.alpha * self._spread(s)
        if n < self.order:
            raise ArgumentError(f"order {self.order} needs at least {self.order} steps, got {n}", "order", "steps")
        rules = []
        for i in range(n):
            depth = min(self.order, i + 1)
            earlier = s.lam[i - depth + 1:i + 1][::-1]
            predict = scale[i + 1] * exponential_weights(s.lam[i], s.lam[i + 1], earlier, self.data_std)
            correct: Sequence[float] = ()
            if self.correct and i < n - 1:
                nodes = np.concatenate([s.lam[i + 1:i + 2], earlier])
                weights = exponential_weights(s.lam[i], s.lam[i + 1], nodes, self.data_std)
                correct = (scale[i + 1] * weights).tolist()
            rules.append(Rule(float(scale[i + 1] / scale[i]), predict.tolist(), correct))
        return rules
