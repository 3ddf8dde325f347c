"""The contract of a forward process.

A forward process is two functions of time: x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, I), for t from 0 (data)
to t_max (noise). Everything else follows from them (Song et al. 2021, "Score-Based Generative Modeling through SDEs";
Kingma et al. 2021, "Variational Diffusion Models"):

    dx = f(t) x dt + g(t) dw          f = (log alpha)',  g^2 = (sigma^2)' - 2 f sigma^2
    lambda(t) = log alpha - log sigma                     half the log signal-to-noise ratio
    g^2 = -2 sigma^2 lambda'

and, with the score s(x, t) = grad log p_t(x), one family of reverse processes with the same marginals, from the
probability-flow ODE (eta = 0) to the reverse-time SDE (eta = 1):

    dx = [f x - (1 + eta^2) / 2 g^2 s] dt + eta g dw      time running from t_max down to 0
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.prior import GaussianPrior

ROUNDING = 1e-7      # how far outside [0, t_max] a time may lie: what float32 rounds off, in the inverse of a schedule too


def expand_as(t: Tensor, x: Tensor) -> Tensor:
    """View `t`, a scalar or (batch,), so that it broadcasts against `x` (batch, *event), in x's dtype and device.

    A scalar stays where it is: PyTorch takes it as a number on any device, with no copy and no synchronisation.
    """
    if not t.ndim:
        return t.to(x.dtype)
    return t.to(dtype=x.dtype, device=x.device).reshape(t.shape + (1,) * (x.ndim - 1))


def as_time(t: float | Tensor) -> Tensor:
    """`t` as a floating-point tensor; Python numbers become float64."""
    if isinstance(t, Tensor) and t.is_floating_point():
        return t
    return torch.as_tensor(t, dtype=torch.float64)


def check_time(sde: "SDE", t: float | Tensor, score: bool = False) -> Tensor:
    """`t` as a tensor; ArgumentError (of argument "t") unless all of it lies in [0, sde.t_max].

    score  whether a score is needed; then sigma(t) must be above 0, too

    Every function of a state and a time calls this once: score models, `marginal`, `perturb`, `reverse_drift`. Grids, t_end
    and t_min are checked when they are made. The coefficients (`alpha`, `sigma`, `g2`, ...) are formulas and check nothing.
    A tensor on another device than the CPU is not checked, since reading it would make the CPU wait; nor is one that a
    compiler traces. Samplers and likelihoods keep their times on the CPU, where a check takes about a microsecond.
    """
    t = as_time(t)
    if t.device.type != "cpu" or torch.compiler.is_compiling() or not t.numel():
        return t
    first, last = (float(end) for end in t.detach().aminmax()) if t.ndim else (t.item(),) * 2
    slack = sde.t_max * max(ROUNDING, torch.finfo(t.dtype).eps)
    if not (first >= -slack and last <= sde.t_max + slack):      # NaN fails, too
        wrong = first if not first >= -slack else last
        raise ArgumentError(f"t must lie in [0, {sde.t_max:g}] for {sde}, got {wrong:g}", "t")
    if score and first <= 0 and not float(sde.sigma(torch.zeros((), dtype=torch.float64))) > 0:
        raise ArgumentError(f"there is no score at t = 0 for {sde}, where sigma is 0 and a density need not exist; ask "
                            f"for it at t > 0 (t_min is {sde.t_min:g}), or for x0 or eps", "t")
    return t.clamp(min=0) if first < 0 else t


class SDE(ABC):
    """A forward process. Times are scalars or tensors of any shape; coefficients come back in that shape and dtype.

    Keep times in float64, also with a float32 state: the coefficients are cast at the end.

    A subclass writes `alpha` and `sigma` (accurate in float32 down to t = 1e-5) or, better, their logarithms, and may
    override any method that has a closed form; the others are derived here.

    t_max     the last time, where noise hides the data: 1, or less if alpha(1) = 0
    t_min     the smallest time used in training and likelihood
    t_sample  the time at which samplers stop by default
    steps     the number of indices of the chain that the SDE was made from, index i at t = (i + 1) / steps; else None
    """

    t_max: float = 1.0
    t_min: float = 1e-5
    t_sample: float = 1e-3
    steps: int | None = None

    # ---- what a subclass writes ----------------------------------------------------------------------------------

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """The scale of the signal in x_t."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation of the noise in x_t."""

    # ---- what follows from it ------------------------------------------------------------------------------------

    def log_alpha(self, t: float | Tensor) -> Tensor:
        return self.alpha(t).log()

    def drift(self, t: float | Tensor) -> Tensor:
        """f(t) = (log alpha)', the coefficient of x in the drift; per unit of time."""
        return _derivative(self.log_alpha, t)

    def g2(self, t: float | Tensor) -> Tensor:
        """g(t)^2 = (sigma^2)' - 2 f sigma^2, the squared diffusion; per unit of time."""
        t = as_time(t)
        return _derivative(lambda s: self.sigma(s).square(), t) - 2 * self.drift(t) * self.sigma(t).square()

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        """lambda(t) = log alpha(t) - log sigma(t); decreases with time."""
        return self.log_alpha(t) - self.sigma(t).log()

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """The inverse of `half_log_snr`, within [0, t_max], to about 1e-12 of relative accuracy in float64.

        By bisection in log t, which any monotone lambda allows; values beyond those of [1e-12, t_max] give the ends.
        """
        target = as_time(half_log_snr).double()
        low, high = (torch.full_like(target, math.log(end)) for end in (1e-12, self.t_max))
        for _ in range(60):
            middle = (low + high) / 2
            later = self.half_log_snr(middle.exp()) > target     # too much signal: the time sought is later
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return ((low + high) / 2).exp().to(as_time(half_log_snr).dtype)

    @property
    def content(self) -> Hashable | None:
        """All that alpha and sigma depend on, as the key of what is kept of a process; None if that is more than numbers,
        such as the parameters of a schedule that is learned.
        """
        values = [(name, value.content if isinstance(value, SDE) else value) for name, value in vars(self).items()]
        if all(type(value) in (int, float, bool, str) or name == "steps" for name, value in values):
            return type(self), *values
        return None

    # ---- the perturbation kernel and the prior -------------------------------------------------------------------

    def marginal(self, x0: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (batch, *event) and standard deviation (scalar or (batch,)) of q(x_t given x_0)."""
        t = check_time(self, t)
        return expand_as(self.alpha(t), x0) * x0, self.sigma(t)

    def perturb(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps."""
        mean, std = self.marginal(x0, t)
        return mean + expand_as(std, x0) * eps

    @property
    def prior(self) -> GaussianPrior:
        """The distribution that replaces the marginal at t_max: N(0, I), unless a subclass overrides it."""
        return GaussianPrior()

    # ---- the reverse family --------------------------------------------------------------------------------------

    def reverse_drift(self, x: Tensor, t: float | Tensor, score: Tensor, eta: float = 1.0) -> Tensor:
        """f x - (1 + eta^2)/2 g^2 score: drift of the reverse process, dx/dt of the probability flow at eta = 0.

        Song et al. 2021, equations 6 and 13; eta between them as in Huang et al. 2021. Shapes (batch, *event).
        """
        t = check_time(self, t)
        weight = 0.5 * (1 + eta**2)
        return expand_as(self.drift(t), x) * x - expand_as(weight * self.g2(t), x) * score

    def of_network(self, network: nn.Module) -> "SDE":
        """This process as a network of the same kind has it, which differs where the network learns it."""
        return self

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items()
                             if isinstance(v, int | float) and not k.startswith("_"))
        return f"{type(self).__name__}({settings})"


def _derivative(function: Callable[[Tensor], Tensor], t: float | Tensor) -> Tensor:
    """Elementwise d function / dt, by reverse-mode automatic differentiation."""
    t = as_time(t)
    with torch.enable_grad():
        s = t.detach().requires_grad_()
        value = function(s)
        if not value.requires_grad:      # a constant, as alpha of the variance-exploding SDE
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), s)[0]
