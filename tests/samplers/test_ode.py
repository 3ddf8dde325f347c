import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.numerics.integrate import METHODS
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE


def mixture_of(oracle):
    return GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])


@pytest.mark.parametrize("scaling", ["x", "ve"])
@pytest.mark.parametrize("t_end", [1e-3, 1e-4])
def test_it_ends_where_the_reference_solution_ends(oracle, t_end, scaling):
    sampler = make_sampler("ode", t_end=t_end, rtol=1e-10, atol=1e-10, scaling=scaling)
    result = sampler(mixture_of(oracle), oracle["x_T"])
    assert float((result.x - oracle[f"ode|t_end={t_end:g}"]).abs().max()) < 1e-8


@pytest.mark.costly
@pytest.mark.parametrize("scaling", ["x", "ve"])
def test_it_maps_gaussians_by_their_standard_deviations(scaling, any_sde):
    """For Gaussian data the flow is linear: x(t) = x(1) sqrt(V(t) / V(1))."""
    model = GaussianMixture(any_sde, torch.zeros(1, 3), torch.tensor([0.3]))
    x_T = prior_sample(any_sde, (3,), range(5), dtype=torch.float64)
    result = make_sampler("ode", rtol=1e-9, atol=1e-9, points=5, scaling=scaling)(model, x_T, trajectory=True)
    variance = any_sde.alpha(result.times).square() * 0.3 + any_sde.sigma(result.times).square()
    exact = x_T * (variance / variance[0]).sqrt()[:, None, None]
    torch.testing.assert_close(result.trajectory, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_tolerance_gives_a_smaller_error(method, oracle):
    model, exact = mixture_of(oracle), oracle["ode|t_end=0.001"]
    errors = [float((make_sampler("ode", t_end=1e-3, method=method, rtol=tol, atol=tol)(model, oracle["x_T"]).x - exact)
                    .square().mean().sqrt()) for tol in (1e-3, 1e-5)]
    assert errors[1] < errors[0] / 5 and errors[1] < 2e-3


def test_too_many_evaluations_are_an_error_that_says_how_far_it_came(mixture):
    with pytest.raises(ArithmeticError, match=r"more than 30 evaluations.*t = .*raise max_evaluations"):
        make_sampler("ode", rtol=1e-8, atol=1e-8, max_evaluations=30)(mixture, torch.randn(4, 2).double())


@pytest.mark.costly
def test_tolerances_beyond_the_precision_are_an_error_in_one_line(mixture):
    for tolerance in (1e-15, 1e-30):      # too many steps, and steps of no length
        sampler = make_sampler("ode", rtol=tolerance, atol=tolerance, max_evaluations=1000)
        with pytest.raises(ArithmeticError, match="tolerances") as error:
            sampler(mixture, prior_sample(mixture.sde, (2,), range(4)))
        assert "\n" not in str(error.value)


def test_a_score_that_is_nan_is_an_error_that_says_so():
    model = GaussianMixture(VPSDE(), torch.tensor([[torch.nan, 0.0]]), torch.tensor([0.04]))
    with pytest.raises(ArithmeticError, match="the score may be NaN"):
        make_sampler("ode")(model, torch.zeros(4, 2))


@pytest.mark.parametrize("settings, argument", [({"method": "rk45"}, "method"), ({"scaling": "log"}, "scaling"),
                                            ({"rtol": 0.0}, "rtol"),
                                            ({"atol": -1.0}, "atol"), ({"max_evaluations": 0}, "max_evaluations")])
def test_settings_out_of_range_are_refused(settings, argument):
    with pytest.raises(ValueError, match=argument):
        make_sampler("ode", **settings)
