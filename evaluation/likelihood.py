"""Bits/dim of data under a model, in batches. Processes share them, and a killed evaluation does not repeat finished ones.

Example i is scored K times (its draws): y_ij = -log2 p(x_ij)/D + offset, where x_ij is its j-th dequantisation, and the
codec has the offset. A dequantizer (models/networks/dequantizer.py) makes u of uniform numbers, and log2 q(u given k)/D is
added. What a draw is depends on (seed, i, j) alone:

    dequantisation    the (j + 1)-th uniform draw of the stream DEQUANTIZATION of the seeds (seed, i)
    probes            the seeds ((seed + j GOLDEN) mod 2^64, i), so those of draw 0 are (seed, i)

A unit of work is one draw of one batch. Adaptive solvers choose their steps by the batch, so the batches are the same
however many processes share them: process r of W takes the units r, r + W, ...
"""

import contextlib
import hashlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data import Codec, Condition, Dataset
from scorefield.evaluation.estimators import BOUNDS, ESTIMATORS, Task
from scorefield.evaluation.given import given_of, require_conditions, unbound
from scorefield.evaluation.progress import Progress
from scorefield.evaluation.score import Score
from scorefield.likelihood.checks import fitting
from scorefield.models import ScoreModel
from scorefield.models.conditions import LABEL
from scorefield.models.networks.dequantizer import Dequantizer, dequantizer_of
from scorefield.models.score_model import Given, check_density, check_score
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import read_arrays, write_arrays
from scorefield.numerics.noise import DEQUANTIZATION, NoiseStream
from scorefield.numerics.processes import World
from scorefield.samplers import sample_seeds

GOLDEN = 0x9E3779B97F4A7C15      # odd, so that the draws of one example have 2^64 different seeds
OWN = "true"                     # as a label: that of each example
OWN_FLOW, UNIFORM = "own", "uniform"      # as a dequantizer


@dataclass(frozen=True)
class Part:
    """One draw of one batch: log p (batch,) in nats with its errors and terms, evaluations an example, seconds."""

    value: np.ndarray
    error: np.ndarray | None
    solver_error: np.ndarray | None
    nfe: int
    seconds: float
    terms: dict[str, np.ndarray]


