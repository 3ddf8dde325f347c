"""Posterior sampling: the score of p_t(x given y) for a measurement y = A(x_0) + noise_std n, from the model's own score.

    grad log p_t(x given y) = grad log p_t(x) + grad log p(y given x_t = x)        (Bayes' rule)

The second term is an integral over x_0 given x_t that no model knows. Each method approximates it, from the mean E[x_0 given
x_t] and some guess at the covariance, by psi_t(x), the twist. In terms of x_0, the score's change g is a shift sigma^2 /
alpha g of the mean (Tweedie's formula), which is what a method gives; so every prediction of the guided model follows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.guidance.operators.base import LinearOperator, Operator
from scorefield.models.parametrization import X0, check_kind, make_parametrization
from scorefield.models.score_model import ScoreModel
from scorefield.models.twist import Twist, TwistedModel, rows_of
from scorefield.numerics.attention import by_formula
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, check_time, expand_as

Direction = Callable[[Tensor], Tensor] | None
TINY = 1e-20      # least variance of a measurement: at t = 0 without noise it is 0


@dataclass(frozen=True)
class Situation:
    """What a method knows at (x, t).

    x0           the model's mean of x_0; where the method differentiates it has a graph that leads to x
    residual     y - A(x0), (batch, *measured)
    alpha, sigma of t, float64, scalars or (batch,)
    again        whether the results are differentiated themselves
    """

    operator: Operator
    sde: SDE
    x: Tensor
    t: Tensor
    x0: Tensor
    residual: Tensor
    alpha: Tensor
    sigma: Tensor
    noise_std: float
    again: bool

    def slope(self, of: Tensor) -> Tensor:
        """The gradient by x of `of` (batch,), each of its own sample."""
        slope, = torch.autograd.grad(of.sum(), self.x, create_graph=self.again, retain_graph=True)
        return slope

    def pushed(self, v: Tensor) -> Tensor:
        """The operator's own Jacobian at x_0, times v (batch, *event)."""
        if self.operator.linear:
            return self.operator(v)
        return torch.func.jvp(self.operator, (self.x0.detach(),), (v,))[1]

    def per_measurement(self, values: Tensor) -> Tensor:
        """`values`, scalars or (batch,), so that they broadcast against the operator's eigenvalues."""
        return values.to(self.eigenvalues.device).reshape(-1, *(1,) * len(self.operator.measured))

    @property
    def linear(self) -> LinearOperator:
        assert isinstance(self.operator, LinearOperator)      # as `posterior` has checked
        return self.operator

    @property
    def eigenvalues(self) -> Tensor:
        return self.linear.eigenvalues

    def gaussian(self, variances: Tensor) -> tuple[Tensor, Tensor]:
        """C^-1 r and log N(r; 0, C) for the residual r and C = U diag(variances) U^T, variances (batch or 1, *measured)."""
        solved = self.linear.filtered(self.residual, 1 / variances)
        squares = (solved * self.residual).flatten(1).sum(1)
        log_det = variances.log().flatten(1).sum(1).to(squares)
        return solved, -0.5 * (squares + log_det + self.operator.size * math.log(2 * math.pi))


class Method(ABC):
    """A subclass is a frozen dataclass of its options.

    differentiates  whether it needs products with the Jacobian of x_0 by x
    linear          whether the operator must be linear
    """

    differentiates: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    @abstractmethod
    def guide(self, at: Situation) -> tuple[Tensor, Tensor]:
        """The shift of x_0, (batch, *event), and log psi, (batch,)."""


