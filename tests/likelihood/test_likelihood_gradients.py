"""Derivatives of log p with respect to x and to the model's parameters, on Gaussians."""

import pytest
import torch

from scorefield.likelihood import log_prob
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.denoiser import ScoreModel
from scorefield.sde_lib import VPSDE

METHODS = [{"rtol": 1e-8, "atol": 1e-8}, {"rtol": 1e-8, "atol": 1e-8, "clock": "lambda"},
           {"method": "exponential", "steps": 200}]


class Gaussian(ScoreModel):
    """The exact score of data N(m, e^(2 s) I), with parameters m and s."""

    def __init__(self):
        super().__init__()
        self.sde = VPSDE()
        self.place = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.log_std = torch.nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def predict(self, x, t, kind):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        score = -(x - alpha * self.place) / (alpha**2 * (2 * self.log_std).exp() + sigma**2)
        return score if kind == "score" else -sigma * score

    def log_prob(self, x, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        variance = alpha**2 * (2 * self.log_std).exp() + sigma**2
        return -0.5 * ((x - alpha * self.place).square() / variance + torch.log(2 * torch.pi * variance)).sum(1)


@pytest.mark.costly
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_derivatives_of_the_log_density_of_a_gaussian_are_those_of_its_formula(settings, divergence):
    """With the marginal as prior; the Hutchinson estimate has no noise here, as the Jacobian is a multiple of I."""
    model = Gaussian()
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    leaves = [x, model.place, model.log_std]
    seeds = range(4) if divergence == "hutchinson" else None
    arguments = settings | {"divergence": divergence, "seeds": seeds, "prior": lambda z: model.log_prob(z, 1.0)}
    result = log_prob(model, x, gradients=True, **arguments)
    assert torch.equal(result.value, log_prob(model, x, **arguments).value)
    exact = torch.autograd.grad(model.log_prob(x, 1e-5).sum(), leaves)
    for ours, expected in zip(torch.autograd.grad(result.value.sum(), leaves), exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_derivative_of_log_p_is_the_score_of_a_mixture():
    model = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.2, 0.3]))
    x = model.sample(8, 1e-5, torch.Generator().manual_seed(0)).requires_grad_()
    result = log_prob(model, x, method="exponential", steps=100, gradients=True, prior=lambda z: model.log_prob(z, 1.0))
    slope, = torch.autograd.grad(result.value.sum(), x)
    torch.testing.assert_close(slope, model.score(x, 1e-5), rtol=1e-3, atol=1e-3)


def test_a_network_learns_from_log_p_and_data_need_no_gradient():
    torch.manual_seed(0)
    model, x = Denoiser(MLP((2,), width=8, layers=1), VPSDE()).double(), torch.randn(4, 2, dtype=torch.float64)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    arguments = {"method": "exponential", "steps": 20}
    log_prob(model, x, gradients=True, **arguments).value.sum().backward()
    weight = model.network.parameters().__next__()
    direction, h = torch.randn_like(weight), 1e-5
    values = []
    for sign in (h, -h):
        with torch.no_grad():
            weight += sign * direction
            values.append(float(log_prob(model, x, **arguments).value.sum()))
            weight -= sign * direction
    assert float((weight.grad * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3)
    assert not log_prob(model, x, **arguments).value.requires_grad
