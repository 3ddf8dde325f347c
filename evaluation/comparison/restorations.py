"""Restorations side by side: the same measurements by every method and sampler, at every budget of evaluations.

What is known of the truth decides. The first figure is the energy score of Gneiting and Raftery 2007, "Strictly Proper
Scoring Rules, Prediction, and Estimation", section 4.3,

    mean_i |x_i - truth| - mean_{i < j} |x_i - x_j| / 2        |.| the root mean square over the elements

of the answers x_i of a measurement. Its expectation is least for draws from the posterior itself: it punishes answers that
are wrong, and answers that are all alike, which PSNR rewards. Intervals are bootstraps over the measurements.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data import Codec
from scorefield.data.latents import Latents
from scorefield.evaluation.comparison.budgets import Asked, OverBudget, evaluations_of, within
from scorefield.evaluation.comparison.compare import Comparison, LeftOut, Row
from scorefield.evaluation.comparison.extras import Extras
from scorefield.evaluation.comparison.recommend import recommend
from scorefield.evaluation.comparison.words import RESTORATIONS
from scorefield.evaluation.latents import decoded, of_latents
from scorefield.evaluation.metrics import Figure
from scorefield.evaluation.metrics.metric import BOOTSTRAP, QUANTILES
from scorefield.evaluation.parts import Arrays
from scorefield.evaluation.progress import Progress
from scorefield.evaluation.restoration import Restoration
from scorefield.evaluation.restore import Problem, Restored
from scorefield.models import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import Sampler, TwistedSMC, make_sampler

SAMPLERS, METHODS, BUDGETS = ("twisted_smc", "ddim:eta=1"), ("tmpd", "pigdm"), (400, 1600, 6400)
METRICS = {"energy_score": "lower", "psnr_mean": "higher", "ssim_mean": "higher", "psnr": "higher", "ssim": "higher",
           "residual": "lower"}
COLUMNS, SHOWN = 8, 64      # of the pictures: truth, restored without a model, mean, answers


@dataclass(eq=False)
class Pair:
    """A method and a sampler at a budget, and the parts of its work that are done."""

    name: str
    budget: int | None
    work: Restoration
    done: dict[range, Arrays] = field(default_factory=dict)

    def __getitem__(self, unit: range) -> Arrays:
        return self.done[unit]

    @property
    def units(self) -> Sequence[range]:
        return self.work.units


def compare_restorations(model: ScoreModel, problem: Problem, truth: Tensor, codec: Codec,
                         samplers: Sequence[str] = SAMPLERS, methods: Sequence[str] = METHODS,
                         budgets: Sequence[int] = BUDGETS, *, metrics: Sequence[str] | None = None, samples: int = 8,
                         seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu",
                         bootstrap: int = BOOTSTRAP, unit: Callable[[Tensor], Tensor] = lambda x: x,
                         shape: tuple[int, ...] | None = None, title: str = "Restorations",
                         facts: dict[str, Any] | None = None, progress: bool = True) -> Comparison:
    """Every method by every sampler at every budget on the same measurements.

        found = compare_restorations(model, problem, truth, codec, ("auto",), ("tmpd", "pigdm"), (400,))
        print(found.recommendation)
        found.write("runs/vp_digits/compare_restorations")

    problem   the measurements (evaluation.restore.Measured), and truth (measurements, *event), as the model sees data, or as
              pictures for a model of latents
    samplers  words, each with options of its own after colons: "twisted_smc:particles=64", "ddim:eta=1"
    methods   words of guidance.posterior.METHODS, each with its options: "pigdm:data_std=0.5"
    budgets   evaluations of the network for a measurement, all of its answers or particles together
    metrics   names of METRICS, the first one decides
    samples   answers for each measurement, at least 2
    unit      from what the model sees to pictures in which 0 is black and 1 white, for PSNR and SSIM
    shape     of one example as data, by default as the model sees it

    Raises ArgumentError for names, options and budgets that do not exist, and where nothing can be run. A row that cannot be
    run is left out with the reason.
    """
    began = time.perf_counter()
    asked = [Asked.parse(text) for text in samplers]
    names = _checked(asked, methods, budgets, metrics, samples, len(problem.event) == 3)
    seen = of_latents(problem, codec) if isinstance(codec, Latents) else problem
    pairs, left_out = _pairs(asked, methods, sorted(set(budgets)), lambda sampler, method: Restoration(
        model, seen, sampler, method, samples, seed, batch_size, device))
    sampling = _run(pairs, left_out, progress)
    if not pairs:
        raise ArgumentError("nothing could be run: " + "; ".join(f"{o.name}: {o.reason}" for o in left_out), "samplers",
                            "methods", "budgets")
    rows = tuple(_row(pair, problem, truth, codec, unit, names, seed, bootstrap) for pair in pairs)
    described = {"answers": f"{samples} for each of {len(truth)} measurements"}
    return Comparison(
        rows, tuple(left_out), tuple(sorted(set(budgets))), names, recommend(rows, names[0], RESTORATIONS), len(truth), seed,
        str(device), codec.of_pictures, shape or problem.event, None, truth, Extras(), sampling,
        time.perf_counter() - began - sampling, title, described | (facts or {}), RESTORATIONS, COLUMNS)


def energy_score(x: Tensor, truth: Tensor) -> Tensor:
    """The energy score of answers x (measurements, samples, *event) to truth (measurements, *event), (measurements,): lower
    is better. `samples` must be at least 2.
    """
    x, truth = x.double().flatten(2), truth.double().flatten(1)[:, None]
    n, scale = x.shape[1], math.sqrt(x.shape[2])
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / (n * (n - 1))
    return ((x - truth).norm(dim=2).mean(1) - apart / 2) / scale


def _checked(asked: Sequence[Asked], methods: Sequence[str], budgets: Sequence[int], metrics: Sequence[str] | None,
             samples: int, pictures: bool) -> tuple[str, ...]:
    """The names of the metrics; ArgumentError for what does not fit together."""
    for name, found in (("samplers", [one.text for one in asked]), ("methods", methods)):
        if not found or len(set(found)) < len(found):
            raise ArgumentError(f"{name} must be different names, at least one, got {', '.join(found) or 'none'}", name)
    if not budgets or any(int(b) != b or b < 1 for b in budgets):
        raise ArgumentError(f"budgets must be whole numbers of evaluations, 1 or more, got {tuple(budgets)}", "budgets")
    if samples < 2:
        raise ArgumentError(f"restorations are compared by at least 2 answers of each measurement, got {samples}", "samples")
    known = [name for name in METRICS if pictures or not name.startswith("ssim")]
    for name in metrics or ():
        if name not in known:
            raise ArgumentError(f"unknown metric {name!r} of restorations; choose from {', '.join(known)}", "metrics")
    return tuple(metrics or known)


def _pairs(asked: Sequence[Asked], methods: Sequence[str], budgets: Sequence[int],
           work_of: Callable[[Sampler, str], Restoration]) -> tuple[list[Pair], list[LeftOut]]:
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    for one in asked:
        for method in methods:
            name = f"{method} by {one.text}"
            if one.adaptive:
                pairs.append(Pair(name, None, work_of(make_sampler(one.name, **one.options), method)))
                continue
            first = work_of(make_sampler(one.name, **one.options), method)
            spent: dict[Sampler, int] = {}
            for budget in budgets:
                try:
                    sampler, nfe = within(one, first.guided, budget, partial(_cost, samples=first.samples))
                except OverBudget as error:
                    left_out.append(LeftOut(name, budget, str(error)))
                    continue
                if sampler in spent:
                    left_out.append(LeftOut(name, budget, f"takes the same {nfe} evaluations as with {spent[sampler]}"))
                    continue
                spent[sampler] = budget
                pairs.append(Pair(name, budget, work_of(sampler, method)))
    return pairs, left_out


def _cost(sampler: Sampler, model: ScoreModel, samples: int) -> int:
    """The evaluations for a measurement; under twisted_smc without those of particles that are resampled and seen again."""
    if isinstance(sampler, TwistedSMC):
        return sampler.particles * sum(model.evaluations_at(t) for t in sampler.times(model))
    return samples * evaluations_of(sampler, model)


def _run(pairs: list[Pair], left_out: list[LeftOut], progress: bool) -> float:
    """Do all parts of all pairs, those of one pair among those of the others, so that a machine that becomes slower for a
    while is slower for all. Pairs that fail move to `left_out`. The seconds of the sampling.
    """
    order = sorted(((unit.stop / pair.units[-1].stop, i, pair, unit) for i, pair in enumerate(pairs) for unit in pair.units),
                   key=lambda item: item[:2])
    sampling = 0.0
    with Progress(sum(pair.work.steps * len(pair.units) for pair in pairs), "step", progress, "parts", len(order)) as bar:
        for _, _, pair, unit in order:
            if pair not in pairs:
                continue
            try:
                pair.done[unit] = pair.work.made(unit, bar)
            except ArithmeticError as error:
                pairs.remove(pair)
                left_out.append(LeftOut(pair.name, pair.budget, str(error)))
                continue
            sampling += float(pair.done[unit]["seconds"])
            bar.show(lambda: sum(len(one.done) for one in pairs))
    return sampling


def _row(pair: Pair, problem: Problem, truth: Tensor, codec: Codec, unit: Callable[[Tensor], Tensor], names: Sequence[str],
         seed: int, bootstrap: int) -> Row:
    found = pair.work.joined(pair)
    answers = Restored(mean=pair.work.problem.kept(found.pop("mean").to(problem.y)).cpu(), **found)
    if isinstance(codec, Latents):
        answers = decoded(answers, codec)
    each = answers.figures(problem, truth, unit) | {"energy_score": energy_score(answers.x, truth).tolist()}
    figures = {name: _figure(np.asarray(each[name]), METRICS[name], seed, bootstrap) for name in names}
    m = len(truth)
    return Row(pair.name, pair.work.sampler, pair.budget, answers.evaluations, answers.seconds / m, None, None, figures, {},
               _shown(answers, problem, truth))


def _figure(values: np.ndarray, better: str, seed: int, bootstrap: int) -> Figure:
    """The mean over measurements and its bootstrap interval. A picture that is restored to the bit has no PSNR; it counts
    as 100 dB.
    """
    values = np.minimum(values, 100.0)
    rng = np.random.Generator(np.random.Philox(seed))
    low, high = (math.nan, math.nan)
    if bootstrap:
        means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(bootstrap)]
        low, high = (float(q) for q in np.quantile(means, QUANTILES))
    return Figure(float(values.mean()), low, high, None, len(values), len(values), None, better)


def _shown(answers: Restored, problem: Problem, truth: Tensor) -> Tensor:
    """For each of the first measurements a row of pictures; for other events the first answers of all."""
    if len(problem.event) != 3:
        return answers.x.transpose(0, 1).flatten(0, 1)[:2000].float()
    simple = problem.simple()
    columns = [truth, *([] if simple is None else [simple.cpu()]), answers.mean]
    columns += [answers.x[:, i % answers.x.shape[1]] for i in range(COLUMNS - len(columns))]
    return torch.stack([column[:SHOWN // COLUMNS].float() for column in columns], 1).flatten(0, 1)


__all__ = ["BUDGETS", "METHODS", "METRICS", "SAMPLERS", "compare_restorations", "energy_score"]
