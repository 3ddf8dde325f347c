"""Bits/dim of data under a model: in batches that processes share and that a killed evaluation need not repeat.

Example i is scored K times ("draws"), y_ij = -log2 p(x_ij)/D + offset, where x_ij is its j-th dequantisation. What a draw
is depends on (seed, i, j) alone:

    dequantisation    the (j + 1)-th uniform draw of the stream DEQUANTIZATION of the seeds (seed, i)
    probes            the seeds ((seed + j GOLDEN) mod 2^64, i), so those of draw 0 are (seed, i)

An example's bits/dim is the mean of y_ij over j; the importance-weighted bound is tighter, by Jensen's inequality (Burda
et al. 2016; Ho et al. 2019, Flow++, section 3.1):

    iw_i = -log2(1/K sum_j p(x_ij)) / D + offset <= 1/K sum_j y_ij

It bounds nothing where log p is noisy, since the mean of exp favours what is too large: there is one for exact traces only.

The standard error of the mean over n examples, se = std_i(y_i) / sqrt(n), holds every source of chance. Its parts, in
squares, with pe_ij the standard error of y_ij over its own probes and s_i^2 the variance of y_ij over j:

    probes^2            sum_ij pe_ij^2 / (n K)^2                   where there were several probes
    dequantization^2    sum_i s_i^2 / (K n^2) - probes^2           where K > 1; with a single probe it holds the probe's too
    data^2              se^2 - dequantization^2 - probes^2         and 0 where one of these is below it

A unit of work is one draw of one batch. Adaptive solvers choose their steps by the batch, so the batches are the same
however many processes share them: process r of W takes the units r, r + W, ...
"""

import contextlib
import csv
import hashlib
import io
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scorefield.data import Dataset, dequantize, require_within
from scorefield.likelihood import bits_per_dim, chain_elbo, elbo, log_prob
from scorefield.models import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_atomically
from scorefield.numerics.noise import DEQUANTIZATION, NoiseStream, Seed
from scorefield.numerics.processes import World
from scorefield.samplers import sample_seeds

GOLDEN = 0x9E3779B97F4A7C15      # odd, so that the draws of one example have 2^64 different seeds
LOG_EVERY = 30                   # seconds between the lines of progress in a log


