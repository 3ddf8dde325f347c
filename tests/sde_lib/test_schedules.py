"""Noise schedules: lengths, the ends that were published, and their continuous-time limits."""

import math

import pytest
import torch

from scorefield.sde_lib import cosine_betas, geometric_sigmas, linear_betas, scaled_linear_betas, sigmoid_betas

SCHEDULES = [linear_betas, scaled_linear_betas, cosine_betas, sigmoid_betas, geometric_sigmas]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_a_schedule_is_float64_of_the_length_asked_for(schedule, steps):
    values = schedule(steps)
    assert values.shape == (steps,) and values.dtype == torch.float64
    assert bool(values.isfinite().all()) and bool((values > 0).all()) and bool((values.diff() >= 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [0, -1, 10**11])
def test_no_step_or_more_than_memory_holds_is_a_value_error(schedule, steps):
    with pytest.raises(ValueError, match=f"1 to 1,000,000 steps, got {steps}"):
        schedule(steps)


def test_linear_betas_are_those_of_ho_et_al_at_a_thousand_steps():
    betas = linear_betas(1000)
    assert float(betas[0]) == pytest.approx(1e-4, rel=1e-14) and float(betas[-1]) == pytest.approx(0.02, rel=1e-14)
    torch.testing.assert_close(betas.diff(), torch.full((999,), 0.0199 / 999, dtype=torch.float64), rtol=1e-9, atol=0)


def test_cosine_betas_are_those_of_nichol_and_dhariwal_with_their_cap():
    betas, s = cosine_betas(1000), 0.008
    alpha_bar = [math.cos((i / 1000 + s) / (1 + s) * math.pi / 2) ** 2 for i in range(1001)]
    for i in (0, 1, 499, 998):
        assert float(betas[i]) == pytest.approx(1 - alpha_bar[i + 1] / alpha_bar[i], rel=1e-9)
    assert float(betas[-1]) == 0.999 and float(betas[-2]) < 0.999
    assert float(cosine_betas(1000, max_beta=0.5).max()) == 0.5


def test_sigmoid_betas_run_along_the_logistic_curve_from_minus_six_to_six():
    betas = sigmoid_betas(1001)
    for i, place in ((0, -6.0), (250, -3.0), (500, 0.0), (1000, 6.0)):
        assert float(betas[i]) == pytest.approx((0.1 + 19.9 / (1 + math.exp(-place))) / 1001, rel=1e-12)


def test_geometric_sigmas_are_a_progression_from_a_hundredth_to_fifty():
    sigmas = geometric_sigmas(1000)
    assert float(sigmas[0]) == 0.01 and float(sigmas[-1]) == pytest.approx(50, rel=1e-14)
    ratio = torch.full((999,), 5000 ** (1 / 999), dtype=torch.float64)
    torch.testing.assert_close(sigmas[1:] / sigmas[:-1], ratio, rtol=1e-12, atol=0)
