"""Any callable (x, time) -> tensor as a score model, so that every sampler and likelihood takes it."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from scorefield.models.denoiser import TIME_INPUTS, Denoiser, TimeInput
from scorefield.models.parametrization import PARAMETRIZATIONS
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.sde_lib.sde import SDE


class Wrapped(nn.Module):
    """A function or network from elsewhere, whose output is checked.

    function    called (x, time), or (x, time, condition) if it has conditions. Its output is a tensor of x's shape, or
                has one as its attribute `sample`, as those of diffusers have
    conditions  the names of its other inputs
    classes     how many labels there are, if "label" is one of these
    doubled     whether the output has twice the channels of x
    """

    def __init__(self, function: Callable[..., Any], conditions: Sequence[str] = (), classes: int | None = None,
                 doubled: bool = False):
        super().__init__()
        self.function, self.doubled = function, doubled
        self.conditions, self.classes = tuple(conditions), classes

    def forward(self, x: Tensor, *inputs: Any) -> Tensor:
        output = self.function(x, *inputs)
        if not isinstance(output, Tensor):
            output = getattr(output, "sample", output)
        if not isinstance(output, Tensor):
            raise ValueError(f"{_name(self.function)} must return a tensor, or an object with a tensor as its attribute "
                             f"sample, got {type(output).__name__}")
        shape = (len(x), 2 * x.shape[1], *x.shape[2:]) if self.doubled else tuple(x.shape)
        if output.shape != shape:
            what = f"twice the channels of x, {shape}" if self.doubled else f"x's shape {shape}"
            raise ValueError(f"{_name(self.function)} must return a tensor of {what}, got {tuple(output.shape)}")
        return output


def wrap(function: Callable[..., Any], sde: SDE, predicts: str = "eps", time: str | TimeInput = "999t",
         input_std: float | None = None, conditions: Sequence[str] | None = None, classes: int | None = None,
         label_dropout: bool = False, learned_variance: bool = False, variance_output: str = "share") -> Denoiser:
    """The score model of a function or a network from elsewhere; it needs no base class and no parameters.

    function       called (x, time), x (batch, *event) and time float32 (batch,); returns a tensor of x's shape, or an
                   object that has it as `sample`, as diffusers' UNet2DModel does
    sde            the forward process that it was trained under
    predicts       what its output means: "eps", "x0", "v", "score", "flow" or "edm"
    time           its time input: a key of TIME_INPUTS, or a function of the SDE and t
    input_std      if given, it sees x / sqrt(alpha^2 input_std^2 + sigma^2), as EDM's networks do
    conditions     the names of its other inputs, as a third argument, a mapping from names to tensors (batch, ...); by
                   default those that it names itself in an attribute `conditions`
    classes        how many labels there are, if "label" is one of the conditions; by default its attribute `classes`
    label_dropout  whether it takes the label `classes` to mean "no label", which allows label=None
    learned_variance  whether it gives the variance of a step back in a second half of its channels, see `Denoiser`
    variance_output  what that half says, see `Denoiser`

    A denoiser D(x, sigma) of k-diffusion is wrap(D, VESDE(), predicts="x0", time="sigma"). Raises ArgumentError (a
    ValueError) for an unknown word and for what is not callable, and, when it is used, ValueError for an output of another
    shape. One use:

    >>> from scorefield.models import wrap
    >>> from scorefield.sde_lib import VESDE
    >>> sde = VESDE()
    >>> unit_normal = wrap(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sde, predicts="x0", time="sigma")
    >>> bool(torch.allclose(unit_normal.score(torch.ones(1, 2), 0.5), -1 / (1 + sde.sigma(0.5).float() ** 2)))
    True
    """
    if not callable(function):
        raise ArgumentError(f"wrap needs a function or network of (x, time), got {type(function).__name__}", "function")
    if predicts not in PARAMETRIZATIONS:
        raise ArgumentError(f"unknown predicts {predicts!r}; choose from {', '.join(PARAMETRIZATIONS)}", "predicts")
    if not callable(time) and time not in TIME_INPUTS:
        raise ArgumentError(f"unknown time {time!r}; choose from {', '.join(TIME_INPUTS)}, or give a function of the "
                            "SDE and t", "time")
    names = getattr(function, "conditions", ()) if conditions is None else conditions
    number = getattr(function, "classes", None) if classes is None else classes
    with renamed(names={"time_input": "time"}):
        return Denoiser(Wrapped(function, names, number, learned_variance), sde, predicts, time, input_std, label_dropout,
                        learned_variance=learned_variance, variance_output=variance_output)


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, nn.Module):
        return type(function).__name__
    return getattr(function, "__name__", type(function).__name__)
