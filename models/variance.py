"""A score model that knows the variance of x_0 given x_t, from moments of its own errors on data.

    Var[x_0 given x_t] = (sigma / alpha)^2 Var[eps given x_t],      r(t) = E (eps - eps_theta(x_t, t))^2

The mean of Var[eps given x_t] over x_t is r(t) where the network is exact, and for any network r is the best variance that
depends on t alone beside its mean (Bao et al. 2022b, "Estimating the Optimal Covariance with Imperfect Mean in Diffusion
Probabilistic Models", theorems 3 and 4). With the exact network it is also 1 - E eps_theta^2, which needs no eps. That is
the estimate of Bao et al. 2022a, "Analytic-DPM", equation 8; for a network with errors it is another. Both may be one number
for all elements, or one for each.

Between indices s < t of a chain, the divergence of the best step back of that variance is, with SNR = (alpha / sigma)^2,

    E KL = 1/2 sum over elements of ln(1 + (SNR_s / SNR_t - 1) r(t))

so the K indices whose chain has the least bound are found by dynamic programming (Watson et al. 2021, "Learning to
Efficiently Sample from Diffusion Probabilistic Models", algorithm 1; Bao et al. 2022a, section 4.2).

The variance of data in [low, high] is at most ((high - low) / 2)^2, and r is at most 1 (Bao et al. 2022a, theorem 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scorefield.models.score_model import Derived, Posterior, ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import check_time

ESTIMATES = ("residual", "score")
COVARIANCES = ("diagonal", "isotropic")
LEAST = 1e-12      # share of the variance of eps


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments at some times, each (K, *event), float64: of eps - eps_theta, and of eps_theta.

    half_log_snr  (K,), increasing
    n             how many examples, each with one noise at each time
    """

    half_log_snr: Tensor
    residual: Tensor
    score: Tensor
    n: int

    def __post_init__(self) -> None:
        k = self.half_log_snr.shape
        if len(k) != 1 or k[0] < 2 or not bool((self.half_log_snr.diff() > 0).all()):
            raise ArgumentError("moments need at least two times, with an increasing half log-SNR", "moments")
        if self.residual.shape != self.score.shape or self.residual.shape[:1] != k:
            raise ArgumentError(f"moments need residual and score of shape ({k[0]}, *event), got "
                                f"{tuple(self.residual.shape)} and {tuple(self.score.shape)}", "moments")

    def shares(self, estimate: str = "residual", covariance: str = "diagonal") -> Tensor:
        """Var[eps given x_t], of each element or of all, in [0, 1]: (K, *event) or (K,)."""
        for name, word, words in (("estimate", estimate, ESTIMATES), ("covariance", covariance, COVARIANCES)):
            if word not in words:
                raise ArgumentError(f"unknown {name} {word!r}; choose from {', '.join(words)}", name)
        share = self.residual if estimate == "residual" else 1 - self.score
        return (share if covariance == "diagonal" else share.flatten(1).mean(1)).clamp(0, 1)


class FittedVariance(Derived):
    """`model`, with the variance of x_0 from moments; every prediction is the model's.

        moments = fit_moments(model, dataset, codec)
        x = make_sampler("ancestral", steps=25, variance="analytic")(FittedVariance(model, moments), x_T, seeds).x

    estimate    "residual" or "score"
    covariance  "diagonal", a variance for each element, or "isotropic", one for all
    span        high - low of the data, if it is bounded

    Between the times of the moments the logarithm of their share is interpolated in the half log-SNR, in which it is nearly
    straight at the noise's end; beyond them it is that of the end.
    """

    log_shares: Tensor
    half_log_snr: Tensor

    def __init__(self, model: ScoreModel, moments: Moments, estimate: str = "residual", covariance: str = "diagonal",
                 span: float | None = None):
        super().__init__(model)
        self.span, self._fitted = span, (moments, estimate, covariance, span)
        self.register_buffer("log_shares", _log_shares(moments, estimate, covariance), persistent=False)
        self.register_buffer("half_log_snr", moments.half_log_snr, persistent=False)

    def given(self, **condition: Any) -> "FittedVariance":
        return FittedVariance(self.model.given(**condition), *self._fitted).to(self.half_log_snr.device)

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        """The model's mean, and the variance of the moments: a scalar, or one for each element, (batch, *event)."""
        t = check_time(self.sde, t)
        share = self._share(self.sde.half_log_snr(t).to(self.half_log_snr))
        scale = (self.sde.sigma(t) / self.sde.alpha(t)).square().to(share)
        variance = scale.reshape(tuple(scale.shape) + (1,) * (share.ndim - scale.ndim)) * share
        if self.span is not None:
            variance = variance.clamp(max=self.span**2 / 4)
        if variance.ndim == t.ndim and t.ndim:      # (batch,), isotropic
            variance = variance.reshape((-1,) + (1,) * (x.ndim - 1))
        return Posterior(self.model.x0(x, t), variance.to(x) if not variance.ndim else variance.to(x).expand(x.shape))

    def best_indices(self, times: Tensor, steps: int) -> Tensor:
        """The `steps` of n decreasing or increasing times, both ends included, with the least sum of the divergences above.

        Increasing integers (steps,), on the CPU. It takes n^2 (D + steps) operations, D the elements of the moments.
        """
        if not 2 <= steps <= len(times):
            raise ArgumentError(f"an optimal grid of {len(times)} times has 2 to {len(times)} of them, got {steps}", "steps")
        times = torch.as_tensor(times, dtype=torch.float64).cpu()
        turned = bool(times[0] > times[-1])
        if turned:
            times = times.flip(0)
        moments, estimate, covariance, _ = self._fitted
        indices = _best_indices(moments, estimate, covariance, tuple(self.sde.half_log_snr(times).tolist()), steps).clone()
        return (len(times) - 1 - indices).flip(0) if turned else indices

    def _share(self, place: Tensor) -> Tensor:
        """The share at half log-SNRs of any shape S: (*S, *event) or S."""
        return _interpolated(self.log_shares, self.half_log_snr, place)


