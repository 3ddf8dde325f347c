"""The estimators as dataclasses: what they call, what they refuse, and what they say of their options."""

import dataclasses
import typing

import pytest
import torch

from scorefield.likelihood import ELBO, ESTIMATORS, ODE, ChainELBO, chain_elbo, elbo, log_prob
from scorefield.models import GaussianMixture
from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.options import options_of
from scorefield.sde_lib import VPSDE


@pytest.fixture
def model():
    return GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.2, 0.3]))


def test_an_estimator_gives_what_its_function_gives(model):
    x, k = model.sample(4, 1e-3, torch.Generator().manual_seed(0)), torch.tensor([[0, 3], [1, 2], [7, 7], [4, 0]])
    pairs = [
        (ODE(probes=2, method="exponential", steps=12)(model, x, range(4)),
         log_prob(model, x, "hutchinson", probes=2, seeds=range(4), method="exponential", steps=12)),
        (ODE(divergence="exact", t_min=0.1, rtol=1e-3)(model, x), log_prob(model, x, t_min=0.1, rtol=1e-3)),
        (ELBO(draws=8, t_min=0.01)(model, x, range(4)), elbo(model, x, 8, range(4), 0.01)),
        (ChainELBO(draws=2, variance="beta_tilde", steps=7)(model, k, 8, range(4), dequantized=True),
         chain_elbo(model, k, 8, steps=7, variance="beta_tilde", draws=2, seeds=range(4), dequantized=True)),
    ]
    for ours, theirs in pairs:
        assert torch.equal(ours.value, theirs.value) and ours.nfe == theirs.nfe


@pytest.mark.parametrize("name, settings, argument", [
    ("ode", {"method": "rk45"}, "method"), ("ode", {"steps": 30}, "steps"), ("ode", {"probes": 0}, "probes"),
    ("ode", {"divergence": "exact", "probes": 2}, "probes"), ("ode", {"rtol": -1.0}, "rtol"),
    ("ode", {"clock": "s"}, "clock"),
    ("ode", {"method": "exponential", "clock": "t"}, "clock"), ("ode", {"method": "exponential", "steps": 7}, "steps"),
    ("ode", {"probe_kind": "uniform"}, "probe_kind"), ("ode", {"max_evaluations": 0}, "max_evaluations"),
    ("elbo", {"draws": 3}, "draws"), ("chain_elbo", {"draws": 0}, "draws"), ("chain_elbo", {"variance": "b"}, "variance"),
    ("chain_elbo", {"steps": 1}, "steps"),
])
def test_settings_are_refused_before_there_is_a_model(name, settings, argument):
    with pytest.raises(ValueError) as caught:
        ESTIMATORS[name](**settings)
    assert caught.value.arguments == (argument,)


def test_every_option_says_its_type_and_in_a_line_what_it_does():
    for name, kind in ESTIMATORS.items():
        assert list(options_of(kind)) == [field.name for field in dataclasses.fields(kind)]
        for option, field in options_of(kind).items():
            words, kinds = field.metadata["help"], typing.get_args(field.type) or (field.type,)
            assert words and "\n" not in words and len(words) < 140, (name, option)
            assert all(isinstance(part, type) for part in kinds), (name, option)
            assert field.default is None if type(None) in kinds else isinstance(field.default, kinds[0]), (name, option)


class Twice(ScoreModel):
    """A score model that calls another one twice for each prediction, as guidance does."""

    evaluations = 2

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde, self.calls = inner, inner.sde, 0

    def predict(self, x, t, kind):
        self.calls += 2
        return (self.inner.predict(x, t, kind) + self.inner.predict(x, t, kind)) / 2


def test_evaluations_of_the_network_are_counted_as_often_as_a_prediction_calls_it(model):
    x = model.sample(3, 1e-3, torch.Generator().manual_seed(0))
    estimates = (lambda m: log_prob(m, x, method="exponential", steps=12),
                 lambda m: log_prob(m, x, rtol=1e-2, atol=1e-2), lambda m: elbo(m, x, 4, range(3)),
                 lambda m: chain_elbo(m, x, None, steps=5, draws=2, seeds=range(3)))
    for estimate in estimates:
        twice = Twice(model)
        assert estimate(twice).nfe == twice.calls == 2 * estimate(model).nfe
