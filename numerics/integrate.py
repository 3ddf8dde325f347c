"""Adaptive integration of an ODE by torchdiffeq, with evaluations counted and one-line errors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefield.numerics.errors import ArgumentError

METHODS = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}      # names and orders
MAX_EVALUATIONS = 10_000

State = tuple[Tensor, ...]


class _TooManyEvaluations(Exception):
    pass


class _NoStep(Exception):
    pass


def check_tolerances(method: str, rtol: float, atol: float, max_evaluations: int) -> None:
    """Raise ValueError for an unknown method, a tolerance outside (0, 1), or max_evaluations below 1."""
    if method not in METHODS:
        raise ArgumentError(f"unknown ODE method {method!r}; choose from {', '.join(METHODS)}", "method")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < 1:
            raise ArgumentError(f"{name} must lie between 0 and 1, got {value}", name)
    if max_evaluations < 1:
        raise ArgumentError(f"max_evaluations must be at least 1, got {max_evaluations}", "max_evaluations")


def _norm(state: State) -> Tensor:
    """The largest RMS of the parts, as in torchdiffeq; without gradients, so that autograd sees step sizes as numbers."""
    return max(part.detach().abs().pow(2).mean().sqrt() for part in state)


def integrate(field: Callable[[Tensor, State], State], state: State, times: Sequence[float], method: str, rtol: float,
              atol: float, max_evaluations: int = MAX_EVALUATIONS, clock: str = "t") -> tuple[list[State], int]:
    """Solve d state / dt = field(t, state) through `times`, increasing or decreasing, from state at times[0].

    clock  the name of the variable t in errors: "t" is time, and some solvers integrate over "lambda"

    Returns the states at all times and the number of evaluations of the field. Step sizes depend on the RMS norm of the
    error over the whole batch. Steps never leave [times[0], times[-1]], since sigma may not exist outside. Raises
    ValueError for settings that are not allowed, ArithmeticError if the integration cannot continue.
    """
    import torchdiffeq  # slow to import, as it loads scipy

    check_tolerances(method, rtol, atol, max_evaluations)
    low, high = min(times), max(times)
    evaluations, reached = 0, times[0]

    def counted(t: Tensor, y: State) -> State:
        nonlocal evaluations, reached
        if evaluations >= max_evaluations:
            raise _TooManyEvaluations
        if t.isnan():
            raise _NoStep("the size of a step is NaN")
        evaluations += 1
        t = t.clamp(low, high)      # the guess of the first step may probe beyond the end
        reached = float(t)
        return field(t, y)

    device = state[0].device
    precise = torch.float32 if device.type == "mps" else torch.float64
    t = torch.tensor(list(times), dtype=precise, device=device)
    where = f"rtol={rtol:g}, atol={atol:g}, method {method}"
    try:
        states = torchdiffeq.odeint(counted, state, t, rtol=rtol, atol=atol, method=method,
                                    options={"step_t": t[-1:], "dtype": precise, "norm": _norm})
    except _TooManyEvaluations:
        raise ArithmeticError(f"the ODE needs more than {max_evaluations} evaluations: stopped at {clock} = {reached:.4g} "
                              f"of {times[0]:g} to {times[-1]:g} ({where}); raise max_evaluations or the tolerances"
                              ) from None
    except (AssertionError, _NoStep) as error:
        raise ArithmeticError(f"the ODE cannot be integrated beyond {clock} = {reached:.4g} after {evaluations} evaluations "
                              f"({where}): {str(error).splitlines()[0][:60]}; the score may be NaN or the tolerances "
                              "too small for its precision") from None
    results = list(zip(*states, strict=True))
    if not all(bool(part.isfinite().all()) for part in results[-1]):
        raise ArithmeticError(f"the ODE's solution is not finite after {evaluations} evaluations ({where})")
    return results, evaluations