@dataclass(frozen=True)
class Score:
    """What n examples scored in K draws each, in nats, float64.

    log_prob       (K, n): log p(x_ij), or the estimator's bound on it
    probe_error    (K, n): its standard error over the estimator's own draws (probes), or None where that is unknown
    solver_error   (K, n): the solver's estimate of its own error, or None
    evaluations    (n,): of the network, for all draws of an example together
    dimensions     D, and `offset` the bits/dim of log p = 0
    seconds        of work, summed over batches, whichever run or process did them
    terms          (K, n) each: the named parts that add up to log_prob, of a bound
    exact          whether log_prob is free of an estimator's own noise
    """

    log_prob: Tensor
    probe_error: Tensor | None
    solver_error: Tensor | None
    evaluations: Tensor
    dimensions: int
    offset: float
    seconds: float
    terms: dict[str, Tensor]
    exact: bool

    @property
    def draw_bits(self) -> Tensor:
        """y_ij, (K, n): bits/dim of every draw."""
        return self._bits(self.log_prob)

    @property
    def bits_per_dim(self) -> Tensor:
        """(n,): the mean over the draws of an example."""
        return self.draw_bits.mean(0)

    @property
    def bits_per_dim_iw(self) -> Tensor | None:
        """(n,): the importance-weighted bound with the K > 1 draws of an example; None where log p is not exact."""
        draws = len(self.log_prob)
        return self._bits(self.log_prob.logsumexp(0) - math.log(draws)) if draws > 1 and self.exact else None

    @property
    def mean(self) -> float:
        return float(self.bits_per_dim.mean())

    @property
    def nfe(self) -> float:
        return float(self.evaluations.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean: spread of data, dequantisation and probes together; NaN for a single example."""
        n = len(self.bits_per_dim)
        return float(self.bits_per_dim.std()) / math.sqrt(n) if n > 1 else math.nan

    @property
    def standard_error_parts(self) -> dict[str, float | None]:
        """"data", "dequantization" and "probes" in bits/dim (formulas above); None where a part cannot be told."""
        draws, n = self.log_prob.shape
        probes = None if self.probe_error is None else float((self._scale * self.probe_error).norm()) / (draws * n)
        dequantization = None
        if draws > 1:
            spread = float(self.draw_bits.var(0).sum()) / (draws * n**2)
            dequantization = math.sqrt(max(spread - (probes or 0) ** 2, 0))
        data = self.standard_error**2 - (dequantization or 0) ** 2 - (probes or 0) ** 2
        return {"data": math.sqrt(max(data, 0)) if n > 1 else None, "dequantization": dequantization, "probes": probes}

    @property
    def _scale(self) -> float:
        return 1 / (self.dimensions * math.log(2))

    def _bits(self, log_prob: Tensor) -> Tensor:
        return self.offset - self._scale * log_prob

    def summary(self) -> dict[str, Any]:
        """The figures, for JSON: means over the examples, in bits/dim; nfe counts all draws of an example."""
        tighter, solver = self.bits_per_dim_iw, self.solver_error
        return {
            "bits_per_dim": self.mean, "standard_error": self.standard_error,
            "standard_error_parts": self.standard_error_parts,
            **({"bits_per_dim_iw": float(tighter.mean())} if tighter is not None else {}),
            **({"solver_error": self._scale * float(solver.mean())} if solver is not None else {}),
            **({"terms": {name: -self._scale * float(term.mean()) for name, term in self.terms.items()}
                | {"offset": self.offset}} if self.terms else {}),
            "nfe": self.nfe, "seconds": round(self.seconds, 3), "num_images": len(self.bits_per_dim),
            "draws": len(self.log_prob),
        }

    def rows(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A row for each example, for CSV; what is unknown is left empty. Nats in log_prob_nats, else bits/dim."""
        draws = len(self.log_prob)
        columns = {
            "bits_per_dim": self.bits_per_dim, "log_prob_nats": self.log_prob.mean(0),
            "dequantization_std": self.draw_bits.std(0) if draws > 1 else None,
            "probe_error": None if self.probe_error is None else self._scale * self.probe_error.norm(dim=0) / draws,
            "solver_error": None if self.solver_error is None else self._scale * self.solver_error.mean(0),
            "bits_per_dim_iw": self.bits_per_dim_iw, "nfe": self.evaluations,
        }
        return [{"index": i, **({"file": names[i]} if names else {}),
                 **{name: "" if column is None else repr(float(column[i])) for name, column in columns.items()}}
                for i in range(len(self.evaluations))]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal keys, under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape")))


def auroc(typical: Tensor, other: Tensor) -> float:
    """P(other > typical) + P(equal) / 2 for one of each (n,), (m,): how well bits/dim tells them apart, 0.5 not at all.

    The Mann-Whitney statistic: (R - m (m + 1) / 2) / (n m), R the sum of the ranks of `other` among all.
    """
    from scipy.stats import rankdata  # slow to import

    m = len(other)
    ranks = rankdata(torch.cat([other, typical]).numpy())
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * len(typical)))


