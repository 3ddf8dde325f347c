"""Thresholding against its formula by hand, the final samples of every sampler, and what must not change to the bit."""

import math

import numpy as np
import pytest
import torch

from scorefield.guidance import threshold
from scorefield.models import GaussianMixture
from scorefield.models.score_model import Posterior, ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, FlowSDE
from scorefield.sde_lib.sde import SDE, expand_as

KINDS = ("score", "eps", "x0", "v", "flow")
FAST = {name: {"steps": 12} for name in SAMPLERS} | {
    "ode": {"rtol": 1e-3, "atol": 1e-3}, "torchsde": {"steps": 8}, "langevin": {"steps": 6}}
LOW, HIGH = -0.6, 0.9


def predictions(sde, x, x0, t):
    """Every prediction that follows from x_t and x_0, by its definition."""
    alpha, sigma = (expand_as(c(t), x) for c in (sde.alpha, sde.sigma))
    eps = (x - alpha * x0) / sigma
    return {"x0": x0, "eps": eps, "score": -eps / sigma, "v": alpha * eps - sigma * x0, "flow": eps - x0}


@pytest.mark.parametrize("kind", KINDS)
def test_static_clips_the_data_and_works_the_prediction_out_again(mixture, kind, x, t):
    limited, free = threshold(mixture, low=LOW, high=HIGH), mixture.predict(x, t, kind)
    x0 = mixture.x0(x, t)
    expected, inside = predictions(mixture.sde, x, x0.clamp(LOW, HIGH), t)[kind], (x0 >= LOW) & (x0 <= HIGH)
    found = limited.predict(x, t, kind)
    assert inside.any() and not inside.all()
    assert torch.equal(found[inside], free[inside])      # to the bit, in each element
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)      # eps / sigma^2, near the data
    assert limited.evaluations == 1
    posterior, own = limited.posterior(x, t), mixture.posterior(x, t)
    assert torch.equal(posterior.mean, own.mean.clamp(LOW, HIGH)) and torch.equal(posterior.variance, own.variance)


class Predicts(ScoreModel):
    """A score model that predicts the x_0 that it is told."""

    def __init__(self, sde, x0):
        super().__init__()
        self.sde, self.told = sde, x0

    def predict(self, x, t, kind):
        return predictions(self.sde, x, self.told.to(x), torch.as_tensor(t, dtype=torch.float64))[kind]

    def posterior(self, x, t):
        return Posterior(self.told, torch.ones(()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.83, 0.995, 1.0])
def test_dynamic_scales_a_sample_down_whose_quantile_leaves_the_range(kind, quantile, t):
    sde, rng = VPSDE(), np.random.default_rng(0)
    x0 = torch.from_numpy(rng.standard_normal((6, 1, 4, 5)) * np.array([0.05, 0.1, 0.4, 1.0, 2.0, 5.0])[:, None, None, None])
    x = torch.from_numpy(rng.standard_normal((6, 1, 4, 5)))
    centre, half = (LOW + HIGH) / 2, (HIGH - LOW) / 2
    deviation = x0.numpy() - centre
    s = np.maximum(np.quantile(np.abs(deviation.reshape(6, -1)), quantile, axis=1), half)[:, None, None, None]
    expected = torch.from_numpy(centre + np.clip(deviation, -s, s) * half / s)
    limited, model = threshold(Predicts(sde, x0), "dynamic", quantile, LOW, HIGH), Predicts(sde, x0)
    found = limited.predict(x, t, kind)
    torch.testing.assert_close(found, predictions(sde, x, expected, t)[kind], rtol=1e-11, atol=1e-11)
    left = ((x0 < LOW) | (x0 > HIGH)).flatten(1).any(1)
    assert torch.equal(found[~left], model.predict(x, t, kind)[~left]) and not left.all()
    mean = limited.posterior(x, t).mean
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)
    assert float(mean.min()) >= LOW and float(mean.max()) <= HIGH


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_of_the_range_are_within_it(dtype):
    """Rounding of (low + high) / 2 must not make a sample that touches the range one that has left it."""
    low, high = torch.tensor([0.1, 0.7], dtype=dtype).tolist()
    x0 = torch.tensor([[low, high, 0.3], [high, high, high]], dtype=dtype)
    limited = threshold(Predicts(VPSDE(), x0), "dynamic", 1.0, low, high)
    assert torch.equal(limited.x0(torch.zeros_like(x0), 0.5), x0)


