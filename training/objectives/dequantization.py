"""Variational dequantisation: the bound on the probability of integers as a loss of the score model and of a flow.

    -log P(k) <= E_q [ log q(u given k) - log p(k + u) ]       Ho et al. 2019, "Flow++", section 3.1

and -log p is bounded in continuous time (likelihood/elbo.py), whose integral over time is estimated by denoising score
matching with the weighting "likelihood" (Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models",
theorem 3). The gradient by u reaches q through the noisy state x_t. All is unbiased. In nats a dimension,

    loss = [ log q + KL(q(x_T given x) || prior) + decoder + (t_max - t_min)/2 w(t)/p(t) |eps_theta - eps|^2 ] / D + offset

Where the score model stays as it is, times are drawn where the noise is small enough to tell apart the numbers within a bin.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.dequantizer import dequantizer_of
from scorefield.numerics.errors import ArgumentError
from scorefield.training.draws import Draws
from scorefield.training.objectives.objective import Batch
from scorefield.training.objectives.score_matching import NoisyExamples, NoisyTimes, ScoreMatching
from scorefield.training.times import Times
from scorefield.training.weightings import Likelihood

FLOOR = 0.1


class Dequantized(NamedTuple):
    """What is drawn for noisy examples, and uniform r (batch, *event), which the flow makes u of."""

    noisy: NoisyTimes
    r: Tensor

    @property
    def t(self) -> Tensor:
        return self.noisy.t


@dataclass(frozen=True)
class WithinBins(Likelihood):
    """The weighting "likelihood", whose importance falls to FLOOR of it where noise hides the place within a bin.

    width  of a bin, in x. Uniform noise within has the variance width^2 / 12, whose ratio to the noise's is s; the rest
           falls as s / (1 + s)
    """

    width: float = 1.0

    def importance(self, t: Tensor) -> Tensor:
        s = self.width**2 / 12 * torch.exp(2 * self.sde.half_log_snr(t))
        return self(t) * (FLOOR + s / (1 + s))


@dataclass(frozen=True)
class Dequantization(NoisyExamples):
    """The training loss of a score model whose network has a dequantizer (`model.dequantizer`), and of that.

    frozen       the score model stays as it is, and the dequantizer alone is trained
    score_model  a trained run or checkpoint whose averaged weights the network starts from; it may lack a dequantizer. "":
                 none
    codec        of the data

    The other arguments are those of NoisyExamples; the weighting is "likelihood". Raises ArgumentError for data without
    levels, for the SDE of a chain, which has no bound in continuous time, and for `frozen` without a score_model.
    """

    weighting: str = field(default="likelihood", init=False)
    importance: bool = True
    frozen: bool = field(default=False, kw_only=True)
    score_model: str = field(default="", kw_only=True)
    codec: Any = field(default=None, kw_only=True)
    _matching: ScoreMatching = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codec is None or self.codec.levels is None:
            raise ArgumentError("variational dequantisation is for integer levels; this data set holds points",
                                "data.dataset")
        if self.sde.steps is not None:
            raise ArgumentError(f"variational dequantisation needs the bound in continuous time, and {self.sde} is that of "
                                "a chain", "sde.name")
        if self.frozen and not self.score_model:
            raise ArgumentError("frozen keeps a trained score model; name it as score_model", "frozen", "score_model")
        if self.frozen and self.importance:
            width = 2.0 ** -self.codec.dense.offset
            object.__setattr__(self, "times", Times(self.sde, WithinBins(self.sde, None, width), self.time_sampling, True))
        object.__setattr__(self, "_matching", ScoreMatching(self.sde, "likelihood", self.time_sampling, self.importance,
                                                            self.label_dropout))

    def draw(self, batch: Batch, draws: Draws) -> Dequantized:      # type: ignore[override]
        noisy = super().draw(batch, draws)
        return Dequantized(noisy, draws.uniform(batch.x.shape[1:]))

    def loss(self, model: Denoiser, batch: Batch, draw: Dequantized) -> Tensor:
        """The bound on -log P(k) in nats a dimension, (batch,), of the integers k that batch.x encodes."""
        flow, dense, k = dequantizer_of(model), self.codec.dense, self.codec.decode(batch.x)
        if flow is None:
            raise ArgumentError("the network has no dequantizer; give model.dequantizer its width", "model.dequantizer")
        centre = dense.encode(k, torch.full_like(draw.r, 0.5))
        u, log_q = flow(centre, draw.r)
        x, sde = dense.encode(k, u), self.sde
        matching = self._matching.loss(model, Batch(x, batch.condition), draw.noisy) * (0.5 * (sde.t_max - sde.t_min))
        alpha, variance = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))**2
        ratio = variance / sde.prior.std**2
        prior = 0.5 * (x.flatten(1).square().mean(1) * (alpha / sde.prior.std)**2 + ratio - 1 - math.log(ratio))
        decoder = 0.5 * math.log(2 * math.pi * math.e) - float(sde.half_log_snr(sde.t_min))
        return matching + prior + log_q / k[0].numel() + (decoder + dense.offset * math.log(2))

    def metrics(self, model: Any, batch: Batch, draw: Dequantized) -> dict[str, Tensor]:
        """bits_per_dim: the loss in bits."""
        return {"bits_per_dim": self.loss(model, batch, draw).double() / math.log(2)}
