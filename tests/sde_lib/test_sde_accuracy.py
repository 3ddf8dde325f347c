"""alpha and sigma against 50 digits of the textbook, and float32 against float64, down to t = 1e-5."""

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE, SigmoidVPSDE, SubVPSDE

prove = settings(deadline=None, derandomize=True, max_examples=60)
BETA_MIN, BETA_MAX = st.floats(0.01, 1), st.floats(1, 40)
TIME = st.one_of(st.floats(1e-5, 1), st.floats(-5, 0).map(lambda e: 10.0**e))


def assert_float64_accuracy(sde, t, alpha, sigma):
    """Within 1e-12 of many digits, relative; `alpha` and `sigma` are mpmath numbers."""
    for name, exact in (("alpha", alpha), ("log_alpha", mp.log(alpha)), ("sigma", sigma)):
        computed = mp.mpf(float(getattr(sde, name)(t)))
        assert abs(computed - exact) <= 1e-12 * abs(exact), f"{name} of {sde} at t = {t}"


def integrated(beta, *points):
    """alpha = exp(-1/2 int beta) and sigma = sqrt(1 - alpha^2), by quadrature."""
    integral = mp.quad(beta, points)
    return mp.exp(-integral / 2), mp.sqrt(-mp.expm1(-integral))


@prove
@given(BETA_MIN, BETA_MAX, TIME)
def test_vp_and_sub_vp_have_the_published_kernels(beta_min, beta_max, t):
    with mp.workdps(50):
        b0, b1, s = mp.mpf(beta_min), mp.mpf(beta_max), mp.mpf(t)
        alpha = mp.exp(-(s**2) * (b1 - b0) / 4 - s * b0 / 2)
        assert_float64_accuracy(VPSDE(beta_min, beta_max), t, alpha, mp.sqrt(1 - alpha**2))
        assert_float64_accuracy(SubVPSDE(beta_min, beta_max), t, alpha, 1 - alpha**2)


@prove
@given(st.floats(1e-3, 0.1), st.floats(1, 400), TIME)
def test_ve_has_the_published_kernel(sigma_min, sigma_max, t):
    with mp.workdps(50):
        sigma = mp.mpf(sigma_min) * (mp.mpf(sigma_max) / mp.mpf(sigma_min)) ** mp.mpf(t)
        assert_float64_accuracy(VESDE(sigma_min, sigma_max), t, mp.mpf(1), sigma)


@prove
@given(st.floats(1e-3, 0.05), TIME.map(lambda t: 0.9979 * t))
def test_cosine_is_the_published_curve_up_to_the_cap_of_beta_at_0_998(s, t):
    with mp.workdps(50):
        offset = mp.mpf(s)
        alpha = mp.cos(mp.pi / 2 * (t + offset) / (1 + offset)) / mp.cos(mp.pi / 2 * offset / (1 + offset))
        assert_float64_accuracy(CosineVPSDE(s), t, alpha, mp.sqrt(1 - alpha**2))


@prove
@given(st.floats(1e-3, 0.05), st.floats(20, 5000), TIME)
def test_cosine_integrates_its_beta_with_the_cap(s, beta_max, t):
    with mp.workdps(30):
        rate = mp.pi / 2 / (1 + mp.mpf(s))
        cap = mp.atan(beta_max / (2 * rate)) / rate - mp.mpf(s)

        def beta(u):
            return 2 * rate * mp.tan(rate * (u + s)) if u < cap else mp.mpf(beta_max)

        exact = integrated(beta, *[0, t] if t < cap else [0, cap, t])
        assert_float64_accuracy(CosineVPSDE(s, beta_max), t, *exact)


def test_cosine_ends_at_a_thousandth_of_signal():
    sde = CosineVPSDE()
    assert float(sde.alpha(1.0)) == pytest.approx(0.0011, rel=0.05)
    assert float(sde.beta(1.0)) == pytest.approx(999, rel=1e-12) and float(sde.beta(0.997)) < 999


@prove
@given(BETA_MIN, BETA_MAX, st.floats(0.5, 12), TIME)
def test_sigmoid_integrates_its_beta(beta_min, beta_max, span, t):
    with mp.workdps(30):
        b0, b1 = mp.mpf(beta_min), mp.mpf(beta_max)
        exact = integrated(lambda u: b0 + (b1 - b0) / (1 + mp.exp(-mp.mpf(span) * (2 * u - 1))), 0, mp.mpf(t))
        assert_float64_accuracy(SigmoidVPSDE(beta_min, beta_max, span), t, *exact)


@pytest.mark.parametrize("name", ["sigma", "alpha", "log_alpha"])
def test_float32_is_accurate_to_a_hundred_thousandth_from_1e_5_to_one(sde, name):
    grids = torch.logspace(-5, 0, 5001), torch.linspace(1e-5, 1, 5001), torch.linspace(0.99, 1, 5001)
    t = torch.cat(grids).clamp(1e-5, sde.t_max)
    rough, exact = getattr(sde, name)(t), getattr(sde, name)(t.double())
    assert rough.dtype == torch.float32
    error = torch.where(rough == exact, 0.0, (rough.double() / exact - 1).abs())
    worst = int(error.argmax())
    assert float(error[worst]) < 1e-5, f"{name} is off by {float(error[worst]):.1e} at t = {float(t[worst])!r}"
