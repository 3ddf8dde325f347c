"""Samplers side by side: one model, every sampler at every budget of evaluations, from the same noise.

Sample i of every pair starts from the same noise and, under a stochastic sampler, has the same stream of noise after it:
it depends on (seed, i) alone. The batches are the outer loop and the pairs the inner one, so a machine that becomes slower
for a while is slower for all pairs. Before the first batch the model is evaluated a few times untimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scorefield.data import Codec, Dataset
from scorefield.evaluation.comparison.budgets import Asked, Maker, OverBudget, within
from scorefield.evaluation.comparison.extras import Extras, examples_of, extras_of
from scorefield.evaluation.comparison.flow import Limits, rms
from scorefield.evaluation.comparison.recommend import Recommendation, recommend
from scorefield.evaluation.comparison.words import SAMPLES, Words
from scorefield.evaluation.evaluate import against, of_run, require_enough
from scorefield.evaluation.metrics import Features, Figure, Metric, Reference, default_metrics, make_metrics
from scorefield.evaluation.metrics.metric import BOOTSTRAP
from scorefield.models import ScoreModel
from scorefield.models.score_model import evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import Sampler, prior_sample, sample_seeds

SAMPLERS, BUDGETS = ("auto", "unipc", "ddim", "euler_maruyama"), (5, 10, 20, 50)
SHOWN, SHOWN_POINTS = 64, 2000      # samples that are kept for pictures
SOLVED, SOLVED_POINTS = 64, 1000    # samples whose flow is solved tightly
WARM_UP = 3       # evaluations before the clock runs
BEHIND = 2000     # training examples that are kept for pictures
Model = ScoreModel | Callable[[range], ScoreModel]


@dataclass(frozen=True)
class Row:
    """One sampler at one budget.

    name     as asked for: "auto", "ddim:eta=1"
    sampler  with its settings
    budget   of evaluations; None for a sampler that chooses their number itself
    nfe      evaluations of the network for each sample (the mean, if batches differ)
    seconds  for each sample
    error    RMS distance per dimension to the tight solution, the median over samples; None for a stochastic sampler
    accuracy  how exact that solution is, in the same units
    figures  of each metric
    matched  figures of the first samples, as many as the floor has examples: of the metrics with a bias that goes by that
             number, where it differs
    shown    the first samples (n, *event), as the model draws them
    """

    name: str
    sampler: Sampler
    budget: int | None
    nfe: float
    seconds: float
    error: float | None
    accuracy: float | None
    figures: dict[str, Figure]
    matched: dict[str, Figure]
    shown: Tensor = field(repr=False)


@dataclass(frozen=True)
class LeftOut:
    """A pair that was not run, or failed, and why."""

    name: str
    budget: int | None
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `write(folder)` makes the page and the files behind it.

    rows            in the order in which the samplers were asked for, by budget
    metrics         their names; the first one decides the recommendation
    solution        the first samples of the tight solution of the flow, None if no sampler is deterministic
    behind          some training examples, as the model sees them
    seconds         of everything, and of the sampling alone
    facts           what a reader must know of the model and the data, by name
    words           what the page calls things
    columns         in which the pictures of a row are laid out; None: as many as make it square
    """

    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    budgets: tuple[int, ...]
    metrics: tuple[str, ...]
    recommendation: Recommendation
    n: int
    seed: int
    device: str
    codec: Codec
    shape: tuple[int, ...]
    solution: Tensor | None = field(repr=False)
    behind: Tensor = field(repr=False)
    extras: Extras = field(repr=False)
    sampling_seconds: float = 0.0
    other_seconds: float = 0.0
    title: str = "Samplers compared"
    facts: dict[str, Any] = field(default_factory=dict)
    words: Words = SAMPLES
    columns: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The samplers that have a row or were left out, in the order asked for."""
        return tuple(dict.fromkeys([*(row.name for row in self.rows), *(out.name for out in self.left_out)]))

    def write(self, folder: Path | str) -> Path:
        """Write index.html, results.csv and .json, and the pictures behind the page; returns the path of index.html.

        Everything is written beside the folder first, so a full disk or an interruption leaves no half of it.
        """
        from scorefield.evaluation.comparison.record import write

        return write(self, Path(folder))


class _Tally:
    """What the batches of one pair add up to."""

    def __init__(self, asked: Asked, sampler: Sampler, budget: int | None, metrics: dict[str, Metric],
                 matched: dict[str, Metric], held_out: int, shown: int):
        self.name, self.sampler, self.budget, self.metrics, self.most = asked.text, sampler, budget, metrics, shown
        self.matched, self.held_out = matched, held_out
        self.n, self.evaluations, self.seconds = 0, 0.0, 0.0
        self.error: float | None = None
        self.accuracy: float | None = None
        self.shown: list[Tensor] = []

    def add(self, x: Tensor, data: Tensor, nfe: int, seconds: float) -> None:
        if (missing := self.most - self.n) > 0:
            self.shown.append(x[:missing])
        first = max(0, self.held_out - self.n) if self.matched else len(data)
        for part, own in ((data[:first], [*self.metrics.values(), *self.matched.values()]),
                          (data[first:], self.metrics.values())):
            for metric in own if len(part) else ():      # one tensor for all: they share its features
                metric.update(part)
        self.n, self.evaluations, self.seconds = self.n + len(x), self.evaluations + nfe * len(x), self.seconds + seconds

    def row(self) -> Row:
        figures, matched = ({name: metric.result() for name, metric in metrics.items()}
                            for metrics in (self.metrics, self.matched))
        return Row(self.name, self.sampler, self.budget, self.evaluations / self.n, self.seconds / self.n, self.error,
                   self.accuracy, figures, matched, torch.cat(self.shown))


def compare(model: Model | str | Path, dataset: Dataset | Any = None, samplers: Sequence[str] = SAMPLERS,
            budgets: Sequence[int] = BUDGETS, *, metrics: Sequence[str] | None = None, n: int = 1000, seed: int = 0,
            batch_size: int = 128, device: torch.device | str = "cpu", codec: Codec | None = None,
            features: Features | str | None = None, label: int | Sequence[int] | str | None = None,
            reference: Reference | None = None, bootstrap: int = BOOTSTRAP, cache: Path | None = None, likelihood: int = 64,
            title: str = "", facts: dict[str, Any] | None = None, progress: bool = True,
            makers: Mapping[str, Maker] | None = None) -> Comparison:
    """Every sampler at every budget on one model: metrics with intervals, error to the flow, seconds, a recommendation.

        result = compare("runs/vp_digits", samplers=("auto", "ddim"), budgets=(5, 10, 20), n=500)
        print(result.recommendation)
        result.write("runs/vp_digits/compare")      # index.html, results.csv, results.json and pictures

    model       a score model; a function from the numbers of samples to theirs (as in `draw`), for guidance; or a run
    dataset     what the samples are compared with; by default the run's own
    samplers    words of SAMPLERS, each with options of its own after colons: "ddim:eta=1", "dpm_solver++:order=3"
    budgets     numbers of evaluations; each sampler takes the most steps that keep to it (budgets.py)
    metrics     their names, the first one decides; by default those of the data set (`default_metrics`)
    n           samples of each pair
    codec       of the data that the model was trained on
    features    a feature network, or its name; by default the project's own for its data sets
    label       of the samples: a class, several in turn, or "all". They are compared with examples of these classes
    reference   of the data, where one exists; dataset and features are then its own
    bootstrap   replicates of the intervals
    cache       a folder for the statistics of the data
    likelihood  how many held-out and training examples are scored for the histogram; 0: none
    title, facts  for the page
    makers      of samplers that are fitted to this model, by name: from the options, with the steps of a budget, to the
                sampler, or ArgumentError; {"tuned": lambda options: Tuned.of(solvers[options["steps"]])}

    Raises ArgumentError for names, options and budgets that do not exist, for too few samples for a metric, and where no
    pair can be run. A pair that cannot be run is left out with the reason.
    """
    began = time.perf_counter()
    asked, budgets = _checked(samplers, budgets, n, makers)
    if isinstance(model, str | Path):
        model, dataset, codec = of_run(model, dataset, codec, device)
    if reference is None:
        model, _, reference, _ = against(model, dataset, codec, features, label, cache, device)
    dataset, codec = reference.dataset, reference.codec
    names = tuple(metrics) if metrics is not None else default_metrics(dataset, reference.features)
    require_enough(make_metrics(names, reference), n)
    known: Any = model

    def of(numbers: range) -> ScoreModel:
        return known if isinstance(known, ScoreModel) else known(numbers)

    event = codec.event(dataset.shape)
    shown = SHOWN if len(event) > 1 else SHOWN_POINTS
    held_out = reference.held_out

    def tally(one: Asked, sampler: Sampler, budget: int | None) -> _Tally:
        own, again = (make_metrics(names, reference, seed, bootstrap) for _ in range(2))
        matched = {k: metric for k, metric in again.items() if metric.biased and metric.minimum <= held_out < n}
        return _Tally(one, sampler, budget, own, matched, held_out, shown)

    tallies, left_out = _pairs(asked, budgets, of(range(1)), tally)
    solution, sampling = _run(tallies, left_out, of, event, n, seed, batch_size, device, codec, progress)
    if not tallies:
        raise ArgumentError("no sampler could be run: " + "; ".join(f"{o.name}: {o.reason}" for o in left_out), "samplers",
                            "budgets")
    rows = tuple(tally.row() for tally in tallies)
    recommendation = recommend(rows, names[0])
    extras = extras_of(of, rows, recommendation, dataset, codec, event, seed, device, likelihood)
    compared = {"data": f"{dataset.name}, {reference.size:,} training and {len(dataset.test):,} held-out examples"}
    compared |= {} if reference.features is None else {"features": reference.features.name}
    return Comparison(
        rows, tuple(left_out), budgets, names, recommendation, n, seed, str(device), codec, dataset.shape, solution,
        examples_of(dataset, codec, BEHIND), extras, sampling, time.perf_counter() - began - sampling,
        title or f"Samplers on {dataset.name}", compared | (facts or {}))


def _checked(samplers: Sequence[str], budgets: Sequence[int], n: int, makers: Mapping[str, Maker] | None
             ) -> tuple[list[Asked], tuple[int, ...]]:
    asked = [Asked.parse(text, makers) for text in samplers]
    if not asked or len({one.text for one in asked}) < len(asked):
        raise ArgumentError(f"samplers must be different names, at least one, got {', '.join(samplers) or 'none'}",
                            "samplers")
    if not budgets or any(int(b) != b or b < 1 for b in budgets):
        raise ArgumentError(f"budgets must be whole numbers of evaluations, 1 or more, got {tuple(budgets)}", "budgets")
    if n < 1:
        raise ArgumentError(f"n must be at least 1, got {n}", "num_samples")
    return asked, tuple(sorted({int(b) for b in budgets}))


def _pairs(asked: Sequence[Asked], budgets: Sequence[int], model: ScoreModel,
           tally: Callable[[Asked, Sampler, int | None], _Tally]) -> tuple[list[_Tally], list[LeftOut]]:
    """A tally for every pair that can be run, and the others with the reasons."""
    tallies: list[_Tally] = []
    left_out: list[LeftOut] = []
    for one in asked:
        if one.adaptive:
            tallies.append(tally(one, one.made(), None))
            continue
        spent: dict[Sampler, int] = {}
        for budget in budgets:
            try:
                sampler, nfe = within(one, model, budget)
            except OverBudget as error:
                left_out.append(LeftOut(one.text, budget, str(error)))
                continue
            if sampler in spent:
                left_out.append(LeftOut(one.text, budget, f"takes the same {nfe} evaluations as with {spent[sampler]}"))
                continue
            spent[sampler] = budget
            tallies.append(tally(one, sampler, budget))
    return tallies, left_out


def _run(tallies: list[_Tally], left_out: list[LeftOut], of: Callable[[range], ScoreModel], event: tuple[int, ...], n: int,
         seed: int, batch_size: int, device: torch.device | str, codec: Codec, progress: bool
         ) -> tuple[Tensor | None, float]:
    """Draw all batches of all pairs into the tallies; pairs that fail move to `left_out`. The tight solution of the first
    samples, and the seconds of the sampling.
    """
    batches = [range(begin, min(begin + batch_size, n)) for begin in range(0, n, batch_size)]
    _warm_up(of, {len(b): b for b in batches}.values(), event, seed, device)
    solution, sampling = None, 0.0
    with tqdm(total=len(batches) * len(tallies), unit="batch", disable=None if progress else True) as bar:
        for numbers in batches:
            seeds, own = sample_seeds(seed, numbers.start, numbers.stop), of(numbers)
            x_T = prior_sample(own.sde, event, seeds, device)
            solved = min(len(numbers), SOLVED if len(event) > 1 else SOLVED_POINTS)
            limits = Limits(of(range(solved)), x_T[:solved]) if numbers.start == 0 else None
            for tally in list(tallies):
                start = time.perf_counter()
                try:
                    result = tally.sampler(own, x_T, seeds)
                    x = result.x.cpu()
                except ArithmeticError as error:
                    tallies.remove(tally)
                    left_out.append(LeftOut(tally.name, tally.budget, str(error)))
                    continue
                seconds = time.perf_counter() - start
                sampling += seconds
                tally.add(x, x if codec.levels is None else codec.decode(x), result.nfe, seconds)
                if limits is not None and not tally.sampler.stochastic:
                    limit = limits.of(tally.sampler)
                    tally.error = float(rms(x[:solved].to(limit.x) - limit.x).median())
                    tally.accuracy = limit.accuracy
                    solution = limit.x.cpu().float() if solution is None else solution
                bar.update()
    return solution, sampling


def _warm_up(of: Callable[[range], ScoreModel], batches: Any, event: tuple[int, ...], seed: int, device: Any) -> None:
    for numbers in batches:
        own = of(numbers)
        x = prior_sample(own.sde, event, sample_seeds(seed, numbers.start, numbers.stop), device)
        with evaluation_mode(own), torch.no_grad():
            for _ in range(WARM_UP):
                float(own.eps(x, own.sde.t_max).flatten()[0])      # waits for a device
