"""The codec of latents: pictures seen through an autoencoder (Rombach et al. 2022, "High-Resolution Image Synthesis with
Latent Diffusion Models", section 3.2).

    encode    z ~ q(z given k) = N(mean, diag exp(log_variance)),    x = (z - m) / s
    decode    the levels nearest to x_hat(s x + m)

m and s are numbers for each channel, such that x has mean 0 and variance 1. Levels k have no density in x, but a bound: with
p(k given z) the probability of the levels under N(x_hat(z), decoder_std^2 I) gathered into them,

    log P(k) >= E_q [ log p(k given z) + log p(x) - log q(x given k) ]

(Vahdat et al. 2021, "Score-based Generative Modeling in Latent Space", section 3). The mean over several z within the
logarithm is a tighter one (Burda et al. 2016, "Importance Weighted Autoencoders").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from scorefield.data.codec import Codec, Pixels
from scorefield.numerics.discretised import discretised_log_prob
from scorefield.numerics.errors import ArgumentError

TOGETHER = 256          # pictures that the autoencoder sees at once
LEAST = 2.0**-25        # of u: half of the step of random numbers in float32


class Network(Protocol):
    """What the codec needs of an autoencoder."""

    def encode(self, x: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def decode(self, z: Tensor, /) -> Tensor: ...

    def parameters(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Latents(Codec):
    """Pictures by the latents of an autoencoder.

    network      in evaluation mode, without gradients of its own
    pixels       the codec of its pictures
    shape        of one picture
    latent       the shape of one x
    mean, std    m and s, a number for each channel of z
    decoder_std  standard deviation of p(k given z), in units of x_hat
    digest       of the network and all else that x depends on but mean and std
    """

    network: Network
    pixels: Pixels
    shape: tuple[int, ...]
    latent: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoder_std: float
    digest: str
    noisy = True

    @property
    def levels(self) -> int:      # type: ignore[override]
        return self.pixels.levels

    @property
    def of_pictures(self) -> Pixels:
        return self.pixels

    def __repr__(self) -> str:
        return f"Latents({self.digest}, {self.stored()})"

    def stored(self) -> dict[str, Any]:
        """What a run's config.json keeps of it, beside the name of the autoencoder."""
        return {"shape": list(self.latent), "mean": list(self.mean), "std": list(self.std), "decoder_std": self.decoder_std,
                "digest": self.digest}

    def moments(self, data: Tensor) -> Tensor:
        """The mean and the log-variance of q, in this order along the channels, (batch, 2 channels, rows, columns)."""
        def of(part: Tensor) -> Tensor:
            u = torch.full(part.shape, 0.5, device=part.device) if self.pixels.noisy else None
            return torch.cat(self.network.encode(self.pixels.encode(part, u)), 1)

        with torch.no_grad():
            return self._in_parts(data, of)

    def drawn(self, moments: Tensor, u: Tensor) -> Tensor:
        """x of the moments of q and uniform u (batch, *latent) in [0, 1); one half gives the mean."""
        wide = u.cpu() if u.device.type == "mps" else u      # MPS has no float64
        eps = torch.special.ndtri(wide.double().clamp(LEAST, 1 - LEAST)).to(moments.device, moments.dtype)
        mean, log_variance = moments.chunk(2, 1)
        return (mean + (0.5 * log_variance).exp() * eps - self._column(self.mean, mean)) / self._column(self.std, mean)

    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        if u is None:
            raise ArgumentError(f"latents need uniform noise u of shape (batch, {', '.join(map(str, self.latent))})", "u")
        return self.drawn(self.moments(data), u)

    def pictures(self, x: Tensor) -> Tensor:
        """x_hat of x (batch, *latent), as the autoencoder sees pictures; it can be differentiated."""
        z = x * self._column(self.std, x) + self._column(self.mean, x)
        return self._in_parts(z.float(), self.network.decode).to(x.dtype)

    def decode(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.pixels.decode(self.pictures(x))

    def terms(self, data: Tensor, x: Tensor) -> dict[str, Tensor]:
        """reconstruction: log p(k given z); posterior: -log q(x given k)."""
        with torch.no_grad():
            (mean, log_variance), wide = self.moments(data).double().cpu().chunk(2, 1), x.double().cpu()
            std = self._column(self.std, wide)
            z = wide * std + self._column(self.mean, wide)
            squares = (z - mean).square() * (-log_variance).exp()
            log_q = (std.log() - 0.5 * (squares + log_variance + math.log(2 * math.pi))).flatten(1).sum(1)
            fit = self.log_prob(data, self.pictures(x), self.decoder_std)
        return {"reconstruction": fit, "posterior": -log_q}

    def log_prob(self, data: Tensor, x_hat: Tensor, std: float) -> Tensor:
        """log p(k given z) in nats, (batch,), float64 on the CPU, of a decoder with that standard deviation."""
        return discretised_log_prob(data, x_hat.double().cpu(), std, self.levels, self.pixels.low, self.pixels.high,
                                    self.pixels.noisy)

    @property
    def offset(self) -> float:
        return 0.0

    def check(self, data: Tensor, name: str, first: int = 0) -> None:
        self.pixels.check(data, name, first)

    def event(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(shape) != self.shape:
            raise ArgumentError(f"the autoencoder takes pictures of shape {self.shape}, and these have {tuple(shape)}",
                                "data.autoencoder")
        return self.latent

    def noise(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.event(shape)

    def _column(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 2))

    def _in_parts(self, values: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """What the network makes of (batch, ...), a part at a time, on the device of the values."""
        device = next(iter(self.network.parameters())).device
        parts = [of(part.to(device)) for part in values.split(TOGETHER)]
        return torch.cat(parts).to(values.device)


@dataclass(frozen=True, eq=False)
class Moments(Codec):
    """The codec of data that are the moments of q already: what is left is to draw z.

        moments = Moments(latents)
        x = moments.encode(latents.moments(k), u)      # as latents.encode(k, u)
    """

    latents: Latents
    noisy = True
    levels = None

    def encode(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        if u is None:
            raise ArgumentError("moments need uniform noise u", "u")
        return self.latents.drawn(data, u)

    def decode(self, x: Tensor) -> Tensor:
        raise NotImplementedError("a sample tells nothing of the moments")

    @property
    def offset(self) -> float:
        return 0.0

    def check(self, data: Tensor, name: str, first: int = 0) -> None:
        if not bool(data.isfinite().all()):
            raise ValueError(f"{name}: the autoencoder gives latents that are not finite")

    def event(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.latents.latent

    def noise(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.latents.latent


def is_stored(stored: Any) -> bool:
    """Whether a value is what `Latents.stored` returns."""
    def numbers(values: Any, n: int, positive: bool) -> bool:
        return (isinstance(values, list) and len(values) == n and all(type(v) in (int, float) and math.isfinite(v)
                                                                      and (v > 0 or not positive) for v in values))

    if not isinstance(stored, Mapping) or not isinstance(stored.get("digest"), str):
        return False
    shape = stored.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        return False
    return (numbers(stored.get("mean"), shape[0], False) and numbers(stored.get("std"), shape[0], True)
            and numbers([stored.get("decoder_std")], 1, True))