@dataclass(frozen=True)
class Part:
    """One draw of one batch: log p (batch,) in nats with its errors and terms, evaluations an example, seconds."""

    value: np.ndarray
    error: np.ndarray | None
    solver_error: np.ndarray | None
    nfe: int
    seconds: float
    terms: dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What an estimator is given: x (batch, *event) in data units, dequantised; k the integer levels it comes from."""

    x: Tensor
    k: Tensor
    seeds: list[Seed]
    levels: int | None
    low: float
    high: float


Estimate = tuple[Tensor, Tensor | None, Tensor | None, int, dict[str, Tensor]]


def _ode(model: ScoreModel, task: Task, **settings: Any) -> Estimate:
    result = log_prob(model, task.x, seeds=task.seeds, **settings)
    return result.value, result.probe_error, result.solver_error, result.nfe, {}


def _elbo(model: ScoreModel, task: Task, bound_draws: int = 32, **settings: Any) -> Estimate:
    if bound_draws < 2 or bound_draws % 2:
        raise ArgumentError(f"elbo takes an even number of draws of at least 2, got {bound_draws}", "bound_draws")
    bound = elbo(model, task.x, draws=bound_draws, seeds=task.seeds, **settings)
    return bound.value, bound.error, None, bound.nfe, bound.terms


def _chain_elbo(model: ScoreModel, task: Task, bound_draws: int = 1, discrete: bool = True,
                **settings: Any) -> Estimate:
    k, levels = (task.k.to(task.x.device), task.levels) if discrete else (task.x, None)
    bound = chain_elbo(model, k, levels, low=task.low, high=task.high, draws=bound_draws, seeds=task.seeds,
                       dtype=task.x.dtype, **settings)
    return bound.value, bound.error, None, bound.nfe, bound.terms


# log p (batch,) in nats, its standard error, the solver's error, evaluations, terms: from a model, a task and settings.
# "chain_elbo" is of the integers themselves unless told otherwise, all others of their dequantisation.
ESTIMATORS: dict[str, Callable[..., Estimate]] = {"ode": _ode, "elbo": _elbo, "chain_elbo": _chain_elbo}


class Evaluation:
    """The scoring of the first n examples of a split (None: all), resumable and shared.

    Integer levels are scaled to [low, high] and dequantised by u ~ U[0, 1), `draws` times; points are scored as a density,
    with no offset. The arguments of `score`, and

    folder    where finished units are kept, a file each; it must belong to these arguments and this model alone, but what
              the examples hold is checked. None keeps nothing
    world     this process among those that share the folder, and the work
    """

    def __init__(self, model: ScoreModel, dataset: Dataset, low: float, high: float, split: str = "test",
                 n: int | None = None, seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu",
                 progress: bool = True, draws: int = 1, estimator: str = "ode", float64: bool = False,
                 folder: Path | None = None, world: World | None = None, **settings: Any):
        if estimator not in ESTIMATORS:
            raise ArgumentError(f"unknown estimator {estimator!r}; choose from {', '.join(ESTIMATORS)}", "estimator")
        if draws < 1:
            raise ArgumentError(f"draws must be at least 1, got {draws}", "draws")
        self.discrete = estimator == "chain_elbo" and settings.get("discrete", True)
        if draws > 1 and (dataset.levels is None or self.discrete):
            what = "for chain_elbo integers" if self.discrete else f"the points of data set {dataset.name!r}"
            raise ValueError(f"{what} are not dequantised: leave out --draws")
        if dataset.levels is None and self.discrete:
            raise ValueError(f"data set {dataset.name!r} holds points: chain_elbo takes them with discrete=False")
        self.model, self.dataset, self.low, self.high = model, dataset, low, high
        self.examples = dataset.test if split == "test" else dataset.train
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
        self._batch: tuple[int, Tensor, str] | None = None
        self.parts = {unit: part for unit in self.units if (part := self._read(unit))}
        self.resumed = len(self.parts)

    def run(self) -> "Evaluation":
        """Do this process's share; the first then waits for the rest.

        Raises ValueError for data that are not finite or outside their levels, ArithmeticError where the likelihood cannot
        be computed. What is done stays in the folder.
        """
        shown = time.monotonic()
        with tqdm(total=self.total * self.draws, unit="example", disable=None if self.progress else True) as bar:
            def show() -> None:
                nonlocal shown
                bar.update(self._rows_done() - bar.n)
                if self.progress and bar.disable and time.monotonic() - shown > LOG_EVERY:
                    print(f"{self._rows_done()} of {self.total * self.draws} examples scored", flush=True)
                    shown = time.monotonic()

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
        levels = None if self.discrete else self.dataset.levels
        offset = float(bits_per_dim(torch.zeros(()).double(), dimensions, levels, self.low, self.high))
        return Score(log_prob, joined(lambda p: p.error), joined(lambda p: p.solver_error), evaluations.sum(0), dimensions,
                     offset, sum(part.seconds for part in self.parts.values()), terms, self.exact)

    def clear(self) -> None:
        """Remove the folder: its results are elsewhere now."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):      # others may be unfinished
                self.folder.parent.rmdir()

    def kept(self) -> str:
        """What an interrupted evaluation has in its folder, in words; "" where that is nothing."""
        done = self._rows_done()
        if self.folder is None or not done:
            return ""
        what = "examples" if self.draws == 1 else "dequantised examples"
        return f"{done} of {self.total * self.draws} {what} are done and kept; the same command goes on from there"

    def _with_what_is_kept(self, error: Exception) -> Exception:
        kind, kept = ArithmeticError if isinstance(error, ArithmeticError) else ValueError, self.kept()
        return kind(f"{error}; {kept}" if kept else str(error))

    def _rows_done(self) -> int:
        return sum(end - begin for begin, end, draw in self.units
                   if (begin, end, draw) in self.parts or (self.world.size > 1 and self._path(begin, draw).exists()))

    def _data(self, begin: int, end: int) -> tuple[Tensor, str]:
        """The batch's examples and their digest; the last one is kept, since its next draw comes next."""
        if self._batch is None or self._batch[0] != begin:
            k = self.examples[torch.arange(begin, end)]
            digest = hashlib.sha256(f"{k.dtype} {tuple(k.shape)}".encode() + k.contiguous().numpy().tobytes())
            self._batch = begin, k, digest.hexdigest()
        return self._batch[1], self._batch[2]

    def _evaluate(self, unit: tuple[int, int, int]) -> Part:
        begin, end, draw = unit
        start = time.perf_counter()
        k, _ = self._data(begin, end)
        levels, name = self.dataset.levels, f"data set {self.dataset.name!r}"
        if k.shape[1:] != self.dataset.shape:
            raise ValueError(f"{name} has examples of shape {tuple(k.shape[1:])}, not {self.dataset.shape}")
        if levels is None:
            limit = torch.finfo(k.dtype).max
            require_within(k, -limit, limit, name, "examples must be finite", begin)
            x = k
        else:
            require_within(k, 0, levels - 1, name, f"its levels are 0 .. {levels - 1}", begin)
            stream = NoiseStream(sample_seeds(self.seed, begin, end), DEQUANTIZATION)
            u = [stream.uniform(torch.empty(k.shape)) for _ in range(draw + 1)][-1]
            x = dequantize(k, u.double() if self.float64 else u, levels, self.low, self.high)
        x = x.to(self.device, torch.float64 if self.float64 else None)
        seeds = sample_seeds((self.seed + draw * GOLDEN) % 2**64, begin, end)
        *tensors, nfe, terms = self.estimator(self.model, Task(x, k, seeds, levels, self.low, self.high), **self.settings)
        value, error, solver_error = (t if t is None else t.detach().cpu().double().numpy() for t in tensors)
        assert value is not None
        if not np.isfinite(value).all():
            bad = int(np.flatnonzero(~np.isfinite(value))[0])
            raise ArithmeticError(f"the log-likelihood of example {begin + bad} is {value[bad]}; the score may be NaN")
        return Part(value, error, solver_error, nfe, time.perf_counter() - start,
                    {name: term.detach().cpu().double().numpy() for name, term in terms.items()})

    def _path(self, begin: int, draw: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{begin:08d}_{draw:04d}.npz"

    def _write(self, unit: tuple[int, int, int], part: Part) -> None:
        if self.folder is None:
            return
        begin, end, draw = unit
        arrays = {name: value for name, value in vars(part).items() if value is not None and name != "terms"}
        arrays |= {f"term_{name}": value for name, value in part.terms.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(begin, draw),
                         lambda file: np.savez(file, digest=self._data(begin, end)[1], **arrays))

    def _read(self, unit: tuple[int, int, int]) -> Part | None:
        """What the folder holds of a unit; None where it is not there, damaged, or of other examples."""
        begin, end, draw = unit
        if self.folder is None or not self._path(begin, draw).exists():
            return None
        try:
            with np.load(self._path(begin, draw)) as arrays:
                stored = {name: arrays[name] for name in arrays.files}      # checks each array's checksum
            digest, nfe, seconds = (stored.pop(name).item() for name in ("digest", "nfe", "seconds"))
            part = Part(stored.pop("value"), stored.pop("error", None), stored.pop("solver_error", None), nfe, seconds,
                        {name.removeprefix("term_"): value for name, value in stored.items()})
        except Exception:      # the parsers of damaged files raise errors of every type
            return None
        right = all(a is None or a.shape == (end - begin,)
                    for a in (part.value, part.error, part.solver_error, *part.terms.values()))
        return part if right and digest == self._data(begin, end)[1] else None


def score(model: ScoreModel, dataset: Dataset, low: float, high: float, split: str = "test", n: int | None = None,
          seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu", progress: bool = True,
          draws: int = 1, estimator: str = "ode", float64: bool = False, **settings: Any) -> Score:
    """Bits/dim of the first n examples of a split (None: all), by the probability-flow ODE unless said otherwise.

    draws      dequantisations of each example
    estimator  "ode" (likelihood.log_prob), or a lower bound: "elbo", "chain_elbo"; `settings` go to that function, in whose
               place of `draws` stands `bound_draws`. chain_elbo is of the integers; with discrete=False, of the density
    float64    the state in float64

    What example i draws depends on (seed, i) alone. Raises as `Evaluation` and `Evaluation.run` do.
    """
    return Evaluation(model, dataset, low, high, split, n, seed, batch_size, device, progress, draws, estimator, float64,
                      **settings).run().result()
