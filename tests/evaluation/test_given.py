"""Models that take low_res, scored and drawn given that of the examples."""

import math

import pytest
import torch

from scorefield.configs.sections import data
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation.draw import draw
from scorefield.evaluation.given import of_held_out
from scorefield.evaluation.likelihood import score
from scorefield.evaluation.moments import fit_moments
from scorefield.models.conditions import Conditions
from scorefield.models.networks.low_res import resized
from scorefield.models.score_model import ConditionalModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import DEQUANTIZATION, NoiseStream, sample_seeds
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.sde import expand_as

VARIANCE = 0.25


class Around(ConditionalModel):
    """The exact model of data N(low_res at full size, VARIANCE)."""

    def __init__(self):
        super().__init__()
        self.sde = VPSDE()

    @property
    def takes(self):
        return Conditions(("low_res",))

    def predict(self, x, t, kind, condition=None):
        centre = resized(self.takes.of_batch(condition, x)["low_res"].to(x), x.shape[2:])
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = (expand_as(value, x) for value in (self.sde.alpha(t), self.sde.sigma(t)))
        eps = sigma * (x - alpha * centre) / (alpha**2 * VARIANCE + sigma**2)
        if kind == "eps":
            return eps
        x0 = (x - sigma * eps) / alpha
        return {"x0": x0, "score": -eps / sigma, "v": alpha * eps - sigma * x0, "flow": eps - x0}[kind]


@pytest.fixture(scope="module")
def digits():
    return load_dataset(data("digits", degradation="downsample:factor=2", dequantize=True))


def test_the_likelihood_given_low_res_is_that_of_the_exact_conditional_density(digits):
    codec, n = make_codec(17, dequantize=True), 6
    found = score(Around(), digits, codec, n=n, batch_size=4, progress=False, divergence="exact", float64=True,
                  rtol=1e-8, atol=1e-8)
    k, condition = digits.test[torch.arange(n)]
    u = NoiseStream(sample_seeds(0, 0, n), DEQUANTIZATION).uniform(torch.empty(k.shape))
    z = codec.encode(k, u.double()) - resized(condition["low_res"].double(), (8, 8))
    exact = -0.5 * (z.square() / VARIANCE + math.log(2 * math.pi * VARIANCE)).flatten(1).sum(1)
    torch.testing.assert_close(found.log_prob[0], exact, atol=0.06, rtol=0)      # at t_max a part of low_res is left


def test_sample_i_is_given_the_low_res_of_held_out_example_i(digits):
    given = of_held_out(Around(), digits, "cpu")
    found = draw(given, make_sampler("auto", steps=40), (1, 8, 8), 400, seed=1, batch_size=150, progress=False)
    index = torch.arange(400) % len(digits.test)
    z = found.x - resized(digits.test[index][1]["low_res"], (8, 8))
    assert abs(float(z.mean())) < 0.02 and float(z.var()) == pytest.approx(VARIANCE, rel=0.05)


def test_moments_are_fitted_given_low_res(digits):
    moments = fit_moments(Around(), digits, make_codec(17, dequantize=True), n=20, points=3)
    assert bool(moments.residual.isfinite().all())


def test_a_model_of_low_res_is_not_scored_without_it(digits):
    plain = load_dataset(data("digits", dequantize=True))
    with pytest.raises(ArgumentError, match="the examples of data set 'digits' have none"):
        score(Around(), plain, make_codec(17, dequantize=True), n=2, progress=False)
    with pytest.raises(ArgumentError, match="have none"):
        of_held_out(Around(), plain, "cpu")


def test_one_that_is_bound_already_stays(digits):
    low_res = torch.zeros(1, 1, 4, 4)
    bound = Around().given(low_res=low_res)
    assert of_held_out(bound, digits, "cpu") is bound
    codec = make_codec(17, dequantize=True)
    own, zero = (score(model, digits, codec, n=2, progress=False, estimator="elbo").log_prob for model in (Around(), bound))
    assert not torch.allclose(own, zero)
