"""Networks that may take a second picture, low_res, and how much noise was added to it.

    low_res        is brought to the height and width of x, bicubic, and joined to the channels of x (Saharia et al. 2021,
                   "Image Super-Resolution via Iterative Refinement", SR3, section 2.4). It need not be small: a grey or a
                   damaged picture is one, too (Saharia et al. 2022, "Palette"). Of points it is numbers, joined to theirs
    low_res_noise  the standard deviation of noise in it, embedded as time is and added to that embedding (Ho et al. 2022,
                   "Cascaded Diffusion Models", section 4.2)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.models.conditions import LOW_RES, LOW_RES_NOISE, Condition
from scorefield.models.networks.labels import LabelledNetwork, Waves
from scorefield.numerics.errors import ArgumentError

NOISE_SCALE = 1000.0      # of low_res_noise in [0, 1), for waves that were made for labels 0 .. 1000


class LowResNetwork(LabelledNetwork):
    """A network with the attribute `low_res`, the channels of that picture (0: it takes none), and `noise_of_low_res`, the
    embedding of its noise, or None.

    A subclass calls `_take_low_res` after `_take_labels`, gives its first layer `channels + low_res` channels, and calls
    `_joined` on x and `_with_condition` on the embedding of time.
    """

    low_res: int = 0

    def _take_low_res(self, channels: int, noise: bool, width: int, waves: int, freq_shift: int = 1) -> None:
        """Take a low_res of so many channels, and its noise if `noise`. ArgumentError for noise without low_res."""
        if channels < 0:
            raise ArgumentError(f"low_res must be the channels of that picture, 0 for none, got {channels}", "low_res")
        if noise and not channels:
            raise ArgumentError("low_res_noise is the noise of low_res, which this network does not take; give low_res its "
                                "number of channels", "low_res_noise", "low_res")
        self.low_res = channels
        self.noise_of_low_res = Waves(waves, width, freq_shift) if noise else None
        self.conditions += (LOW_RES,) * bool(channels) + (LOW_RES_NOISE,) * noise

    def _joined(self, x: Tensor, condition: Condition | None) -> Tensor:
        """x (batch, channels, *sides), and low_res at its size as further channels if the network takes one. Points have no
        sides.
        """
        if not self.low_res:
            return x
        self._require(condition)
        assert condition is not None
        low_res = condition[LOW_RES]
        if low_res.ndim != x.ndim or low_res.shape[1] != self.low_res:
            raise ArgumentError(f"low_res must be (batch, {self.low_res}{', side' * (x.ndim - 2)}), got shape "
                                f"{tuple(low_res.shape)}", LOW_RES)
        return torch.cat([x, resized(low_res.to(x.dtype), x.shape[2:])], dim=1)

    def _with_condition(self, embedding: Tensor, condition: Condition | None) -> Tensor:
        """The embedding of time plus those of the label and of the noise of low_res."""
        embedding = self._with_label(embedding, condition)
        if self.noise_of_low_res is None or condition is None:
            return embedding
        return embedding + self.noise_of_low_res(NOISE_SCALE * condition[LOW_RES_NOISE])


def resized(x: Tensor, sides: torch.Size | tuple[int, ...]) -> Tensor:
    """Pictures (batch, channels, height, width) at another size, bicubic; series (batch, channels, length), linear."""
    if x.shape[2:] == sides:
        return x
    return F.interpolate(x, size=tuple(sides), mode="bicubic" if len(sides) == 2 else "linear", align_corners=False)
