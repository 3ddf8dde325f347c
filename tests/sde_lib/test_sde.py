"""What every SDE owes to the contract: derivatives, inverse, kernel, prior, reverse family; the design's formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorefield.numerics.noise import PRIOR, NoiseStream
from scorefield.sde_lib import (
    SDE,
    SDES,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DDPMChain,
    FlowSDE,
    SigmoidVPSDE,
    SMLDChain,
    SubVPSDE,
    check_time,
    expand_as,
)

prove = settings(deadline=None, derandomize=True, max_examples=200)

BETA_MIN, BETA_MAX = st.floats(0.01, 1), st.floats(1, 40)
SIGMA_MIN, SIGMA_MAX = st.floats(1e-3, 0.1), st.floats(1, 400)
PROCESSES = st.one_of(
    st.builds(VPSDE, BETA_MIN, BETA_MAX),
    st.builds(SubVPSDE, BETA_MIN, BETA_MAX),
    st.builds(SigmoidVPSDE, BETA_MIN, BETA_MAX, st.floats(0.5, 12)),
    st.builds(CosineVPSDE, st.floats(1e-3, 0.1), st.floats(20, 5000)),
    st.builds(VESDE, SIGMA_MIN, SIGMA_MAX),
    st.builds(FlowSDE, st.floats(0.5, 1 - 2**-20)),
    st.builds(lambda name, steps: DDPMChain.from_schedule(name, steps).to_sde(),
              st.sampled_from(["linear", "cosine", "sigmoid"]), st.integers(21, 1000)),
    st.builds(lambda steps, low, high: SMLDChain.from_schedule(steps, low, high).to_sde(),
              st.integers(2, 1000), SIGMA_MIN, SIGMA_MAX),
)
TIMES = st.lists(st.floats(1e-5, 1), min_size=1, max_size=20).map(lambda t: torch.tensor(t, dtype=torch.float64))


def derivative(function, t):
    t = t.clone().requires_grad_()
    values = function(t)
    return torch.autograd.grad(values.sum(), t)[0] if values.requires_grad else torch.zeros_like(t)


def assert_time_inverts_half_log_snr(sde, t, rtol):
    """Within `rtol`, and what the rounding of lambda itself makes of t."""
    half_log_snr = sde.half_log_snr(t)
    rounding = 1e-15 * half_log_snr.abs() * 2 * sde.sigma(t).square() / sde.g2(t)
    for inverse in (sde.time(half_log_snr), SDE.time(sde, half_log_snr)):
        assert bool(((inverse - t).abs() <= rtol * t + rounding).all()), (inverse / t - 1).abs().max()


# Drift and diffusion


@prove
@given(PROCESSES, TIMES)
def test_drift_and_squared_diffusion_are_the_derivatives_of_alpha_and_sigma(sde, t):
    t = sde.t_max * t
    f = derivative(lambda s: sde.alpha(s).log(), t)
    g2 = derivative(lambda s: sde.sigma(s).square(), t) - 2 * f * sde.sigma(t).square()
    torch.testing.assert_close(sde.drift(t), f, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(sde.g2(t), g2, rtol=1e-8, atol=1e-12)


@prove
@given(PROCESSES, TIMES)
def test_closed_forms_agree_with_what_the_base_class_derives(sde, t):
    t = sde.t_max * t
    torch.testing.assert_close(sde.drift(t), SDE.drift(sde, t), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(sde.g2(t), SDE.g2(sde, t), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(sde.log_alpha(t), SDE.log_alpha(sde, t), rtol=1e-8, atol=1e-14)


@prove
@given(PROCESSES, TIMES)
def test_squared_diffusion_is_minus_two_sigma_squared_times_the_slope_of_half_log_snr(sde, t):
    t = sde.t_max * t
    slope = derivative(lambda s: sde.alpha(s).log() - sde.sigma(s).log(), t)
    torch.testing.assert_close(sde.g2(t), -2 * sde.sigma(t).square() * slope, rtol=1e-8, atol=1e-12)


def test_signal_to_noise_falls_and_diffusion_is_positive_from_t_min_to_one(sde):
    t = torch.linspace(sde.t_min, sde.t_max, 5001, dtype=torch.float64)
    assert bool((sde.half_log_snr(t).diff() < 0).all())
    assert float(sde.g2(t).min()) > 0


def test_the_derived_drift_and_diffusion_carry_no_gradient_and_work_without_grad(sde):
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    with torch.no_grad():
        inside = SDE.drift(sde, t), SDE.g2(sde, t)
    for value, outside in zip(inside, (SDE.drift(sde, t), SDE.g2(sde, t)), strict=True):
        assert torch.equal(value, outside) and not outside.requires_grad
    assert not t.requires_grad


# Time as a function of the signal-to-noise ratio


@prove
@given(PROCESSES, TIMES)
def test_time_inverts_half_log_snr_in_closed_form_and_by_bisection(sde, t):
    assert_time_inverts_half_log_snr(sde, sde.t_max * t, rtol=1e-10)


def test_time_inverts_half_log_snr_to_twelve_digits_with_the_default_settings(sde):
    times = torch.logspace(-5, 0, 1000, dtype=torch.float64), torch.linspace(1e-5, 1, 1000, dtype=torch.float64)
    assert_time_inverts_half_log_snr(sde, sde.t_max * torch.cat(times).clamp(max=1), rtol=1e-12)


@pytest.mark.parametrize("sde", [VPSDE(0.1, 80.0), SubVPSDE(0.1, 80.0), SigmoidVPSDE(0.1, 80.0)], ids=repr)
def test_time_inverts_half_log_snr_to_twelve_digits_down_to_a_signal_of_1e_9(sde):
    assert float(sde.alpha(1.0)) < 3e-9
    assert_time_inverts_half_log_snr(sde, torch.linspace(0.3, 1, 1000, dtype=torch.float64), rtol=1e-12)


def test_bisection_gives_the_ends_for_a_half_log_snr_beyond_them(sde):
    ends = SDE.time(sde, torch.tensor([1e6, -1e6], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([1e-12, sde.t_max], dtype=torch.float64), rtol=1e-9, atol=0)


def test_time_keeps_the_dtype_and_shape_of_half_log_snr(sde):
    half_log_snr = sde.half_log_snr(torch.tensor([[0.3], [0.6]], dtype=torch.float32))
    back = sde.time(half_log_snr)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, torch.tensor([[0.3], [0.6]]), rtol=1e-4, atol=0)


# The conventions of the design


def test_vp_is_the_linear_beta_from_a_tenth_to_twenty():
    sde, b0, b1 = VPSDE(), 0.1, 20.0
    for t in (1e-5, 1e-3, 0.1, 0.5, 0.9, 1.0):
        log_alpha = -(t**2) * (b1 - b0) / 4 - t * b0 / 2
        beta = b0 + t * (b1 - b0)
        assert float(sde.log_alpha(t)) == pytest.approx(log_alpha, rel=1e-13)
        assert float(sde.sigma(t)) ** 2 == pytest.approx(-math.expm1(2 * log_alpha), rel=1e-13)
        assert float(sde.drift(t)) == pytest.approx(-beta / 2, rel=1e-13)
        assert float(sde.g2(t)) == pytest.approx(beta, rel=1e-13)


def test_sub_vp_has_the_alpha_of_vp_the_square_of_its_sigma_and_less_diffusion():
    sde, b0, b1 = SubVPSDE(), 0.1, 20.0
    for t in (1e-5, 1e-3, 0.1, 0.5, 0.9, 1.0):
        log_alpha = -(t**2) * (b1 - b0) / 4 - t * b0 / 2
        beta = b0 + t * (b1 - b0)
        assert float(sde.log_alpha(t)) == pytest.approx(log_alpha, rel=1e-13)
        assert float(sde.sigma(t)) == pytest.approx(-math.expm1(2 * log_alpha), rel=1e-13)
        assert float(sde.drift(t)) == pytest.approx(-beta / 2, rel=1e-13)
        assert float(sde.g2(t)) == pytest.approx(-beta * math.expm1(4 * log_alpha), rel=1e-13)


def test_ve_is_geometric_from_a_hundredth_to_fifty_with_that_prior():
    sde = VESDE()
    for t in (0.0, 1e-5, 0.3, 1.0):
        sigma = 0.01 * 5000**t
        assert float(sde.alpha(t)) == 1 and float(sde.drift(t)) == 0
        assert float(sde.sigma(t)) == pytest.approx(sigma, rel=1e-13)
        assert float(sde.g2(t)) == pytest.approx(2 * sigma**2 * math.log(5000), rel=1e-13)
    assert sde.prior.std == 50


def test_flow_is_the_straight_line_up_to_a_last_time_that_float32_holds():
    sde = FlowSDE()
    for t in (1e-5, 0.3, 0.5, 0.9, sde.t_max):
        assert float(sde.alpha(t)) == 1 - t and float(sde.sigma(t)) == t
        assert float(sde.drift(t)) == -1 / (1 - t) and float(sde.g2(t)) == pytest.approx(2 * t / (1 - t), rel=1e-15)
        assert float(sde.half_log_snr(t)) == pytest.approx(math.log((1 - t) / t), rel=1e-12, abs=1e-15)
        x, eps = torch.tensor([[1.7, 0.4]], dtype=torch.float64)[:, :, None].unbind(1)
        x0 = (x - t * eps) / (1 - t)      # the velocity is eps - x_0 (Liu et al. 2023)
        torch.testing.assert_close(sde.reverse_drift(x, t, -eps / t, eta=0.0), eps - x0, rtol=1e-10, atol=0)
    assert float(torch.tensor(sde.t_max, dtype=torch.float32)) == sde.t_max == sde.prior.std == 1 - 2**-10


@pytest.mark.parametrize("sde", [
    VPSDE(), CosineVPSDE(), SigmoidVPSDE(), *(SDES["ddpm"](name) for name in ("linear", "cosine", "sigmoid")),
], ids=repr)
def test_the_variance_preserving_ones_preserve_the_variance(sde):
    t = torch.cat([torch.logspace(-5, -1, 200), torch.linspace(0.1, 1, 200)]).double()
    torch.testing.assert_close(sde.alpha(t).square() + sde.sigma(t).square(), torch.ones_like(t), rtol=0, atol=1e-14)
    assert sde.prior.std == 1


def test_times_used_are_those_of_the_design():
    for name, t_sample in {"vp": 1e-3, "cosine": 1e-3, "sigmoid": 1e-3, "subvp": 1e-3, "ve": 1e-5, "flow": 1e-3}.items():
        sde = SDES[name]()
        assert (sde.t_min, sde.t_sample) == (1e-5, t_sample), name
    for name in ("ddpm", "smld"):
        sde = SDES[name](steps=500)
        assert (sde.t_min, sde.t_sample) == (1 / 500, 1 / 500), name


def test_the_data_stand_at_time_zero(sde):
    assert float(sde.alpha(0.0)) == 1
    start = {"VESDE": 0.01, "SMLDChainSDE": 0.01 * 5000 ** (-1 / 999)}.get(type(sde).__name__, 0.0)
    assert float(sde.sigma(0.0)) == pytest.approx(start, rel=1e-12)


@pytest.mark.parametrize(("make", "settings"), [
    (VPSDE, {"beta_min": 0.0}), (VPSDE, {"beta_min": 3, "beta_max": 2}), (VPSDE, {"beta_max": math.inf}),
    (VPSDE, {"beta_min": math.nan}), (SubVPSDE, {"beta_min": -1}), (SigmoidVPSDE, {"beta_min": -1}),
    (SigmoidVPSDE, {"span": 0}), (SigmoidVPSDE, {"span": math.inf}), (CosineVPSDE, {"s": 0}), (CosineVPSDE, {"s": 1}),
    (CosineVPSDE, {"beta_max": 10}), (CosineVPSDE, {"beta_max": math.inf}), (VESDE, {"sigma_min": 0}),
    (VESDE, {"sigma_min": 2, "sigma_max": 1}), (VESDE, {"sigma_max": math.inf}), (VESDE, {"sigma_max": math.nan}),
    (FlowSDE, {"t_max": 1.0}), (FlowSDE, {"t_max": math.nan}),
    (SDES["ddpm"], {"schedule": "quadratic"}), (SDES["smld"], {"steps": 1}), (SDES["smld"], {"sigma_min": -1.0}),
], ids=lambda value: str(value) if isinstance(value, dict) else value.__name__)
def test_settings_out_of_range_are_value_errors_of_one_line(make, settings):
    with pytest.raises(ValueError) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


# The prior


@pytest.mark.parametrize("event", [(), (2,), (3, 4, 4)], ids=str)
def test_the_priors_log_prob_is_the_normal_density_in_nats(sde, event):
    x = sde.prior.std * torch.randn(5, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Normal(0.0, torch.tensor(sde.prior.std, dtype=torch.float64)).log_prob(x)
    torch.testing.assert_close(sde.prior.log_prob(x), exact.reshape(5, -1).sum(1), rtol=1e-12, atol=1e-12)


def test_the_prior_has_the_noise_of_the_last_time(sde):
    assert sde.prior.std == pytest.approx(float(sde.sigma(sde.t_max)), rel=1e-4)      # VP: sqrt(1 - exp(-10.05))


def test_the_prior_draws_from_a_stream_of_its_own_for_each_seed(sde):
    draws = sde.prior.sample((2, 3), [(7, i) for i in range(4)], dtype=torch.float64)
    noise = NoiseStream([(7, i) for i in range(4)], PRIOR).normal(torch.empty(4, 2, 3, dtype=torch.float64))
    assert torch.equal(draws, sde.prior.std * noise)
    assert torch.equal(sde.prior.sample((2, 3), [(7, 2)], dtype=torch.float64), draws[2:3])


# The range of time


@pytest.mark.parametrize("t", [500, -0.1, -1e-6, math.nan, math.inf, torch.tensor([0.1, 1.01]), torch.tensor([-0.1, 0.5]),
                               torch.tensor([0.1, math.nan]), torch.tensor(2)], ids=str)
def test_a_time_outside_the_range_is_refused_by_name_wherever_a_state_comes_with_it(sde, t):
    x = torch.zeros(2, 3)
    for call in (lambda: check_time(sde, t), lambda: sde.marginal(x, t), lambda: sde.perturb(x, t, x),
                 lambda: sde.reverse_drift(x, t, x)):
        with pytest.raises(ValueError, match=r"t must lie in \[0, ") as caught:
            call()
        assert caught.value.arguments == ("t",) and repr(sde) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_ends_are_times_and_so_is_the_rounded_inverse_of_the_last_half_log_snr(sde, dtype):
    ends = torch.tensor([0.0, sde.t_max], dtype=dtype)
    assert check_time(sde, ends) is ends
    last = torch.tensor(sde.t_max, dtype=torch.float64)
    check_time(sde, sde.time(sde.half_log_snr(last)))
    assert check_time(sde, 0).dtype == check_time(sde, sde.t_max).dtype == torch.float64
    check_time(sde, torch.empty(0))


def test_a_score_needs_noise_and_says_so_where_there_is_none(sde):
    for t in (0, torch.tensor([0.5, 0.0])):
        if float(sde.sigma(0.0)) > 0:
            check_time(sde, t, score=True)
        else:
            with pytest.raises(ValueError, match="no score at t = 0 .*sigma is 0"):
                check_time(sde, t, score=True)


def test_a_time_elsewhere_than_on_the_cpu_is_not_read():
    t = torch.empty(3, device="meta")
    assert check_time(VPSDE(), t) is t


def test_steps_are_those_of_a_chain_and_none_for_other_processes():
    assert VPSDE().steps is VESDE().steps is SDE.steps is None and VPSDE().t_max == 1
    assert SDES["ddpm"](steps=500).steps == SDES["smld"](steps=500).steps == 500


# The perturbation kernel and the reverse family, for any event


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("event", [(), (2,), (3, 4, 4)], ids=str)
def test_every_event_shape_and_every_kind_of_time_give_the_same_kernel_and_drift(sde, event, dtype):
    x, noise = torch.randn(2, 5, *event, dtype=dtype, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.01, 0.2, 0.5, 0.9, sde.t_max], dtype=torch.float64)
    mean, std = sde.marginal(x, times)
    results = mean, sde.perturb(x, times, noise), sde.reverse_drift(x, times, noise, eta=0.5)
    assert std.shape == (5,) and std.dtype == torch.float64
    for result in results:
        assert result.shape == x.shape and result.dtype == dtype
    for i, t in enumerate(times):
        for scalar in (t, float(t)):
            single, std_i = sde.marginal(x, scalar)
            alone = single, sde.perturb(x, scalar, noise), sde.reverse_drift(x, scalar, noise, eta=0.5)
            assert torch.equal(std_i, std[i])
            for result, whole in zip(alone, results, strict=True):
                assert result.shape == x.shape and result.dtype == dtype
                torch.testing.assert_close(result[i], whole[i], rtol=1e-6, atol=0)


def test_perturb_is_alpha_x0_plus_sigma_eps_of_each_sample(sde):
    x0, eps = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = [0.1, 0.4, 0.7, sde.t_max]
    x = sde.perturb(x0, torch.tensor(t, dtype=torch.float64), eps)
    for i, time in enumerate(t):
        by_hand = float(sde.alpha(time)) * x0[i] + float(sde.sigma(time)) * eps[i]
        torch.testing.assert_close(x[i], by_hand, rtol=1e-14, atol=0)


@prove
@given(PROCESSES, TIMES, st.floats(0, 2), st.floats(0.1, 3))
def test_the_reverse_family_keeps_the_marginals_of_gaussian_data_for_every_eta(sde, t, eta, std):
    """x ~ N(0, V): the score is -x/V, the drift a x, and backwards in time -dV/dt = -2 a V + eta^2 g^2."""
    def variance(s):
        return (std * sde.alpha(s)).square() + sde.sigma(s).square()

    t = sde.t_max * t
    x = torch.full_like(t, 1.7)
    a = sde.reverse_drift(x, t, -x / variance(t), eta) / x
    inflow, outflow = 2 * a * variance(t), eta**2 * sde.g2(t)
    scale = inflow.abs() + outflow + 2 * (sde.drift(t) * variance(t)).abs()
    assert bool(((derivative(variance, t) - (inflow - outflow)).abs() <= 1e-10 * scale).all())


def test_expand_as_refuses_times_of_another_batch_size():
    with pytest.raises(RuntimeError):
        VPSDE().perturb(torch.zeros(3, 2), torch.tensor([0.1, 0.2]), torch.zeros(3, 2))
    assert expand_as(torch.tensor([0.1, 0.2]), torch.zeros(2, 3, 4)).shape == (2, 1, 1)


def test_repr_names_the_class_and_its_settings():
    assert repr(VPSDE(0.2, 10.0)) == "VPSDE(beta_min=0.2, beta_max=10.0)"
    assert repr(VESDE()) == "VESDE(sigma_min=0.01, sigma_max=50.0)"
