"""Errors are measured to the flow itself."""

import pytest
import torch

from scorefield.evaluation.comparison.flow import Limits, rms, tight_solution
from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample


def test_the_tight_solution_is_the_closed_form_of_one_gaussian(any_sde):
    mean, v = torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.09
    model = GaussianMixture(any_sde, mean, torch.tensor([v]))
    x, end = prior_sample(any_sde, (2,), range(16), dtype=torch.float64), any_sde.t_sample
    spread = [(any_sde.alpha(t).square() * v + any_sde.sigma(t).square()).sqrt() for t in (any_sde.t_max, end)]
    exact = any_sde.alpha(end) * mean + (x - any_sde.alpha(any_sde.t_max) * mean) * spread[1] / spread[0]
    solution = tight_solution(model, x, any_sde.t_max, end)
    assert float(rms(solution.x - exact).max()) < 2e-7 and solution.accuracy < 1e-6


@pytest.mark.costly
def test_it_agrees_with_an_adaptive_solver_at_tight_tolerances(mixture):
    x = prior_sample(mixture.sde, (2,), range(32), dtype=torch.float64)
    adaptive = make_sampler("ode", rtol=1e-11, atol=1e-11, method="dopri8")(mixture, x).x
    assert float(rms(tight_solution(mixture, x, mixture.sde.t_max, mixture.sde.t_sample).x - adaptive).median()) < 1e-6


@pytest.mark.parametrize("name, options, order", [
    ("ddim", {"grid": "logsnr"}, 1), ("heun", {"scaling": "ve", "grid": "logsnr"}, 2), ("edm", {}, 2),
    ("ddim", {"grid": "logsnr", "denoise": True}, 1), ("auto", {"t_end": 0.01}, 2.5), ("dpm_solver++", {}, 1.7)])
def test_the_error_falls_with_the_order_of_the_sampler(oracle, name, options, order):
    """So each is measured against what it converges to: at its own end, and with its last denoising."""
    from scorefield.sde_lib import VPSDE

    model = GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])
    limits = Limits(model, oracle["x_T"][:64])
    errors = []
    for steps in (100, 200):
        sampler = make_sampler(name, steps=steps, **options)
        errors.append(float(rms(sampler(model, oracle["x_T"][:64]).x - limits.of(sampler).x).median()))
    assert errors[0] / errors[1] > 2 ** (order - 0.25)


def test_a_stochastic_sampler_has_no_limit(mixture):
    with pytest.raises(ArgumentError, match="draws noise"):
        Limits(mixture, torch.zeros(1, 2)).of(make_sampler("euler_maruyama"))
