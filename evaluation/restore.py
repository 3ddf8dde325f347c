"""Restore pictures from measurements y = A(x) + noise: several answers for each, with their mean and standard deviation.

    from scorefield.evaluation.restore import Measured, restore

    problem = Measured(make_operator("mask:half=right", (1, 8, 8)), y, noise_std=0.05)
    answers = restore(model, problem, make_sampler("twisted_smc", particles=64), "tmpd", samples=8)
    answers.mean, answers.std, answers.log_evidence

Sampler `twisted_smc` draws from the posterior as its particles grow; others draw from what the method makes of it
(docs/restoring.md). Answer i of measurement m depends on (seed, m, i) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from scorefield.evaluation.fidelity import psnr, ssim
from scorefield.evaluation.parts import Parts
from scorefield.evaluation.restoration import Restoration
from scorefield.guidance import posterior
from scorefield.guidance.operators import LinearOperator, Operator
from scorefield.models import ScoreModel
from scorefield.models.conditions import LOW_RES
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import digest
from scorefield.numerics.noise import CONDITION, NoiseStream, sample_seeds
from scorefield.samplers import Sampler

if TYPE_CHECKING:
    from scorefield.data.degradations import LowRes


class Problem(Protocol):
    """Measurements, and what a model makes of them."""

    @property
    def y(self) -> Tensor:
        """(measurements, *measured), as the model sees data."""

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in each element of y."""

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one answer."""

    def given(self, model: ScoreModel, rows: Tensor, method: str) -> ScoreModel:
        """The model of the measurements `rows`."""

    def measure(self, x: Tensor) -> Tensor:
        """A(x) without noise, (measurements, *measured), of an x for each measurement (measurements, *event)."""

    def simple(self) -> Tensor | None:
        """The usual restoration without a model, (measurements, *event), if there is one."""

    def kept(self, x: Tensor) -> Tensor:
        """x (measurements, *event), which agrees with the measurements where they have no noise."""

    @property
    def identity(self) -> str:
        """Digits of all that it consists of."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements by an operator, of which the model knew nothing in training."""

    operator: Operator
    y: Tensor
    noise_std: float

    @property
    def event(self) -> tuple[int, ...]:
        return self.operator.shape

    def given(self, model: ScoreModel, rows: Tensor, method: str) -> ScoreModel:
        return posterior(model, self.operator, self.y[rows], self.noise_std, method)

    def measure(self, x: Tensor) -> Tensor:
        return self.operator(x)

    def simple(self) -> Tensor | None:
        """The pseudo-inverse: the smallest x that fits. In a missing place it has the middle of a symmetric range."""
        return self.operator.pseudo_inverse(self.y) if isinstance(self.operator, LinearOperator) else None

    def kept(self, x: Tensor) -> Tensor:
        exact = self.noise_std == 0 and isinstance(self.operator, LinearOperator)
        return self.operator.consistent(x, self.y) if exact else x      # type: ignore[operator]

    @property
    def identity(self) -> str:
        operator = [type(self.operator).__name__, self.operator.shape, dict(self.operator.named_buffers())]
        return digest([operator, self.y, self.noise_std])


@dataclass(frozen=True, eq=False)
class LearnedMeasured:
    """Measurements by the degradation from which a model has learned to restore; y is its low_res, without noise."""

    rule: LowRes
    y: Tensor
    noise_std: float = 0.0

    @property
    def event(self) -> tuple[int, ...]:
        return self.rule.shape

    def given(self, model: ScoreModel, rows: Tensor, method: str) -> ScoreModel:
        return model.given(**{LOW_RES: self.y[rows]})

    def measure(self, x: Tensor) -> Tensor:
        unit = (x.cpu() - self.rule.low) / (self.rule.high - self.rule.low)
        return self.rule.of_pictures(unit, list(range(len(x)))).to(x)

    def simple(self) -> Tensor | None:
        """The first channels of low_res at full size, bicubic; None where it has fewer channels."""
        from scorefield.models.networks.low_res import resized

        channels = self.rule.shape[0]
        return resized(self.y[:, :channels], self.rule.shape[1:]) if self.y.shape[1] >= channels else None

    def kept(self, x: Tensor) -> Tensor:
        return x

    @property
    def identity(self) -> str:
        return digest([self.rule.text, self.rule.shape, self.y, self.noise_std])


def with_noise(y: Tensor, noise_std: float, seed: int = 0) -> Tensor:
    """Measurements (n, *measured) with noise; that of measurement m depends on (seed, m) alone."""
    if not noise_std:
        return y
    return y + noise_std * NoiseStream(sample_seeds(seed, 0, len(y)), CONDITION).normal(y)