class Ends(SDE):
    """alpha = 1 - t and sigma = t up to t = 1, so that both vanish at an end."""

    def alpha(self, t):
        return 1 - torch.as_tensor(t, dtype=torch.float64)

    def sigma(self, t):
        return torch.as_tensor(t, dtype=torch.float64) * 1.0


class Fixed(ScoreModel):
    sde = Ends()

    def predict(self, x, t, kind):
        return x * {"x0": 3.0, "eps": 1.0, "score": -1.0, "v": -2.0, "flow": 2.0}[kind]


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_at_both_ends_of_time_nothing_is_nan(method, x):
    limited, free = threshold(Fixed(), method), Fixed()
    for t in (0.0, 1.0, torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0, 0.5])):
        for kind in KINDS:
            z = x.clone().requires_grad_()
            found = limited.predict(z, t, kind)
            found.sum().backward()
            assert bool(found.isfinite().all() and z.grad.isfinite().all())
    for t, stays in ((1.0, ("eps", "score")), (0.0, ("eps", "score", "v", "flow"))):
        for kind in stays:      # no eps follows from x_0 there
            assert torch.equal(limited.predict(x, t, kind), free.predict(x, t, kind))
    assert float(limited.x0(x, 0.0).abs().max()) <= 1 < float(free.x0(x, 0.0).abs().max())
    flow = threshold(GaussianMixture(FlowSDE(), torch.full((1, 2), 3.0), torch.ones(1)), method)
    for dtype in (torch.float32, torch.float64):
        assert float(flow.x0(x.to(dtype), FlowSDE().t_max).abs().max()) <= 1


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_final_pixel_leaves_the_range_under_any_sampler(name, denoise, method):
    if name in ("edm", "restart") and denoise:
        pytest.skip(f"{name} ends at the data already")
    model = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.4], [-0.8, 0.9]]), torch.tensor([0.05, 0.1]))
    limited = threshold(model, method, low=LOW, high=HIGH)
    sampler = make_sampler(name, **FAST[name], **({"denoise": True} if denoise else {}))
    x_T = prior_sample(model.sde, (2,), range(24), dtype=torch.float64)
    result, free = sampler(limited, x_T, range(24), trajectory=True), sampler(model, x_T, range(24))
    assert float(result.x.min()) >= LOW and float(result.x.max()) <= HIGH
    assert float(free.x.min()) < LOW and float(free.x.max()) > HIGH
    if not denoise:
        assert torch.equal(result.trajectory[-1], result.x)


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_which_nothing_leaves_the_range_do_not_change_to_the_bit(name, method):
    model = GaussianMixture(VPSDE(), torch.tensor([[0.2, 0.1], [-0.2, 0.1]]), torch.tensor([0.01, 0.02]))
    x_T = prior_sample(model.sde, (2,), range(6), dtype=torch.float64)
    sampler = make_sampler(name, **FAST[name])
    free = sampler(model, x_T, range(6), trajectory=True)
    found = sampler(threshold(model, method, low=-5.0, high=5.0), x_T, range(6), trajectory=True)
    assert torch.equal(found.x, free.x) and torch.equal(found.trajectory, free.trajectory) and found.nfe == free.nfe


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_reported_and_not_clipped(method, bad):
    model = threshold(Predicts(VPSDE(), torch.tensor([[0.0, bad]])), method)
    for denoise in (False, True):
        with pytest.raises(ArithmeticError, match="not finite"):
            make_sampler("ddim", steps=3, denoise=denoise)(model, torch.zeros(1, 2))


@pytest.mark.parametrize(("settings", "match", "argument"), [
    ({"method": "clip"}, "choose from static, dynamic", "method"),
    ({"method": "dynamic", "quantile": 1.1}, r"quantile must lie in \[0, 1\]", "quantile"),
    ({"method": "dynamic", "quantile": math.nan}, r"quantile must lie in \[0, 1\]", "quantile"),
    ({"quantile": 0.9}, "belongs to method 'dynamic'", "quantile"), ({"low": 1.0}, "need low < high", "low"),
    ({"high": math.inf}, "both finite", "low"), ({"low": math.nan}, "need low < high", "low"),
])
def test_settings_that_make_no_range_are_refused(settings, match, argument):
    with pytest.raises(ArgumentError, match=match) as caught:
        threshold(GaussianMixture(VESDE(), torch.eye(2), torch.ones(2)), **settings)
    assert caught.value.arguments[0] == argument
