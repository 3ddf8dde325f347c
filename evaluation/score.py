"""The result of scoring examples: bits/dim with its standard error, tables, and how well it separates two sets.

Example i is scored K times (in K draws): y_ij is the bits/dim of its j-th dequantisation, a lower bound's where log p is
bounded. The example's bits/dim is the mean of y_ij over j. The importance-weighted bound is tighter, by Jensen's inequality
(Burda et al. 2016; Ho et al. 2019, Flow++, section 3.1):

    iw_i = -log2(1/K sum_j p(x_ij)) / D + offset <= 1/K sum_j y_ij

It is no bound if log p is noisy, since the mean of exp favours values that are too large: it needs exact traces.

The standard error of the mean over n examples, se = std_i(y_i) / sqrt(n), holds every source of chance. Its parts, in
squares, with pe_ij the standard error of y_ij over its own probes and s_i^2 the variance of y_ij over j:

    probes^2            sum_ij pe_ij^2 / (n K)^2                   with several probes
    dequantization^2    sum_i s_i^2 / (K n^2) - probes^2           where K > 1; with a single probe it holds the probe's too
    data^2              se^2 - dequantization^2 - probes^2         and 0 where one of these is below it
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.numerics.files import write_atomically


@dataclass(frozen=True)
class Score:
    """What n examples scored in K draws each, in nats, float64.

    log_prob       (K, n): log p(x_ij), or the estimator's bound on it
    probe_error    (K, n): its standard error over the estimator's own draws (probes), or None if that is unknown
    solver_error   (K, n): the solver's estimate of its own error, or None
    evaluations    (n,): of the network, for all draws of an example together
    dimensions     D, and `offset` the bits/dim of log p = 0
    seconds        of work, summed over the batches of all runs and processes
    terms          (K, n) each: the named parts that add up to log_prob, of a bound
    exact          whether log_prob is free of an estimator's own noise
    numbers        whether the data are numbers, which have a density in their own units; else they are levels
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
    numbers: bool = False

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
        """(n,): the importance-weighted bound with the K > 1 draws of an example; None if log p is not exact."""
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
        """"data", "dequantization" and "probes" in bits/dim (formulas above); None if a part is unknown."""
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
        """A row for each example, for CSV; unknown values are empty. log_prob_nats is in nats, all others in bits/dim: of
        numbers log p in the units of the data, of levels that of x.
        """
        draws, units = len(self.log_prob), self.offset / self._scale if self.numbers else 0.0
        columns = {
            "bits_per_dim": self.bits_per_dim, "log_prob_nats": self.log_prob.mean(0) - units,
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
