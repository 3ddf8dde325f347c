"""Noise schedules: lengths, the ends that were published, and their continuous-time limits."""

import math

import pytest
import torch

from scorefield.sde_lib import (
    CosineVPSDE,
    ShiftedCosineVPSDE,
    cosine_betas,
    geometric_sigmas,
    linear_betas,
    sigmoid_betas,
)
from scorefield.sde_lib.schedules import BETAS

SCHEDULES = [*BETAS.values(), geometric_sigmas]


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


def test_cosine_in_beta_and_geometric_beta_are_as_courses_teach_them():
    steps, first, last = 400, 0.1 / 400, 20 / 400
    for i in (1, 7, 200, 400):
        wanted = first + (last - first) * (1 - math.cos(math.pi * i / steps)) / 2
        assert float(BETAS["cosine_beta"](steps)[i - 1]) == pytest.approx(wanted, rel=1e-12)
    ratio = (last / first) ** (1 / (steps - 1))
    for i in (1, 7, 400):
        assert float(BETAS["geometric_beta"](steps)[i - 1]) == pytest.approx(first * ratio ** (i - 1), rel=1e-12)


@pytest.mark.parametrize("start, end, tau", [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.3), (-3.0, 3.0, 1.1)])
def test_the_sigmoid_in_alpha_bar_is_chens(start, end, tau):
    def s(u):
        return 1 / (1 + math.exp(-u / tau))

    alpha_bar = [(s(end) - s(start + i / 200 * (end - start))) / (s(end) - s(start)) for i in range(201)]
    betas = BETAS["sigmoid_alpha"](200, start, end, tau)
    for i in (0, 1, 100, 198):
        assert float(betas[i]) == pytest.approx(1 - alpha_bar[i + 1] / alpha_bar[i], rel=1e-9)
    assert float(betas[-1]) == 0.999
    with pytest.raises(ValueError, match="start < end"):
        BETAS["sigmoid_alpha"](200, 3.0, 3.0)


@pytest.mark.parametrize("resolution", [16, 64, 512])
def test_the_shifted_cosine_moves_the_log_snr_by_twice_the_log_of_the_ratio(resolution):
    t = torch.cat([torch.logspace(-5, -1, 20, dtype=torch.float64), torch.linspace(0.1, 1, 40, dtype=torch.float64)])
    shifted, plain = ShiftedCosineVPSDE(resolution), CosineVPSDE()
    moved = 2 * (shifted.half_log_snr(t) - plain.half_log_snr(t))
    torch.testing.assert_close(moved, torch.full_like(t, 2 * math.log(64 / resolution)), rtol=0, atol=1e-12)
    if resolution == 64:
        torch.testing.assert_close(shifted.beta(t), plain.beta(t), rtol=1e-13, atol=0)
