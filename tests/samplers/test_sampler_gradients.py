"""Derivatives through samplers, on a Gaussian whose score has a parameter, against closed forms and finite differences."""

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.models.denoiser import ScoreModel
from scorefield.samplers import SAMPLERS, make_sampler
from scorefield.sde_lib import VPSDE

FAST = {name: {"steps": 6} for name in SAMPLERS} | {
    "ode": {"rtol": 1e-7, "atol": 1e-7}, "torchsde": {"steps": 8}, "predictor_corrector": {"steps": 4},
    "langevin": {"steps": 3}}
VARIED = [*FAST.items(), ("ddim", {"steps": 6, "eta": 0.5}), ("edm", {"steps": 5, "churn": 3.0}),
          ("dpm_solver", {"steps": 6, "method": "singlestep", "order": 3}), ("dpm_solver++", {"steps": 6, "method": "sde"}),
          ("predictor_corrector", {"steps": 3, "corrector": "annealed"}), ("rk4", {"steps": 3, "scaling": "ve"}),
          ("unipc", {"steps": 6, "order": 3}), ("auto", {"steps": 6, "order": 3})]


class Learned(ScoreModel):
    """The score of N(m, e^(2 s) I) and a wiggle, with parameters m and s."""

    def __init__(self):
        super().__init__()
        self.sde = VPSDE()
        self.place = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.log_std = torch.nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def predict(self, x, t, kind):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        spread = alpha**2 * (2 * self.log_std).exp() + sigma**2
        eps = sigma * (x - alpha * self.place) / spread + 0.05 * torch.sin(2 * x)
        return {"eps": eps, "score": -eps / sigma, "x0": (x - sigma * eps) / alpha}[kind]


def run(name, options, model, x, **settings):
    return make_sampler(name, **options)(model, x, seeds=range(len(x)), **settings)


@pytest.mark.parametrize("name, options", VARIED, ids=str)
def test_gradients_are_those_of_finite_differences_and_leave_the_result_alone(name, options):
    model = Learned()
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = run(name, options, model, x, gradients=True).x
    plain = run(name, options, model, x)
    assert torch.equal(result, plain.x) and not plain.x.requires_grad
    of_x, of_place, of_std = torch.autograd.grad((w * result).sum(), [x, model.place, model.log_std])

    def moved(tensor, direction, h=1e-5):
        values = []
        for sign in (h, -h):
            with torch.no_grad():
                tensor += sign * direction
            values.append(float((w * run(name, options, model, x).x).sum()))
            with torch.no_grad():
                tensor -= sign * direction
        return (values[0] - values[1]) / (2 * h)

    rtol = 1e-3 if name == "ode" else 1e-5      # its steps move with the state, by the tolerance
    for tensor, gradient in ((x, of_x), (model.place, of_place), (model.log_std, of_std)):
        direction = torch.ones_like(tensor) if tensor is not x else w
        assert float((gradient * direction).sum()) == pytest.approx(moved(tensor, direction), rel=rtol, abs=1e-6)


def test_the_flow_of_a_gaussian_has_the_slope_of_its_standard_deviations():
    sde = VPSDE()
    model = GaussianMixture(sde, torch.zeros(1, 2), torch.tensor([0.3]))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for name, options in (("ode", {"rtol": 1e-9, "atol": 1e-9}), ("auto", {"steps": 200, "order": 3})):
        result = make_sampler(name, **options)(model, x, gradients=True)
        variance = sde.alpha(result.times[[0, -1]]).square() * 0.3 + sde.sigma(result.times[[0, -1]]).square()
        slope, = torch.autograd.grad(result.x.sum(), x)
        torch.testing.assert_close(slope, (variance[1] / variance[0]).sqrt().expand(3, 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["ddim", "auto", "ancestral"])
def test_the_trajectory_and_the_denoised_end_carry_gradients_too(name):
    model, x = Learned(), torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    result = make_sampler(name, steps=4, denoise=True)(model, x, seeds=range(2), trajectory=True, gradients=True)
    for tensor in (result.x, result.trajectory[2]):
        slope, = torch.autograd.grad(tensor.sum(), x, retain_graph=True)
        assert bool((slope != 0).all())