class Evaluation:
    """The scoring of the first n examples of a split (None: all), resumable and shared.

    Integer levels are dequantised by u ~ U[0, 1), `draws` times, in the codec's interval; points are scored as a density. Of
    a model of latents it is the bound of data/latents.py, whose z are drawn `draws` times; its parts are the terms.
    With a label, the same numbers are drawn as without, so classes can be compared. Of a model that takes low_res it is the
    likelihood given that of each example, log p(x | low_res). The arguments of `score`, and

    folder    where finished units are kept, a file each; it must belong to these arguments and this model alone, but what
              the examples hold is checked. None keeps nothing
    world     this process among those that share the folder, and the work
    """

    def __init__(self, model: ScoreModel, dataset: Dataset, codec: Codec, split: str = "test", n: int | None = None,
                 seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu", progress: bool = True,
                 draws: int = 1, estimator: str = "ode", float64: bool = False, folder: Path | None = None,
                 world: World | None = None, label: str | int | None = None,
                 dequantizer: Dequantizer | str = OWN_FLOW, **settings: Any):
        if estimator not in ESTIMATORS:
            raise ArgumentError(f"unknown estimator {estimator!r}; choose from {', '.join(ESTIMATORS)}", "estimator")
        if draws < 1:
            raise ArgumentError(f"draws must be at least 1, got {draws}", "draws")
        if estimator == "chain_elbo":
            settings = {"discrete": codec.discrete} | settings
        self.discrete = estimator == "chain_elbo" and settings["discrete"]
        if self.discrete and codec.levels is None:
            raise ArgumentError(f"data set {dataset.name!r} holds points: chain_elbo takes them with discrete=False",
                                "discrete")
        if draws > 1 and (codec.levels is None or self.discrete):
            what = "for chain_elbo integers" if self.discrete else f"the points of data set {dataset.name!r}"
            raise ArgumentError(f"{what} are not dequantised: draws must be 1, got {draws}", "draws")
        noisy = codec.levels is not None and not self.discrete
        self.dequantizer = _flow_of(model, dequantizer, noisy, dataset.shape)
        self.model, self.dataset, self.codec, self.label = model, dataset, codec.dense, label
        self.examples = dataset.test if split == "test" else dataset.train
        check_density(model)
        if estimator in BOUNDS:
            check_score(model, "a bound")
        _check_label(model, self.examples, dataset.name, label, dataset.unlabelled)
        require_conditions(model, self.examples, dataset.name)
        self.total = len(self.examples) if n is None else min(n, len(self.examples))
        if self.total < 1:
            raise ArgumentError(f"data set {dataset.name!r} has no {split} examples", "split")
        self.seed, self.device, self.draws, self.float64 = seed, device, draws, float64
        self.estimator, self.settings = ESTIMATORS[estimator], settings
        self.exact = estimator == "ode" and settings.get("divergence", "exact") == "exact"
        self.folder, self.world = folder, world or World()
        self.progress = progress and self.world.first
        self.units = [(begin, min(begin + batch_size, self.total), draw)
                      for begin in range(0, self.total, batch_size) for draw in range(draws)]
        self._batch: tuple[int, Tensor, Condition, str] | None = None
        self.parts = {unit: part for unit in self.units if (part := self._read(unit))}
        self.resumed = len(self.parts)

    def run(self) -> "Evaluation":
        """Do this process's share; the first then waits for the rest.

        Raises ValueError for data that are not finite or outside their levels, ArithmeticError where the likelihood cannot
        be computed. What is done stays in the folder.
        """
        total = self.total * self.draws
        with Progress(total, "example", self.progress, "examples scored", total) as bar:
            def show() -> None:
                bar.at(self._rows_done())
                bar.show(self._rows_done)

            show()
            for unit in self.units[self.world.rank :: self.world.size]:
                if unit not in self.parts:
                    try:
                        self.parts[unit] = self._evaluate(unit)
                        self._write(unit, self.parts[unit])
                    except (ValueError, ArithmeticError) as error:
                        raise self._with_what_is_kept(error) from error
                    show()
            while self.world.first and (missing := [unit for unit in self.units if unit not in self.parts]):
                found = {unit: part for unit in missing if (part := self._read(unit))}
                self.parts |= found
                show()
                if not found:
                    time.sleep(0.2)
        return self

    def result(self) -> Score:
        """All units, in the order of the examples; in the first process, after `run`."""
        def joined(values: Callable[[Part], np.ndarray | None]) -> Tensor | None:
            rows = [[values(self.parts[u]) for u in self.units if u[2] == draw] for draw in range(self.draws)]
            if any(value is None for row in rows for value in row):
                return None
            return torch.from_numpy(np.stack([np.concatenate([v for v in row if v is not None]) for row in rows]))

        log_prob, evaluations = joined(lambda p: p.value), joined(lambda p: np.full(len(p.value), float(p.nfe)))
        assert log_prob is not None and evaluations is not None

        def named(term: str) -> Callable[[Part], np.ndarray | None]:
            return lambda part: part.terms.get(term)

        terms = {name: term for name in self.parts[self.units[0]].terms if (term := joined(named(name))) is not None}
        dimensions = math.prod(self.dataset.shape)
        offset = 0.0 if self.discrete else self.codec.offset
        return Score(log_prob, joined(lambda p: p.error), joined(lambda p: p.solver_error), evaluations.sum(0), dimensions,
                     offset, sum(part.seconds for part in self.parts.values()), terms, self.exact, self.codec.levels is None)

    def clear(self) -> None:
        """Remove the folder: its results are elsewhere now."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):      # others may be unfinished
                self.folder.parent.rmdir()

    def kept(self) -> str:
        """The number of units that an interrupted evaluation has kept, as text; "" if none."""
        done = self._rows_done()
        if self.folder is None or not done:
            return ""
        what = "examples" if self.draws == 1 else "dequantised examples"
        return f"{done} of {self.total * self.draws} {what} are done and kept; the same command continues from there"

    def _with_what_is_kept(self, error: Exception) -> Exception:
        kind, kept = ArithmeticError if isinstance(error, ArithmeticError) else ValueError, self.kept()
        return kind(f"{error}; {kept}" if kept else str(error))

    def _rows_done(self) -> int:
        return sum(end - begin for begin, end, draw in self.units
                   if (begin, end, draw) in self.parts or (self.world.size > 1 and self._path(begin, draw).exists()))

    def _data(self, begin: int, end: int) -> tuple[Tensor, Condition, str]:
        """The batch's examples, the conditions that they are given, and the digest of both.

        The last one is kept, since its next draw comes next.
        """
        if self._batch is None or self._batch[0] != begin:
            k, condition = self.examples[torch.arange(begin, end)]
            digest = hashlib.sha256(f"{k.dtype} {tuple(k.shape)}".encode() + k.contiguous().numpy().tobytes())
            told = unbound(self.model, condition)
            if self.label is not None:
                told[LABEL] = condition[LABEL] if self.label == OWN else torch.full((len(k),), int(self.label))
            for value in told.values():
                digest.update(value.contiguous().numpy().tobytes())
            self._batch = begin, k, told, digest.hexdigest()
        return self._batch[1:]

    def _evaluate(self, unit: tuple[int, int, int]) -> Part:
        begin, end, draw = unit
        start = time.perf_counter()
        k, told, _ = self._data(begin, end)
        name = f"data set {self.dataset.name!r}"
        if k.shape[1:] != self.dataset.shape:
            raise ValueError(f"{name} has examples of shape {tuple(k.shape[1:])}, not {self.dataset.shape}")
        self.codec.check(k, name, begin)
        u, log_q = self._uniform(k, begin, end, draw) if self.codec.noisy else None, None
        if self.dequantizer is not None and u is not None:
            u, log_q = self._flown(k, u)
        x = self.codec.encode(k, u).to(self.device, torch.float64 if self.float64 else None)
        seeds = sample_seeds((self.seed + draw * GOLDEN) % 2**64, begin, end)
        model = given_of(self.model, told, self.device)
        log_p, *errors, nfe, terms = self.estimator(model, Task(x, k, seeds, self.codec), **self.settings)
        for name, term in self.codec.terms(k, x).items():
            terms = (terms or {"density": log_p}) | {name: term}
            log_p = log_p.detach().cpu().double() + term
        if log_q is not None:
            terms = (terms or {"density": log_p}) | {"dequantization": -log_q}
            log_p = log_p - log_q.to(log_p)
        value, error, solver_error = (t if t is None else t.detach().cpu().double().numpy() for t in (log_p, *errors))
        assert value is not None
        if not np.isfinite(value).all():
            bad = int(np.flatnonzero(~np.isfinite(value))[0])
            raise ArithmeticError(f"the log-likelihood of example {begin + bad} is {value[bad]}; the score may be NaN")
        return Part(value, error, solver_error, nfe, time.perf_counter() - start,
                    {name: term.detach().cpu().double().numpy() for name, term in terms.items()})

    def _uniform(self, k: Tensor, begin: int, end: int, draw: int) -> Tensor:
        """The noise that the codec takes for a batch in its draw of that number."""
        stream = NoiseStream(sample_seeds(self.seed, begin, end), DEQUANTIZATION)
        u = [stream.uniform(self.codec.noise_like(k)) for _ in range(draw + 1)][-1]
        return u.double() if self.float64 else u

    def _flown(self, k: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """u and log q(u given k) from the dequantizer, on the CPU."""
        assert self.dequantizer is not None
        with torch.no_grad(), fitting(k):
            centre = self.codec.encode(k, torch.full_like(r, 0.5)).to(self.device)
            u, log_q = self.dequantizer(centre, r.to(self.device))
        return u.cpu(), log_q.cpu()

    def _path(self, begin: int, draw: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{begin:08d}_{draw:04d}.npz"

    def _write(self, unit: tuple[int, int, int], part: Part) -> None:
        if self.folder is None:
            return
        begin, end, draw = unit
        arrays = {name: value for name, value in vars(part).items() if value is not None and name != "terms"}
        arrays |= {f"term_{name}": value for name, value in part.terms.items()}
        arrays["digest"] = self._data(begin, end)[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_arrays(self._path(begin, draw), arrays)

    def _read(self, unit: tuple[int, int, int]) -> Part | None:
        """The stored result of a unit; None if it is missing, damaged, edited, or of other examples."""
        begin, end, draw = unit
        if self.folder is None or not self._path(begin, draw).exists():
            return None
        try:
            stored = read_arrays(self._path(begin, draw))
            digest, nfe, seconds = (stored.pop(name).item() for name in ("digest", "nfe", "seconds"))
            part = Part(stored.pop("value"), stored.pop("error", None), stored.pop("solver_error", None), nfe, seconds,
                        {name.removeprefix("term_"): value for name, value in stored.items()})
        except Exception:      # the parsers of damaged files raise errors of every type
            return None
        right = all(a is None or a.shape == (end - begin,)
                    for a in (part.value, part.error, part.solver_error, *part.terms.values()))
        return part if right and digest == self._data(begin, end)[-1] else None


def score(model: ScoreModel, dataset: Dataset, codec: Codec, split: str = "test", n: int | None = None, seed: int = 0,
          batch_size: int = 128, device: torch.device | str = "cpu", progress: bool = True, draws: int = 1,
          estimator: str = "ode", float64: bool = False, label: str | int | None = None,
          dequantizer: Dequantizer | str = OWN_FLOW, **settings: Any) -> Score:
    """Bits/dim of the first n examples of a split (None: all), by the probability-flow ODE by default.

        result = score(model, dataset, make_codec(dataset.levels), divergence="exact")

    codec      of the data that the model was trained on
    draws      dequantisations of each example
    estimator  "ode" (likelihood.log_prob), or a lower bound: "elbo", "chain_elbo". `settings` go to that function, whose
               `draws` are called `bound_draws` here. chain_elbo bounds the probability of the integers where the codec
               is discrete, else the density; `discrete` says otherwise
    float64    the state in float64
    dequantizer  "own": the flow q(u given k) that the model has, or uniform u without one; "uniform"; or a Dequantizer.
               -log q counts as part of log p, and the bound on log P(k) holds for each
    label      "true": log p(x | y), y the example's own label; a class: that one for every example; None: no label. Other
               conditions that the model takes, such as low_res, are each example's own

    The random numbers of example i depend only on (seed, i). Raises as `Evaluation` and `Evaluation.run` do.
    """
    return Evaluation(model, dataset, codec, split, n, seed, batch_size, device, progress, draws, estimator, float64,
                      label=label, dequantizer=dequantizer, **settings).run().result()


def _flow_of(model: ScoreModel, dequantizer: Dequantizer | str, noisy: bool, shape: tuple[int, ...]) -> Dequantizer | None:
    """The dequantizer that scores examples; None for uniform noise, and for examples that are not dequantised."""
    if isinstance(dequantizer, str) and dequantizer not in (OWN_FLOW, UNIFORM):
        raise ArgumentError(f"dequantizer must be a Dequantizer, {OWN_FLOW!r} (the model's, if it has one) or {UNIFORM!r}, "
                            f"got {dequantizer!r}", "dequantizer")
    if not noisy:
        if dequantizer == OWN_FLOW:
            return None
        raise ArgumentError("these examples are not dequantised; leave out dequantizer", "dequantizer")
    flow = dequantizer_of(model) if dequantizer == OWN_FLOW else None if isinstance(dequantizer, str) else dequantizer
    if flow is not None and (len(shape) != 3 or shape[0] != flow.channels):
        raise ArgumentError(f"the dequantizer is for pictures ({flow.channels}, height, width), and the examples are "
                            f"{shape}", "dequantizer")
    return flow


def _check_label(model: ScoreModel, examples: Any, name: str, label: str | int | None, why: str = "") -> None:
    """ArgumentError unless the model can score with this label and the examples have what that takes."""
    takes = model.takes
    if label is None:
        if LABEL in takes.names and not takes.label_dropout and not isinstance(model, Given):
            raise ArgumentError("this model was trained with labels and without label dropout: it scores an example given a "
                                "label only; give label true, or a class", "label")
        return
    if LABEL not in takes.names:
        raise ArgumentError("the model takes no label: it was trained without classes (model.classes)", "label")
    if isinstance(label, str) and label != OWN:
        raise ArgumentError(f"label must be 'true', the number of a class or None, got {label!r}", "label")
    own = getattr(examples, "condition", None) or examples[torch.arange(1)][1]      # of what is read from disk, the first
    if label == OWN and LABEL not in own:
        raise ArgumentError(f"the examples of data set {name!r} have no labels{why and f' ({why})'}; leave out label, or "
                            "give a class", LABEL)
    model.given(label=own[LABEL] if label == OWN else label)
