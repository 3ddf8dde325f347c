"""Power-function averages against their closed form, and averages that were not tracked against those that were."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from scorefield.models.ema import PowerEMA, averages_of, gamma_of, make_average
from scorefield.models.post_hoc import combination, inner_product
from scorefield.numerics.errors import ArgumentError


def number(value):
    network = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(network.weight, float(value))
    return network


def tracked(names, values):
    """Averages of a sequence of weights, after each."""
    averages = {name: make_average(number(99.0), name) for name in names}
    ends = {name: [] for name in names}
    for value in values:
        for name, average in averages.items():
            average.update(number(value))
            ends[name].append(average.module.weight.item())
    return ends


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_gamma_gives_the_relative_standard_deviation(sigma_rel):
    gamma, k = gamma_of(sigma_rel), (np.arange(10**6) + 0.5) / 10**6
    density = (gamma + 1) * k**gamma
    mean = (density * k).mean()
    assert math.sqrt((density * (k - mean) ** 2).mean()) == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_the_power_average_of_a_linear_sequence_has_its_closed_form(sigma_rel):
    """Of weights k after update k it is t - sum over k < t of (k / t)^(gamma + 1), whatever the start was."""
    end, = tracked([f"power{sigma_rel}"], range(1, 301)).values()
    for t in (1, 2, 10, 300):
        expected = t - sum((k / t) ** (gamma_of(sigma_rel) + 1) for k in range(1, t))
        assert end[t - 1] == pytest.approx(expected, rel=1e-12)


def test_a_skipped_update_leaves_the_average_and_its_count():
    average, other = PowerEMA(number(0.0), 0.1), PowerEMA(number(0.0), 0.1)
    for value in (3.0, 1.0, 5.0):
        average.update(number(value), torch.tensor(0.0))
        average.update(number(77.0), torch.tensor(1.0))
        other.update(number(value))
    assert average.updates == other.updates == 3
    assert average.module.weight.item() == pytest.approx(other.module.weight.item(), rel=1e-6)


def test_the_product_of_profiles_is_their_integral():
    (t_a, gamma_a), (t_b, gamma_b) = a, b = (80, 6.94), (100, 2.5)
    tau = (np.arange(10**6) + 0.5) * 80 / 10**6
    product = (gamma_a + 1) * tau**gamma_a / t_a ** (gamma_a + 1) * (gamma_b + 1) * tau**gamma_b / t_b ** (gamma_b + 1)
    assert inner_product(a, b) == inner_product(b, a) == pytest.approx(product.mean() * 80, rel=1e-6)


@pytest.mark.parametrize(("every", "sigma_rel", "error"), [
    (10, 0.03, 2e-3), (10, 0.07, 2e-4), (10, 0.13, 2e-4), (10, 0.2, 1e-3), (50, 0.07, 4e-3), (50, 0.13, 5e-3)])
def test_an_average_made_from_snapshots_is_the_one_that_was_tracked(every, sigma_rel, error):
    """Of 1,000 updates that wander; the error is relative to how far the weights wander."""
    values = np.cumsum(np.random.default_rng(0).standard_normal(1000))
    ends = tracked(["power0.05", "power0.1", f"power{sigma_rel}"], values)
    stored = [(t, s) for t in range(every, 1001, every) for s in (0.05, 0.1)]
    x, distance = combination([(t, gamma_of(s)) for t, s in stored], (1000, gamma_of(sigma_rel)))
    made = sum(factor * ends[f"power{s}"][t - 1] for factor, (t, s) in zip(x, stored, strict=True))
    assert x.sum() == pytest.approx(1, abs=1e-12) and distance < error
    assert made == pytest.approx(ends[f"power{sigma_rel}"][-1], abs=error * values.std())


def test_a_snapshot_of_the_profile_itself_is_taken_alone():
    stored = [(t, gamma_of(s)) for t in (250, 500, 750, 1000) for s in (0.05, 0.1)]
    x, distance = combination(stored, (1000, gamma_of(0.1)))
    assert x == pytest.approx([0, 0, 0, 0, 0, 0, 0, 1], abs=1e-6) and distance < 1e-6


def test_a_profile_that_is_too_narrow_for_the_snapshots_is_known_by_its_distance():
    stored = [(t, gamma_of(0.1)) for t in (500, 1000)]
    assert combination(stored, (1000, gamma_of(0.02)))[1] > 0.5


def test_names_of_averages():
    assert averages_of(" 0.9, power0.1 ") == ["0.9", "power0.1"] and averages_of("") == []
    with pytest.raises(ArgumentError, match=r"must lie in 0.001 .. 0.28, got 0.3"):
        gamma_of(0.3)
