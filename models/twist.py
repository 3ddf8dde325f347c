"""The contract of a score model that is guided by a measurement y of the data, as `guidance.posterior` makes them.

It knows an approximation psi_t(x) of p(y given x_t = x), the twist (Whiteley and Lee 2014, "Twisted particle filters"), and
its score is that of the model plus (nearly) grad log psi. Samplers that weight particles need both parts of one evaluation.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scorefield.models.score_model import Derived, Given, ScoreModel


@dataclass(frozen=True)
class Twist:
    """One evaluation at (x, t).

    x0         E[x_0 given x_t = x] of the model, (batch, *event)
    shift      what the guided x_0 has beyond it: sigma^2 / alpha times what is added to the score
    log_twist  log psi_t(x) in nats, (batch,)
    product    J^T v, J = d x_0 / d x_t, for the v that was asked for, (batch, *event); J is alpha / sigma^2 Cov[x_0 given
               x_t]
    """

    x0: Tensor
    shift: Tensor
    log_twist: Tensor
    product: Tensor | None = None

    def rows(self, index: Tensor) -> "Twist":
        """That of the samples `index`, integers (batch,), without a product."""
        return Twist(self.x0[index], self.shift[index], self.log_twist[index])


class TwistedModel(Derived):
    """A score model of x_t given measurements, one for each sample; or one for all of them.

    measurements  how many it is bound to
    exact         whether the measurement has no noise, so that p(y given x_0) is no density
    """

    @property
    @abstractmethod
    def measurements(self) -> int: ...

    @property
    @abstractmethod
    def exact(self) -> bool: ...

    @abstractmethod
    def rows(self, index: Tensor) -> "TwistedModel":
        """The model bound to the measurements `index`, integers (batch,), and to the conditions that belong to them."""

    @abstractmethod
    def twist(self, x: Tensor, t: float | Tensor, direction: Callable[[Tensor], Tensor] | None = None) -> Twist:
        """The model's x_0, what guides it, and log psi_t(x), from one evaluation.

        direction  of the shift: the v of `Twist.product`, (batch, *event)
        """

    @abstractmethod
    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y given x_0 = x) in nats, (batch,); ArgumentError if the measurement has no noise."""


def rows_of(model: ScoreModel, index: Tensor) -> ScoreModel:
    """The model with those rows of the conditions that are bound to it, also where it is made of one that has them."""
    inner = model
    while isinstance(inner, Derived) and not isinstance(inner, Given):
        inner = inner.model
    if not isinstance(inner, Given):
        return model
    each = {name: value[index.to(value.device)] for name, value in inner.condition.items()
            if value is not None and value.ndim}
    return model.given(**each) if each else model