class PosteriorModel(TwistedModel):
    """What `guidance.posterior` returns: the score model of x_t given y, by a method."""

    y: Tensor

    def __init__(self, model: ScoreModel, operator: Operator, y: Tensor, noise_std: float, method: Method):
        super().__init__(model)
        self.operator, self.noise_std, self.method = operator, noise_std, method
        self.register_buffer("y", y, persistent=False)

    @property
    def measurements(self) -> int:
        return len(self.y)

    @property
    def exact(self) -> bool:
        return self.noise_std == 0

    @property
    def density_problem(self) -> str:
        return self.model.density_problem or "the score given a measurement is approximate, and that of no known density"

    def given(self, **condition: Any) -> PosteriorModel:
        """The same measurement, seen by the model with this condition bound."""
        return PosteriorModel(self.model.given(**condition), self.operator, self.y, self.noise_std, self.method)

    def rows(self, index: Tensor) -> PosteriorModel:
        return PosteriorModel(rows_of(self.model, index), self.operator, self.y[index.to(self.y.device)], self.noise_std,
                              self.method)

    def project(self, x: Tensor) -> Tensor:
        """As the model's; and without noise the nearest x whose measurement is y, to the bit where the operator is a
        mask.
        """
        x = self.model.project(x)
        if self.exact and isinstance(self.operator, LinearOperator):
            return self.operator.consistent(x, self._y_of(x))
        return x

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        check_kind(kind)
        output, twist = self._evaluated(x, t, kind)
        t = check_time(self.sde, t)
        weight = X0().coefficients(kind, self.sde.alpha(t), self.sde.sigma(t))[1]
        # at sigma = 0 an eps does not follow from x_0, and x_0 itself is known
        return output + expand_as(torch.where(weight.isfinite(), weight, 0), x) * twist.shift

    def twist(self, x: Tensor, t: float | Tensor, direction: Direction = None) -> Twist:
        return self._evaluated(x, t, "x0", direction)[1]

    def log_likelihood(self, x: Tensor) -> Tensor:
        if self.exact:
            raise ArgumentError("a measurement without noise has no density; give noise_std above 0", "noise_std")
        squares = (self._y_of(x) - self.operator(x)).flatten(1).square().sum(1)
        return -0.5 * squares / self.noise_std**2 - self.operator.size * math.log(self.noise_std * math.sqrt(2 * math.pi))

    def _y_of(self, x: Tensor) -> Tensor:
        if len(self.y) not in (1, len(x)):
            raise ArgumentError(f"y has {len(self.y)} measurements, x is a batch of {len(x)}; give one measurement for each "
                                "sample, or one for all", "y")
        return self.y.to(x)

    def _evaluated(self, x: Tensor, t: float | Tensor, kind: str, direction: Direction = None) -> tuple[Tensor, Twist]:
        """The model's prediction of `kind`, and what guides it."""
        t, y = check_time(self.sde, t), self._y_of(x)
        if not self.method.differentiates and direction is None:
            output = self.model.predict(x, t, kind)
            return output, self._guided(x, t, kind, output, y, False, None)
        again = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.model.parameters()))
        with torch.inference_mode(False), torch.enable_grad(), by_formula(again):
            z = x if again and x.requires_grad else (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            output = self.model.predict(z, t, kind)
            twist = self._guided(z, t, kind, output, y, again, direction)
        if again:
            return output, twist
        return output.detach(), Twist(twist.x0.detach(), twist.shift.detach(), twist.log_twist.detach(), twist.product)

    def _guided(self, x: Tensor, t: Tensor, kind: str, output: Tensor, y: Tensor, again: bool, direction: Direction
                ) -> Twist:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        if kind == "x0":
            x0 = output
        else:
            a, b = make_parametrization(kind).x0(alpha, sigma)
            x0 = expand_as(a, x) * x + expand_as(b, x) * output
        residual = y - self.operator(x0)
        at = Situation(self.operator, self.sde, x, t, x0, residual, alpha.double(), sigma.double(), self.noise_std, again)
        shift, log_twist = self.method.guide(at)
        if direction is None:
            return Twist(x0, shift, log_twist)
        product, = torch.autograd.grad(x0, x, direction(shift.detach()))
        return Twist(x0, shift, log_twist, product)
