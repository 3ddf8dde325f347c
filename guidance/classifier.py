"""Classifier guidance: the score of a model, moved by the gradient of a classifier of noisy data.

    score = score of the model + scale grad_x log p(y given x_t = x)

Song et al. 2021, appendix I; Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", algorithm 2, whose
eps = eps_model - sigma scale grad is the same. With the exact classifier, scale 1 is the score given y, by Bayes' rule.
Their algorithm 1, for ancestral sampling, moves the mean of a step instead: samplers/one_step.py, by `mean_guidance`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.guidance.interval import Interval, holds
from scorefield.models.conditions import LABEL, Conditions
from scorefield.models.parametrization import Score, check_kind
from scorefield.models.score_model import Derived, MeanGuidance, Posterior, ScoreModel, check_score
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, as_time, expand_as

Classifier = Callable[[Tensor, Tensor], Tensor]      # of x (batch, *event) and t, a scalar or (batch,)


class ClassifierGuided(Derived):
    """What `classifier_guided` returns: a score model that calls another one and a classifier."""

    label: Tensor | None

    def __init__(self, model: ScoreModel, classifier: Classifier, scale: float, label: Tensor | None,
                 interval: Interval | None = None):
        super().__init__(model)
        self.classifier, self.scale, self.interval = classifier, scale, interval
        self.register_buffer("label", label, persistent=False)

    @property
    def evaluations(self) -> int:
        return self.model.evaluations + (self.scale != 0)

    def evaluations_at(self, t: float | Tensor) -> int:
        return self.model.evaluations_at(t) + self._calls_at(t)

    def _calls_at(self, t: float | Tensor) -> int:
        """How often a gradient at t calls the classifier, forwards and backwards."""
        return int(self.scale != 0 and holds(self.interval, t) is not False)

    @property
    def density_problem(self) -> str:
        return self.model.density_problem if self.scale == 0 else (
            f"a classifier's gradient at scale {self.scale:g} gives a score that is that of no density, or nearly of one")

    def given(self, **condition: Any) -> "ClassifierGuided":
        """The same guidance of the model with this condition bound; the classifier's label stays."""
        return ClassifierGuided(self.model.given(**condition), self.classifier, self.scale, self.label, self.interval)

    def mean_guidance(self) -> MeanGuidance:
        inner = self.model.mean_guidance()
        if inner is None:
            return MeanGuidance(self.model, self.gradient, self._calls_at)
        return MeanGuidance(inner.unguided, lambda x, t: inner.gradient(x, t) + self.gradient(x, t),
                            lambda t: inner.evaluations_at(t) + self._calls_at(t))

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        check_kind(kind)
        return self._moved(self.model.predict(x, t, kind), x, t, kind)

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """The guided prediction, and the model's own share."""
        output, share = self.model.with_share(x, t, kind)
        return self._moved(output, x, t, kind), share

    def _moved(self, output: Tensor, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        """The model's prediction `output`, with the gradient added."""
        if not self._calls_at(t):
            return output
        weight = torch.ones((), dtype=torch.float64)
        if kind != "score":
            times = as_time(t)
            weight = Score().coefficients(kind, self.sde.alpha(times), self.sde.sigma(times))[1]
        return output + expand_as(weight, x) * self.gradient(x, t)

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        return super().posterior(x, t) if self._calls_at(t) else self.model.posterior(x, t)

    def gradient(self, x: Tensor, t: float | Tensor) -> Tensor:
        """scale grad_x log p(y given x_t = x), (batch, *event); zero outside of the interval.

        It needs no gradients to be on. Where they are, it can be differentiated itself.
        """
        if not self._calls_at(t):
            return torch.zeros_like(x)
        twice = torch.is_grad_enabled() and (x.requires_grad or self._learns())
        with torch.inference_mode(False), torch.enable_grad():
            z = x if twice and x.requires_grad else (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            log_prob = self._log_prob(z, as_time(t))
            slope = None
            if log_prob.requires_grad:
                slope, = torch.autograd.grad(log_prob.sum(), z, create_graph=twice, allow_unused=True)
        if slope is None:
            raise ArgumentError("the classifier's answer cannot be differentiated with respect to x: it has no graph that "
                                "leads there; a classifier must not detach x or work under no_grad", "classifier")
        within = holds(self.interval, t)
        return self.scale * (slope * expand_as(within, x) if isinstance(within, Tensor) else slope)

    def _learns(self) -> bool:
        """Whether the classifier has parameters that collect gradients, or is a function that may have some."""
        owner = _owner(self.classifier)
        return not isinstance(owner, nn.Module) or any(p.requires_grad for p in owner.parameters())

    def _log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y given x_t = x) of each sample, (batch,), in at least float32."""
        try:
            answer = self.classifier(x, t)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ArgumentError(f"events of shape {tuple(x.shape[1:])} do not fit the classifier: "
                                f"{str(error).splitlines()[0][:150]}", "classifier") from error
        shape = tuple(getattr(answer, "shape", ()))
        if not isinstance(answer, Tensor) or shape[:1] != (len(x),) or len(shape) != (1 if self.label is None else 2):
            wanted = ("(batch,), log p(y given x), where it is bound to a y; for logits of classes give a label"
                      if self.label is None else "(batch, classes), a logit for each class")
            raise ArgumentError(f"for x of shape {tuple(x.shape)} the classifier must return shape {wanted}; got "
                                f"{shape if isinstance(answer, Tensor) else type(answer).__name__}",
                                *(("label",) if self.label is None and len(shape) == 2 else ("classifier",)))
        answer = answer if answer.dtype == torch.float64 else answer.float()
        if self.label is None:
            return answer
        check_label(self.label, shape[1])
        if self.label.ndim and len(self.label) != len(x):
            raise ArgumentError(f"label is for a batch of {len(self.label)}, x is a batch of {len(x)}; give one label for "
                                "each sample, or a scalar for all", "label")
        return answer.log_softmax(1).gather(1, self.label.to(answer.device).expand(len(x))[:, None])[:, 0]


def check_label(label: Any, classes: int | None) -> Tensor:
    """The label as a tensor; ArgumentError unless it is an integer or integers (batch,) of so many classes."""
    checked = Conditions((LABEL,), classes).checked({LABEL: label})[LABEL]
    assert checked is not None
    return checked


def check_same_process(sde: SDE, other: SDE) -> None:
    """ArgumentError (of argument "classifier") unless alpha and sigma of both are equal, up to float32's rounding."""
    times = torch.linspace(0, sde.t_max, 101, dtype=torch.float64)
    same = sde.t_max == other.t_max and all(
        torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
        for ours, theirs in ((sde.alpha(times), other.alpha(times)), (sde.sigma(times), other.sigma(times))))
    if not same:
        raise ArgumentError(f"the classifier was trained on data under {other}, and the model belongs to {sde}: at the "
                            "same t their noise differs; train the classifier under the model's SDE", "classifier")


def classes_of(classifier: Any) -> int | None:
    """The number of classes that a classifier's network declares, or that its last layer `logits` has; None if unknown."""
    network = getattr(classifier, "network", classifier)
    return getattr(network, "classes", None) or getattr(getattr(network, "logits", None), "out_features", None)


def _owner(classifier: Any) -> Any:
    """The object of a method, such as the mixture of GaussianMixture.class_log_prob; else the classifier itself."""
    return getattr(classifier, "__self__", classifier)


def classifier_guided(model: ScoreModel, classifier: Classifier, scale: float = 1.0, label: int | Tensor | None = None,
                      interval: tuple[float, float] | None = None) -> ClassifierGuided:
    """`model` guided by the gradient of a classifier of its noisy data.

    classifier  of x (batch, *event) and t, a scalar or (batch,): the denoiser of a run that trained a classifier
                (`load_denoiser`); or any function that gives logits or log-probabilities (batch, classes), such as
                GaussianMixture.class_log_prob; or, without a label, log p(y given x_t = x) itself, (batch,)
    scale       of the gradient: 0 is the model, 1 follows Bayes' rule, above 1 asks for more of the label
    label       the class, an integer for all samples or integers (batch,), one for each
    interval    (LO, HI): the gradient acts for LO <= t <= HI; by default at all times

    The gradient of one prediction, forwards and backwards through the classifier, counts as one evaluation. The parameters
    of the classifier collect no gradients. Raises ArgumentError for a scale that is not finite, an interval that is none, a
    label that does not exist and a classifier trained under another SDE; and, when it is used, for a classifier that answers
    with another shape, does not take the events, or cannot be differentiated. One use:

    >>> from scorefield.guidance import classifier_guided
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> mixture = GaussianMixture(VPSDE(), 2 * torch.eye(2), torch.ones(2), labels=torch.tensor([0, 1]))
    >>> guided = classifier_guided(mixture, mixture.class_log_prob, label=1)
    >>> x = torch.zeros(1, 2)
    >>> bool(torch.allclose(guided.score(x, 0.5), mixture.given(label=1).score(x, 0.5)))
    True
    """
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}", "scale")
    if not callable(classifier):
        raise ArgumentError(f"classifier must be a function of (x, t), got {type(classifier).__name__}", "classifier")
    if isinstance(sde := getattr(_owner(classifier), "sde", None), SDE):
        check_same_process(model.sde, sde)
    check_score(model, "guidance by a classifier")
    classes = classes_of(classifier)
    if label is None and classes is not None:
        raise ArgumentError(f"the classifier knows {classes} classes: give the label to guide to", "label")
    told = None if label is None else check_label(label, classes)
    return ClassifierGuided(model, classifier, float(scale), told, Interval.of(interval, model.sde))
