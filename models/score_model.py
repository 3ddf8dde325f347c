"""The contract of a score model, and what binds a condition to one.

A model made from score models (given a label, guided, wrapped) is again a score model, a function of x and t alone.
So samplers and likelihoods take all of them and see nothing else of a network.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scorefield.models.conditions import Condition, Conditions
from scorefield.models.student import COUPLED, ENDS, Student
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within; after, each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Posterior:
    """What a score model knows of x_0 given x_t, from one evaluation.

    mean      E[x_0 given x_t], of the shape of x
    variance  Var[x_0 given x_t] of each element, of the shape of x; or one for all, a scalar; None if it is unknown
    """

    mean: Tensor
    variance: Tensor | None


@dataclass(frozen=True)
class MeanGuidance:
    """The two parts of a guided model, for samplers that shift the mean of a step (`ScoreModel.mean_guidance`).

    unguided        the score model without the gradient
    gradient        of x and t: scale grad_x log p(y given x_t = x), (batch, *event)
    evaluations_at  of t: how many calls of a network one gradient costs
    """

    unguided: "ScoreModel"
    gradient: "Callable[[Tensor, float | Tensor], Tensor]"
    evaluations_at: "Callable[[float | Tensor], int]"


class ScoreModel(nn.Module):
    """What every score model offers. `x` is (batch, *event); `t` is a scalar or (batch,), best in float64.

    sde              the forward process that the model belongs to
    evaluations      how many calls of a network one prediction costs at most; a model made of several adds up theirs
    spent            how many calls of a network it took to make it, for each sample: in a cascade, those of the first stage
    density_problem  why its score is that of no known density, a sentence; "" if it is that of one

    Each prediction has the shape and dtype of x. A subclass writes `predict` and, unless it is 1, `evaluations`. One made of
    other score models passes on what they say in `project`, `mean_guidance` and `density_problem`.
    """

    sde: SDE
    spent: int = 0

    @abstractmethod
    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        """The prediction of `kind`: "score", "eps", "x0", "v" or "flow".

        Raises ArgumentError (a ValueError) for another word, for a time outside of [0, t_max], and where the prediction
        does not exist at that time, as the score where sigma = 0.
        """

    @property
    def evaluations(self) -> int:
        return 1

    def evaluations_at(self, t: float | Tensor) -> int:
        """How many calls of a network a prediction at t costs, t as in `predict`; for t (batch,) that of the whole batch."""
        return self.evaluations

    @property
    def density_problem(self) -> str:
        return ""

    @property
    def student(self) -> Student | None:
        """What the model is made for if it was distilled, and is no score model; else None."""
        return None

    def project(self, x: Tensor) -> Tensor:
        """x (batch, *event) with every element in the range that the model keeps to; samplers apply it at their end."""
        return x

    def mean_guidance(self) -> MeanGuidance | None:
        """The model without the gradient of its classifier, and that gradient; None if it has no classifier."""
        return None

    @property
    def takes(self) -> Conditions:
        """The conditions that `given` can bind."""
        return Conditions()

    def given(self, **condition: Any) -> "ScoreModel":
        """The score model of x and t that gets this condition at every evaluation.

        label=y     classes, integers: a scalar for every sample, or (batch,), one for each
        label=None  no label, for a model trained with label dropout
        name=value  any other condition that the network declares, (batch, ...)

        Raises ArgumentError for a name that the model does not take and for labels that do not exist; using the result
        with another batch size raises it then. One use:

        >>> from scorefield.models import MLP, Denoiser
        >>> from scorefield.sde_lib import VPSDE
        >>> model = Denoiser(MLP((2,), classes=10), VPSDE()).given(label=3)
        >>> model.eps(torch.zeros(4, 2), 0.5).shape
        torch.Size([4, 2])
        """
        self.takes.checked(condition)
        return self

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        """Mean and variance of x_0 given x_t = x, from one evaluation. A network knows the mean only."""
        return Posterior(self.x0(x, t), None)

    def best_indices(self, times: Tensor, steps: int) -> Tensor:
        """Which `steps` of `times` (n,), both ends included, give a chain its best bound: increasing integers (steps,).

        ArgumentError unless the model knows the moments of its errors (models/variance.py).
        """
        raise ArgumentError("grid 'optimal' needs a model whose errors are known; fit them with mode fit_variance", "grid")

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """The prediction of `kind` and the share of log beta in the log variance of a step back (sde_lib/transition.py,
        "learned"), both of the shape of x, from one evaluation. The share lies near [0, 1].

        Raises ArgumentError as `predict`, and if no variance was learned.
        """
        raise ArgumentError("variance 'learned' needs a model that has learned one (model.learned_variance=true and "
                            "objective learned_variance), and this one has not; choose beta or beta_tilde", "variance")

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """grad log p_t(x) = -eps / sigma."""
        return self.predict(x, t, "score")

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[eps given x_t = x]."""
        return self.predict(x, t, "eps")

    def x0(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[x_0 given x_t = x] (Tweedie's formula)."""
        return self.predict(x, t, "x0")

    def v(self, x: Tensor, t: float | Tensor) -> Tensor:
        """alpha eps - sigma x_0 (Salimans and Ho 2022, section 4)."""
        return self.predict(x, t, "v")

    def flow(self, x: Tensor, t: float | Tensor) -> Tensor:
        """eps - x_0, the velocity of flow matching (Lipman et al. 2023)."""
        return self.predict(x, t, "flow")


class ConditionalModel(ScoreModel):
    """A score model whose predictions take a condition (conditions.py): Denoiser and GaussianMixture.

    Without one, `predict` uses "no label" if the model knows that, else it raises an error that says to call `given`.
    """

    @abstractmethod
    def predict(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None = None) -> Tensor:
        """As ScoreModel's, with the condition of each sample."""

    def given(self, **condition: Any) -> "Given":
        return Given(self, condition)

    def posterior(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Posterior:
        """As ScoreModel's, with the condition of each sample."""
        return Posterior(self.predict(x, t, "x0", condition), None)

    def with_share(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None = None
                   ) -> tuple[Tensor, Tensor]:
        """As ScoreModel's, with the condition of each sample."""
        return super().with_share(x, t, kind)


class Derived(ScoreModel):
    """A score model made of another one, `model`. It passes on what that says, but for what a subclass writes."""

    def __init__(self, model: ScoreModel):
        super().__init__()
        self.model, self.sde = model, model.sde

    @property
    def evaluations(self) -> int:
        return self.model.evaluations

    def evaluations_at(self, t: float | Tensor) -> int:
        return self.model.evaluations_at(t)

    @property
    def density_problem(self) -> str:
        return self.model.density_problem

    @property
    def student(self) -> Student | None:
        return self.model.student

    def project(self, x: Tensor) -> Tensor:
        return self.model.project(x)

    @property
    def takes(self) -> Conditions:
        return self.model.takes

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        return self.model.predict(x, t, kind)

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        if type(self).predict is not Derived.predict:      # its prediction is not the model's
            raise ArgumentError(f"{type(self).__name__} does not pass on the variance that its model has learned; choose "
                                "beta or beta_tilde", "variance")
        return self.model.with_share(x, t, kind)


class Given(Derived):
    """`model` with a condition bound to it: what `model.given(...)` returns."""

    model: ConditionalModel

    def __init__(self, model: ConditionalModel, condition: Mapping[str, Any]):
        super().__init__(model)
        checked = model.takes.checked(condition)
        self.names = tuple(checked)
        for name, value in checked.items():      # as buffers, which go to a device with the model
            self.register_buffer(f"given_{name}", value, persistent=False)

    @property
    def condition(self) -> dict[str, Tensor | None]:
        """What is bound, by name; None for "no label"."""
        return {name: getattr(self, f"given_{name}") for name in self.names}

    def given(self, **condition: Any) -> "ScoreModel":
        """The same model with these conditions bound, too; a new one replaces an old one of the same name."""
        return self.model.given(**self.condition | condition)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        return self.model.predict(x, t, kind, self.for_batch(x))

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        return self.model.posterior(x, t, self.for_batch(x))

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return self.model.with_share(x, t, kind, self.for_batch(x))

    def for_batch(self, x: Tensor) -> Condition:
        """The condition of each sample of x."""
        return self.takes.of_batch(self.condition, x)


def check_score(model: ScoreModel, use: str) -> None:
    """ArgumentError (of argument "model") if the model was distilled and has no score, which `use` needs."""
    if model.student is not None:
        advice = {COUPLED: "choose coupling independent", ENDS: "that has a flow, model.probability_flow()"}.get(
            model.student.kind, "use its teacher")
        raise ArgumentError(f"{use} needs a score model, and this is {model.student}; {advice}", "model")


def check_flow(model: ScoreModel, use: str) -> None:
    """ArgumentError (of argument "model") if the model has no probability flow, which `use` needs."""
    if model.student is not None and model.student.kind != COUPLED:
        check_score(model, use)


def check_density(model: ScoreModel) -> None:
    """ArgumentError (of argument "model") unless the model's flow is that of a density, which a likelihood needs."""
    check_flow(model, "a likelihood")
    if model.density_problem:
        raise ArgumentError(f"no likelihood: {model.density_problem}; give the model without that", "model")