def _log_shares(moments: Moments, estimate: str, covariance: str) -> Tensor:
    return moments.shares(estimate, covariance).clamp(min=LEAST).log()


def _interpolated(log_shares: Tensor, nodes: Tensor, place: Tensor) -> Tensor:
    """The share at half log-SNRs of any shape S, from its logarithms at nodes: (*S, *event) or S."""
    right = torch.searchsorted(nodes, place.contiguous().reshape(-1)).clamp(1, len(nodes) - 1).reshape(place.shape)
    weight = ((place - nodes[right - 1]) / (nodes[right] - nodes[right - 1])).clamp(0, 1)
    weight = weight.reshape(tuple(weight.shape) + (1,) * (log_shares.ndim - 1))
    return torch.lerp(log_shares[right - 1], log_shares[right], weight).exp()


@lru_cache(maxsize=4)
def _divergences(moments: Moments, estimate: str, covariance: str, places: tuple[float, ...]) -> Tensor:
    """(n, n): of the step from the half log-SNR of a row to that of a column, for decreasing ones; infinite where it falls.

    Kept, since each batch that is drawn asks for its grid.
    """
    place = torch.tensor(places, dtype=torch.float64)
    shares = _interpolated(_log_shares(moments, estimate, covariance), moments.half_log_snr, place).reshape(len(place), -1)
    cost = torch.full((len(place), len(place)), torch.inf, dtype=torch.float64)
    for t in range(1, len(place)):
        ratio = torch.expm1(2 * (place[:t] - place[t]))      # of the SNRs, less 1
        cost[t, :t] = 0.5 * torch.log1p(ratio[:, None] * shares[t]).sum(1)
    return cost


@lru_cache(maxsize=64)
def _best_indices(moments: Moments, estimate: str, covariance: str, places: tuple[float, ...], steps: int) -> Tensor:
    """The indices of the least sum of divergences between `steps` of the places, both ends included: (steps,)."""
    cost = _divergences(moments, estimate, covariance, places)
    best, back = torch.full((len(places),), torch.inf, dtype=torch.float64), []
    best[-1] = 0.0      # the least sum from the last place to each one
    for _ in range(steps - 1):
        best, last = (best[:, None] + cost).min(0)
        back.append(last)
    kept = [0]
    for last in reversed(back):
        kept.append(int(last[kept[-1]]))
    return torch.tensor(kept)


def stored(moments: Moments) -> dict[str, Any]:
    """As arrays by name, for a file."""
    return {"half_log_snr": moments.half_log_snr.numpy(), "residual": moments.residual.numpy(),
            "score": moments.score.numpy(), "n": moments.n}


def from_stored(arrays: Mapping[str, Any]) -> Moments:
    """What `stored` made; KeyError or ArgumentError if it is no such thing."""
    half_log_snr, residual, score = (torch.as_tensor(arrays[name], dtype=torch.float64)
                                     for name in ("half_log_snr", "residual", "score"))
    return Moments(half_log_snr, residual, score, int(arrays["n"]))
