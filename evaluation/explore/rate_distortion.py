"""Rate and distortion of a chain by t: progressive lossy compression (Ho et al. 2020, section 4.3, figure 5 and table 4).

A sender transmits x_T, then x_(T-1) given x_T, and so on. Who knows x_i has received

    rate_i = L_T + sum over j > i of L_(j-1),        L_(j-1) = KL(q(x_(j-1) given x_j, x_0) || p(x_(j-1) given x_j))

and expects x_0 = E[x_0 given x_i], with the root of its mean square error as distortion. What remains at the end is L_0: the
rate at the first index and L_0 add up to the bound on -log p. All terms are those of `likelihood.chain_elbo`, and the
distortion is of the very predictions that it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.data import Codec, Pixels
from scorefield.evaluation.explore.paths import Models, batches, encoded, of_batch
from scorefield.evaluation.explore.units import data_scale
from scorefield.likelihood import chain_elbo
from scorefield.models import ScoreModel
from scorefield.models.score_model import Derived, Posterior
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import Seed


@dataclass(frozen=True)
class RateDistortion:
    """The curve by index of the chain, from the data's end to the noise's, means over the examples.

    times       (steps,), where the indices stand
    rate        (steps,), bits/dim received by who knows x_i
    distortion  (steps,), RMSE of the predicted x_0 in the data's scale (levels, or the units of points)
    rest        bits/dim of the last message, L_0; of a density with the bits of the codec's change of variables
    total       bits/dim of the whole bound, which `rate[0] + rest` equals
    error       standard error of total over the examples, and over the draws if there are several
    nfe         evaluations an example
    """

    times: Tensor
    rate: Tensor
    distortion: Tensor
    rest: float
    total: float
    error: float
    nfe: int


class _Watched(Derived):
    """A model that notes the squared error of every x_0 that it predicts for examples x_0, in their order."""

    def __init__(self, model: ScoreModel, x0: Tensor, scale: Tensor, step: Callable[[], None],
                 clip: tuple[float, float] | None):
        super().__init__(model)
        self.x0_true, self.scale, self.step, self.clip = x0, scale.to(x0.device, x0.dtype), step, clip
        self.times: list[float] = []
        self.errors: list[Tensor] = []      # (batch,) of each prediction, mean square over the elements

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        prediction = self.model.predict(x, t, kind)
        if kind == "x0":
            self._note(prediction, t)
        return prediction

    def posterior(self, x: Tensor, t: float | Tensor) -> Posterior:
        posterior = self.model.posterior(x, t)
        self._note(posterior.mean, t)
        return posterior

    def with_share(self, x: Tensor, t: float | Tensor, kind: str) -> tuple[Tensor, Tensor]:
        prediction, share = self.model.with_share(x, t, kind)
        if kind == "x0":
            self._note(prediction, t)
        return prediction, share

    def best_indices(self, times: Tensor, steps: int) -> Tensor:
        return self.model.best_indices(times, steps)

    def _note(self, x0: Tensor, t: float | Tensor) -> None:
        x0 = x0 if self.clip is None else x0.clamp(*self.clip)
        self.times.append(float(t))
        self.errors.append(((x0 - self.x0_true) * self.scale).square().flatten(1).mean(1).cpu())
        self.step()


def rate_distortion(model: Models, codec: Codec, data: Tensor, seeds: Sequence[Seed], batch_size: int = 128,
                    device: Any = "cpu", step: Callable[[], None] = lambda: None, clip_x0: bool = False,
                    **settings: Any) -> RateDistortion:
    """The curve for examples `data` (n, *shape), as data.

        curve = rate_distortion(model, codec, dataset.test[torch.arange(16)][0], seeds=range(16), steps=100)

    step      called after each evaluation of a batch
    clip_x0   keep predictions for pictures within the range of the data, in the bound and in the distortion
    settings  of `chain_elbo`: steps, variance, draws

    Data of levels whose codec is discrete are bounded as integers, others as densities. States are float64, where the device
    has it, so that the terms add up to 1e-9. Raises as `chain_elbo` does.
    """
    event = codec.event(tuple(data.shape[1:]))
    if codec.of_pictures is not codec:
        raise ArgumentError("the chain of a model of latents has their rate alone; rate_distortion is for models of "
                            "pictures or numbers themselves, mode likelihood splits the rate of latents", "what")
    d, discrete = math.prod(event), codec.discrete
    nats_to_bits = 1 / (d * math.log(2))
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    if clip_x0 and not isinstance(codec, Pixels):
        raise ArgumentError("only pictures have a range to which x_0 can be kept", "clip_x0")
    ends: dict[str, Any] = {"low": codec.low, "high": codec.high} if isinstance(codec, Pixels) else {}
    clip = (codec.low, codec.high) if clip_x0 and isinstance(codec, Pixels) else None
    rates, squares, decoders, values, times, nfe = [], [], [], [], torch.empty(0), 0
    for numbers in batches(len(data), batch_size):
        own = seeds[numbers.start:numbers.stop]
        x = encoded(codec, data[numbers.start:numbers.stop], own, device).to(dtype)
        watched = _Watched(of_batch(model, numbers), x, data_scale(codec, event), step, clip)
        bound = chain_elbo(watched, data[numbers.start:numbers.stop].to(device) if discrete else x,
                           codec.levels if discrete else None, seeds=own, dtype=dtype, clip_x0=clip_x0,
                           **ends, **settings)
        assert bound.per_step is not None
        received = torch.cat([bound.terms["prior"][None], bound.per_step.flip(0)]).double().cumsum(0).flip(0)
        rates.append(-received.cpu())
        steps = len(received)
        squares.append(torch.stack(watched.errors).reshape(-1, steps, len(x)).mean(0))
        decoders.append(-bound.terms["decoder"].double().cpu())
        values.append(-bound.value.double().cpu())
        times, nfe = torch.tensor(watched.times[:steps], dtype=torch.float64), bound.nfe
    offset = 0.0 if discrete else codec.offset
    total = torch.cat(values) * nats_to_bits + offset
    error = float(total.std()) / len(total) ** 0.5 if len(total) > 1 else math.nan
    return RateDistortion(times, torch.cat(rates, 1).mean(1) * nats_to_bits, torch.cat(squares, 1).mean(1).sqrt(),
                          float(torch.cat(decoders).mean()) * nats_to_bits + offset, float(total.mean()), error, nfe)
