"""One network, seen through an SDE: .score, .eps, .x0, .v and .flow at any (x, t).

Samplers and likelihoods see nothing else of a network. The exact Gaussian mixture of analytic.py has the same face.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.conditions import Condition, Conditions, declared
from scorefield.models.parametrization import make_parametrization
from scorefield.models.score_model import ConditionalModel, Posterior, ScoreModel, evaluation_mode
from scorefield.models.student import Student
from scorefield.models.variance_outputs import VARIANCE_OUTPUTS
from scorefield.numerics.attention import by_formula
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.kept import Kept
from scorefield.sde_lib.sde import SDE, as_time, check_time, expand_as

_KEPT: Kept[Any] = Kept(10_000)      # numbers for times that samplers come back to

__all__ = ["TIME_INPUTS", "Denoiser", "ScoreModel", "TimeInput", "evaluation_mode"]

TimeInput = Callable[[Any, Tensor], Tensor]      # of the SDE and t, in t's shape

# The time input of a network.
TIME_INPUTS: dict[str, TimeInput] = {
    "999t": lambda sde, t: 999 * t,                      # Song et al. 2021, for t in [0, 1]
    "index": lambda sde, t: sde.steps * t - 1,           # a chain's own labels 0 .. steps - 1, between them too
    "index1000": lambda sde, t: (sde.steps * t - 1) * 1000 / sde.steps,      # as if there were 1000 of them
    "sigma": lambda sde, t: sde.sigma(t),
    "log_sigma": lambda sde, t: sde.sigma(t.double() if t.device.type != "mps" else t).log(),
    "half_log_snr": lambda sde, t: sde.half_log_snr(t),
    "c_noise": lambda sde, t: -sde.half_log_snr(t) / 4,  # log(sigma / alpha) / 4 (Karras et al. 2022, table 1)
}


class Denoiser(ConditionalModel):
    """A network F(x, time) read through an SDE and a parametrisation.

    network          maps x (batch, *event) and time (batch,), float32, to a tensor of x's shape. If it has an attribute
                     `conditions`, the names of its other inputs, it is called network(x, time, condition)
    parametrization  what its output means: "eps", "x0", "v", "score", "flow" or "edm"
    time_input       its time input: a key of TIME_INPUTS, or a function of the SDE and t
    input_std        if given, the network sees x / sqrt(alpha^2 input_std^2 + sigma^2), which has unit variance for
                     data of that standard deviation (Karras et al. 2022, c_in); for variance-exploding SDEs and "edm"
    label_dropout    whether the network also learned from examples whose label was dropped, so that label=None is allowed
    energy           whether F is the gradient by x of the scalar <x, network(x, time)>. The score is then that of an energy,
                     and curl-free whatever the weights (Salimans and Ho 2021, "Should EBMs Model the Energy or the Score?").
                     An evaluation then has a backward pass, too
    learned_variance  whether the network gives twice the channels: F, and a number r for each element, of which it says the
                     variance of a step back
    variance_output  what r says: a key of VARIANCE_OUTPUTS (variance_outputs.py). "share": that of log beta in the log
                     variance (`with_share`; Nichol and Dhariwal 2021)
    autocast         an attribute: the dtype of the network's arithmetic (torch.bfloat16), or None for its own
    made_for         an attribute: what a distilled model is made for (student.py), or None for a score model

    Raises ArgumentError (a ValueError) for an unknown word, for time_input "index" and "index1000" if the SDE is not a
    chain's, for parametrization "edm" without input_std, for label_dropout if the network takes no label, for an energy that
    has learned a variance, and for a variance_output without learned_variance. One use:

    >>> from scorefield.models import MLP, Denoiser
    >>> from scorefield.sde_lib import VPSDE
    >>> model = Denoiser(MLP((2,)), VPSDE(), "v")
    >>> model.score(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """

    def __init__(self, network: nn.Module, sde: SDE, parametrization: str = "eps", time_input: str | TimeInput = "999t",
                 input_std: float | None = None, label_dropout: bool = False, energy: bool = False,
                 learned_variance: bool = False, variance_output: str = "share"):
        super().__init__()
        if not callable(time_input) and time_input not in TIME_INPUTS:
            raise ArgumentError(f"unknown time_input {time_input!r}; choose from {', '.join(TIME_INPUTS)}", "time_input")
        if time_input in ("index", "index1000") and sde.steps is None:
            raise ArgumentError(f"time_input {time_input!r} needs the SDE of a chain, got {sde}", "time_input")
        if input_std is not None and not input_std > 0:
            raise ArgumentError(f"input_std must be positive, got {input_std}", "input_std")
        if label_dropout and declared(network).classes is None:
            raise ArgumentError("label_dropout needs a network that takes labels, one with the attributes conditions and "
                                f"classes; {type(network).__name__} has not both", "label_dropout")
        if energy and learned_variance:
            raise ArgumentError("a scalar energy has no variance beside it; leave out energy or learned_variance", "energy",
                                "learned_variance")
        if variance_output not in VARIANCE_OUTPUTS:
            raise ArgumentError(f"unknown variance_output {variance_output!r}; choose from {', '.join(VARIANCE_OUTPUTS)}",
                                "variance_output")
        if variance_output != "share" and not learned_variance:
            raise ArgumentError(f"variance_output {variance_output!r} needs a network that gives a variance; set "
                                "learned_variance", "variance_output", "learned_variance")
        self.network, self.sde, self.learned_variance, self.variance_output = network, sde, learned_variance, variance_output
        self.parametrization = make_parametrization(parametrization, input_std)
        self.time_input, self.input_std, self.label_dropout, self.energy = time_input, input_std, label_dropout, energy
        self.autocast: torch.dtype | None = None
        self.made_for: Student | None = None

    @property
    def student(self) -> Student | None:
        return self.made_for

    @property
    def takes(self) -> Conditions:
        return declared(self.network, self.label_dropout)

    def with_network(self, network: nn.Module) -> "Denoiser":
        """The same view of another network, in that network's mode."""
        other = Denoiser(network, self.sde.of_network(network), self.parametrization.name, self.time_input, self.input_std,
                         self.label_dropout, self.energy, self.learned_variance, self.variance_output)
        other.made_for = self.made_for
        return other.train(network.training)

    def forward(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Tensor:
        """The network's raw output F at (x, t), in the dtype of x.

        condition  the conditions of each sample, (batch, ...) by name; labels may be the index `classes`, "no label"
        """
        return self.outputs(x, t, condition)[0]

    def outputs(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor | None]:
        """F as in `forward`, and what variance_output says, of the shape of x; or None if no variance was learned."""
        output = self._raw(x, t, condition)
        if not self.learned_variance:
            return output, None
        if output.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(f"{type(self.network).__name__} has learned no variance: it returns shape "
                             f"{tuple(output.shape)} for x of shape {tuple(x.shape)}, not twice its channels")
        output, raw = output.chunk(2, dim=1)
        return output, VARIANCE_OUTPUTS[self.variance_output].read(raw, self.sde, _precise(t))

    def _raw(self, x: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        """All that the network gives at (x, t), in the dtype of x."""
        t = _precise(t)
        own = next(self.network.parameters(), x)
        h = x
        if self.input_std is not None:
            variance = self.sde.alpha(t).square() * self.input_std**2 + self.sde.sigma(t).square()
            h = h * expand_as(variance.rsqrt(), h)
        takes = self.takes
        told = takes.of_batch(condition, x)
        inputs = (h.to(own.dtype), self.time(t, x), *([told] if takes.names else []))
        return (self._gradient if self.energy else self.plain)(*inputs).to(x.dtype)

    def plain(self, *inputs: Any) -> Any:
        """What the network gives for its own inputs, in the arithmetic of `autocast`."""
        if self.autocast is None:
            return self.network(*inputs)
        with torch.autocast(inputs[0].device.type, self.autocast):
            return self.network(*inputs)

    def _gradient(self, *inputs: Any) -> Tensor:
        """The gradient by h of <h, network(h)>, which can be differentiated again where gradients are on."""
        if torch.is_inference_mode_enabled():
            raise ArgumentError("a model of an energy needs gradients; call it under no_grad, not inference_mode", "model")
        (h, *told), again = inputs, torch.is_grad_enabled()
        with torch.enable_grad(), by_formula(again):
            h = h if again and h.requires_grad else h.detach().requires_grad_()
            return torch.autograd.grad((h * self.plain(h, *told)).sum(), h, create_graph=again)[0]

    def time(self, t: Tensor, x: Tensor) -> Tensor:
        """What the network is told of time, float32 (batch,) on x's device; the dtype of x does not round it."""
        make = self.time_input if callable(self.time_input) else TIME_INPUTS[self.time_input]
        key = None if callable(self.time_input) else self._key(t, self.time_input)
        if key is not None:
            time = _KEPT.of(key, lambda: float(make(self.sde, t)))
        elif (given := torch.as_tensor(make(self.sde, t))).ndim:
            return given.to(x.device, torch.float32)
        else:
            time = float(given)
        return torch.full((len(x),), time, dtype=torch.float32, device=x.device)

    def _key(self, t: Tensor, what: Hashable) -> Hashable | None:
        """The key of numbers that are kept for the next evaluation at t; None for times that are not one number at hand."""
        if t.ndim or t.device.type != "cpu" or t.requires_grad or torch.compiler.is_compiling():
            return None
        content = self.sde.content
        return None if content is None else (content, what, t.dtype, t.item())

    def predict(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None = None) -> Tensor:
        return self._predicted(x, t, kind, condition)[0]

    def with_share(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None = None
                   ) -> tuple[Tensor, Tensor]:
        if self.learned_variance and self.variance_output != "share":
            raise ArgumentError("variance 'learned' needs a model that learned a share of log beta, and this one learned "
                                f"{self.variance_output!r} (model.variance_output); choose analytic", "variance")
        prediction, share = (self._predicted(x, t, kind, condition) if self.learned_variance
                             else super().with_share(x, t, kind))
        assert share is not None
        return prediction, share

    def posterior(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Posterior:
        """As ScoreModel's; the variance is known where one was learned."""
        if not self.learned_variance:
            return super().posterior(x, t, condition)
        t = _precise(t)
        mean, known = self._predicted(x, t, "x0", condition)
        assert known is not None
        return Posterior(mean, VARIANCE_OUTPUTS[self.variance_output].of_x0(known, x, mean, self.sde, t))

    def _predicted(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None
                   ) -> tuple[Tensor, Tensor | None]:
        if what := getattr(self.network, "no_score", ""):
            raise ArgumentError(f"this is {what}, which has no score: it draws no samples and has no likelihood of its own",
                                "model")
        t = _precise(check_time(self.sde, t))
        plain = kind == self.parametrization.name
        a, b = (t, t) if plain else self._pair(t, kind)
        output, share = self.outputs(x, t, condition)
        if output.shape != x.shape:
            raise ValueError(f"{type(self.network).__name__} is not the network of a score model: it returns shape "
                             f"{tuple(output.shape)} for x of shape {tuple(x.shape)}")
        return output if plain else expand_as(a, x) * x + expand_as(b, x) * output, share

    def _pair(self, t: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """As _coefficients, which are kept for a time that is one number."""
        key = self._key(t, (self.parametrization, kind))
        if key is None:
            return self._coefficients(t, kind)

        def make() -> tuple[float, float]:
            a, b = self._coefficients(t, kind)
            return a.item(), b.item()

        a, b = _KEPT.of(key, make)
        return t.new_tensor(a), t.new_tensor(b)

    def _coefficients(self, t: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a, b = self.parametrization.coefficients(kind, alpha, sigma)
        if t.device.type != "cpu" or torch.compiler.is_compiling():      # as in check_time: never wait for a device
            return a, b
        bad = ~(a.isfinite() & b.isfinite())
        if bool(bad.any()):
            zero = "sigma" if float(sigma[bad][0]) == 0 else "alpha"
            raise ArgumentError(f"there is no {kind} of a network that predicts {self.parametrization.name} at t = "
                                f"{float(t[bad][0]):g}, where {zero} = 0; choose another time", "t")
        return a, b


def _precise(t: float | Tensor) -> Tensor:
    """`t` in float64 or float32: 16 bits are too few for the SDE's coefficients."""
    t = as_time(t)
    return t if t.dtype in (torch.float32, torch.float64) else t.float()
