"""A variance-preserving SDE whose log signal-to-noise ratio is learned (Kingma et al. 2021, "Variational Diffusion Models").

gamma(t) = -2 lambda(t) = -log SNR rises from its first value, at t_min, to its last, at t = 1, as a network with positive
weights has it (their appendix H), where s runs from 0 to 1 between these times:

    m(s) = s + sum_j a_j sigmoid(b_j s - c_j),  a, b > 0
    gamma = gamma_0 + (gamma_1 - gamma_0) (m(s) - m(0)) / (m(1) - m(0))
    alpha^2 = sigmoid(-gamma),   sigma^2 = sigmoid(gamma),   g^2 = sigma^2 gamma'

Before t_min, where nobody trains, sigma / alpha grows from 0 in proportion to t. The bound in continuous time depends
on the ends alone (their equation 18), so the rest is free to make its estimates vary less.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, as_time
from scorefield.sde_lib.vp import VariancePreserving

STEEPEST = 40.0      # of the sigmoids at first, per unit of time: as many as there are lie beside each other


class Schedule(nn.Module):
    """The share of gamma's way that is behind at s, from 0 at s = 0 to 1 at s = 1, and its slope; at first s itself, nearly.

    hidden  number of sigmoids
    """

    def __init__(self, hidden: int):
        super().__init__()
        place = (torch.arange(hidden) + 0.5) / hidden
        slope = torch.full((hidden,), min(STEEPEST, 4.0 * hidden))
        self.height = nn.Parameter(torch.full((hidden,), -math.log(hidden)))      # logarithms of a and b
        self.slope = nn.Parameter(slope.log())
        self.shift = nn.Parameter(slope * place)

    def forward(self, s: Tensor, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Share and slope at s, in its shape, float64; differentiable by s and, unless `fixed`, by the parameters."""
        height, steepness, c = ((p.detach() if fixed else p).to(s.device, torch.float64)
                                for p in (self.height, self.slope, self.shift))
        a, b = height.exp(), steepness.exp()
        s = s.double()[..., None]

        def sigmoids(u: Tensor) -> Tensor:
            return (a * torch.sigmoid(b * u - c)).sum(-1)

        start, end = sigmoids(s.new_zeros(1)), sigmoids(s.new_ones(1))
        whole, inner = 1 + end - start, torch.sigmoid(b * s - c)
        return (s[..., 0] + sigmoids(s) - start) / whole, (1 + (a * b * inner * (1 - inner)).sum(-1)) / whole


class LearnedVPSDE(VariancePreserving):
    """VP with a learned schedule between two fixed ends; untrained, lambda falls nearly evenly with t.

    lambda_max, lambda_min  half the log signal-to-noise ratio at t_min and at t = 1
    hidden                  number of sigmoids of the schedule

    The coefficients carry no gradient by the schedule; the objective learned_schedule trains it. The weights of `schedule`
    are saved with a network's. Raises ArgumentError unless lambda_max > lambda_min and hidden >= 1. One use:

    >>> from scorefield.sde_lib import LearnedVPSDE
    >>> LearnedVPSDE(lambda_max=6.0, lambda_min=-4.0).half_log_snr(1.0)
    tensor(-4., dtype=torch.float64)
    """

    def __init__(self, lambda_max: float = 6.9, lambda_min: float = -5.0, hidden: int = 64):
        if not -math.inf < lambda_min < lambda_max < math.inf:
            raise ArgumentError(f"need lambda_min < lambda_max, got {lambda_min} and {lambda_max}", "lambda_min",
                                "lambda_max")
        if hidden < 1:
            raise ArgumentError(f"hidden must be at least 1, got {hidden}", "hidden")
        self.lambda_max, self.lambda_min, self.hidden = lambda_max, lambda_min, hidden
        self.schedule = Schedule(hidden)

    def of_network(self, network: nn.Module) -> SDE:
        schedule = getattr(network, "schedule", None)
        if not isinstance(schedule, Schedule):
            return self
        other = LearnedVPSDE(self.lambda_max, self.lambda_min, self.hidden)
        other.schedule = schedule
        return other

    def place(self, t: Tensor) -> Tensor:
        """s of the time t, float64, 0 before t_min."""
        return ((t.double() - self.t_min) / (self.t_max - self.t_min)).clamp(min=0)

    def _at(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """lambda and -lambda' in the dtype of t."""
        t, span = as_time(t), self.lambda_max - self.lambda_min
        share, slope = self.schedule(self.place(t), fixed=True)
        before = t.double().clamp(1e-300, self.t_min)
        lam = self.lambda_max - span * share - (before / self.t_min).log()
        slope = torch.where(t < self.t_min, 1 / before, span / (self.t_max - self.t_min) * slope)
        return lam.to(t.dtype), slope.to(t.dtype)

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        return self._at(t)[0]

    def log_alpha(self, t: float | Tensor) -> Tensor:
        return 0.5 * F.logsigmoid(2 * self._at(t)[0])

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._at(t)[0]).sqrt()

    def beta(self, t: float | Tensor) -> Tensor:
        lam, slope = self._at(t)
        return 2 * slope * torch.sigmoid(-2 * lam)
