"""One model, seen through an SDE: .score, .eps, .x0 and .v at any (x, t).

Samplers and likelihoods see nothing else of a network. The exact Gaussian mixture of analytic.py has the same face.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.parametrization import make_parametrization
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.sde import SDE, as_time, expand_as


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within; after, each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class ScoreModel(nn.Module):
    """What every score model offers. `x` is (batch, *event); `t` is a scalar or (batch,), best in float64.

    Each prediction has the shape and dtype of x, and costs one evaluation of the network.
    """

    sde: SDE
    evaluations: int = 1      # of the network in one prediction

    @abstractmethod
    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        """The prediction of `kind`: "score", "eps", "x0" or "v"."""

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """grad log p_t(x) = -eps / sigma."""
        return self.predict(x, t, "score")

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[eps given x_t = x]."""
        return self.predict(x, t, "eps")

    def x0(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[x_0 given x_t = x] (Tweedie's formula)."""
        return self.predict(x, t, "x0")

    def v(self, x: Tensor, t: float | Tensor) -> Tensor:
        """alpha eps - sigma x_0 (Salimans and Ho 2022, section 4)."""
        return self.predict(x, t, "v")


# What a network is told of time, from the SDE and t.
TIME_INPUTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "999t": lambda sde, t: 999 * t,                      # Song et al. 2021, for t in [0, 1]
    "index": lambda sde, t: sde.steps * t - 1,           # a chain's own labels 0 .. steps - 1, between them too
    "sigma": lambda sde, t: sde.sigma(t),
    "log_sigma": lambda sde, t: sde.sigma(t.double() if t.device.type != "mps" else t).log(),
    "half_log_snr": lambda sde, t: sde.half_log_snr(t),
    "c_noise": lambda sde, t: -sde.half_log_snr(t) / 4,  # log(sigma / alpha) / 4 (Karras et al. 2022, table 1)
}


class Denoiser(ScoreModel):
    """A network F(x, time) read through an SDE and a parametrisation.

    network          maps x (batch, *event) and time (batch,) to a tensor of x's shape
    parametrization  what its output means: "eps", "x0", "v", "score" or "edm"
    time_input       what it is told of time: a key of TIME_INPUTS
    input_std        if given, the network sees x / sqrt(alpha^2 input_std^2 + sigma^2), which has unit variance for
                     data of that standard deviation (Karras et al. 2022, c_in); for variance-exploding SDEs and "edm"
    autocast         an attribute: the dtype of the network's arithmetic (torch.bfloat16), or None for its own

    Raises ValueError for an unknown word, for time_input "index" where the SDE is not a chain's, and for
    parametrization "edm" without input_std.
    """

    def __init__(self, network: nn.Module, sde: SDE, parametrization: str = "eps", time_input: str = "999t",
                 input_std: float | None = None):
        super().__init__()
        if time_input not in TIME_INPUTS:
            raise ArgumentError(f"unknown time_input {time_input!r}; choose from {', '.join(TIME_INPUTS)}", "time_input")
        if time_input == "index" and sde.steps is None:
            raise ArgumentError(f"time_input 'index' needs the SDE of a chain, got {sde}", "time_input")
        if input_std is not None and not input_std > 0:
            raise ArgumentError(f"input_std must be positive, got {input_std}", "input_std")
        self.network, self.sde = network, sde
        self.parametrization = make_parametrization(parametrization, input_std)
        self.time_input, self.input_std = time_input, input_std
        self.autocast: torch.dtype | None = None

    def with_network(self, network: nn.Module) -> "Denoiser":
        """The same view of another network, in that network's mode."""
        other = Denoiser(network, self.sde, self.parametrization.name, self.time_input, self.input_std)
        return other.train(network.training)

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The network's raw output F at (x, t), in the dtype of x."""
        t = as_time(t)
        own = next(self.network.parameters(), x)
        time = TIME_INPUTS[self.time_input](self.sde, t)
        time = time.to(x.device, torch.float32) if time.ndim else x.new_full((len(x),), float(time)).float()
        h = x
        if self.input_std is not None:
            variance = self.sde.alpha(t).square() * self.input_std**2 + self.sde.sigma(t).square()
            h = h * expand_as(variance.rsqrt(), h)
        if self.autocast is None:
            return self.network(h.to(own.dtype), time).to(x.dtype)
        with torch.autocast(x.device.type, self.autocast):
            return self.network(h.to(own.dtype), time).to(x.dtype)

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        output = self(x, t)
        if kind == self.parametrization.name:
            return output
        t = as_time(t)
        a, b = self.parametrization.coefficients(kind, self.sde.alpha(t), self.sde.sigma(t))
        return expand_as(a, x) * x + expand_as(b, x) * output
