"""Adaptive integration, on y' = -y, whose solution is known."""

import pytest
import torch

from scorefield.numerics.integrate import METHODS, integrate

START = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class Decay:
    """The field of y' = -y, which remembers the times at which it was asked."""

    def __init__(self):
        self.times = []

    def __call__(self, t, state):
        self.times.append(float(t))
        return (-state[0],)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("times", [[0.0, 0.3, 1.0], [1.0, 0.4, 1e-5]])
def test_every_time_has_the_exact_solution_in_either_direction(method, times):
    field = Decay()
    states, evaluations = integrate(field, (START,), times, method, rtol=1e-6, atol=1e-6)
    assert evaluations == len(field.times)
    for t, (state,) in zip(times, states, strict=True):
        torch.testing.assert_close(state, START * torch.tensor(times[0] - t).double().exp(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("times", [[1.0, 1e-5], [1e-5, 1.0]])
def test_the_field_is_never_asked_beyond_the_ends(times):
    field = Decay()
    integrate(field, (START,), times, "dopri5", rtol=1e-4, atol=1e-4)
    assert min(field.times) >= 1e-5 and max(field.times) <= 1.0


def test_the_cap_on_evaluations_lets_what_needs_no_more_through():
    settings = {"times": [0.0, 2.0], "method": "dopri5", "rtol": 1e-6, "atol": 1e-6}
    _, needed = integrate(Decay(), (START,), **settings)
    assert integrate(Decay(), (START,), **settings, max_evaluations=needed)[1] == needed
    with pytest.raises(ArithmeticError, match=f"more than {needed - 1} evaluations: stopped at lambda = .* of 0 to 2"):
        integrate(Decay(), (START,), **settings, max_evaluations=needed - 1, clock="lambda")


@pytest.mark.parametrize("wrong, flag", [
    ({"method": "rk45"}, "method"), ({"rtol": 0.0}, "rtol"), ({"rtol": 1.0}, "rtol"), ({"atol": 0.0}, "atol"),
    ({"atol": 1.0}, "atol"), ({"max_evaluations": 0}, "max_evaluations")])
def test_settings_out_of_range_are_refused(wrong, flag):
    with pytest.raises(ValueError, match=flag):
        integrate(Decay(), (START,), [0.0, 1.0], **{"method": "dopri5", "rtol": 0.1, "atol": 0.1} | wrong)