@dataclass(frozen=True, eq=False)
class Restored:
    """The answers of a model, on the CPU, as the model sees data.

    x           (measurements, samples, *event), equally weighted
    mean, std   (measurements, *event): of the posterior that was drawn from, by all particles where there are some
    evaluations of the network for each measurement, and seconds for all
    log_evidence, log_evidence_error, effective_samples  (measurements,), of twisted_smc; else None
    """

    x: Tensor
    mean: Tensor
    std: Tensor
    evaluations: float
    seconds: float
    log_evidence: Tensor | None = None
    log_evidence_error: Tensor | None = None
    effective_samples: Tensor | None = None

    def figures(self, problem: Problem, truth: Tensor | None = None, unit: Callable[[Tensor], Tensor] = lambda x: x
                ) -> dict[str, list[float]]:
        """Figures of each measurement, by name.

        truth  (measurements, *event), if it is known
        unit   from what the model sees to pictures in which 0 is black and 1 white

        residual        root mean square of y - A(x), of the answers; with noise it is about noise_std
        psnr, ssim      of the answers, the mean over them; psnr_mean and ssim_mean of the mean picture; _simple of the usual
                        restoration without a model
        """
        m, n = self.x.shape[:2]
        y = problem.y.cpu()
        every = torch.stack([(problem.measure(self.x[:, i].to(problem.y)).cpu() - y).flatten(1) for i in range(n)], 1)
        found = {"residual": every.double().square().mean((1, 2)).sqrt()}
        if truth is not None:
            clean, answers = unit(truth), unit(self.x.flatten(0, 1))
            simple = problem.simple()
            pictures = {"psnr": psnr, **({"ssim": ssim} if self.x.ndim == 5 else {})}
            for name, of in pictures.items():
                found[name] = of(answers, clean.repeat_interleave(n, 0)).reshape(m, n).mean(1)
                found[f"{name}_mean"] = of(unit(self.mean), clean)
                if simple is not None:
                    found[f"{name}_simple"] = of(unit(simple.cpu()), clean)
        for name in ("log_evidence", "log_evidence_error", "effective_samples"):
            if (values := getattr(self, name)) is not None:
                found[name] = values
        return {name: values.tolist() for name, values in found.items()}


def restore(model: ScoreModel, problem: Problem, sampler: Sampler, method: str = "tmpd", samples: int = 8, seed: int = 0,
            batch_size: int = 128, device: torch.device | str = "cpu", progress: bool = False) -> Restored:
    """`samples` answers for each measurement.

    batch_size  how many answers, or particles, the network sees at once

    Raises ArgumentError for what does not fit together, ArithmeticError if answers are not finite. Work that a killed
    command does not repeat, and that processes share, is evaluation.restoration's.
    """
    work = Restoration(model, problem, sampler, method, samples, seed, batch_size, device)
    parts = work.begun()
    work.run(parts, progress=progress)
    return restored(work, parts)


def restored(work: Restoration, parts: Parts) -> Restored:
    """The answers of work whose parts are all done."""
    found = work.joined(parts)
    mean = found.pop("mean").to(work.problem.y)
    return Restored(mean=work.problem.kept(mean).cpu(), **found)


def means(figures: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """The mean of each figure over the measurements; None where it is not finite, which JSON does not have."""
    found = {name: sum(values) / len(values) for name, values in figures.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def log_posterior(model: ScoreModel, problem: Measured, x: Tensor, **settings: Any) -> Tensor:
    """log p(x given y) up to a constant of each measurement: log p(x) + log p(y given x), in nats, (measurements,).

    x         (measurements, *event), an answer for each, such as restored.x[:, 0]
    settings  of likelihood.log_prob, which computes log p(x)

    Its differences between answers of one measurement are those of the posterior's log-density; with log p(y) taken off,
    which twisted_smc estimates, it is that density's logarithm itself. Raises ArgumentError for measurements without noise,
    whose posterior has no density, and for a model that is guided.
    """
    from scorefield.likelihood import log_prob

    if not isinstance(problem, Measured) or problem.noise_std == 0:
        raise ArgumentError("a posterior has a density where a measurement has noise; give one with noise_std above 0",
                            "noise_std")
    given = posterior(model, problem.operator, problem.y, problem.noise_std)
    return log_prob(model, x, **settings).value.double() + given.log_likelihood(x).double()
