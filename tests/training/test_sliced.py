"""Score matching without a target: equal to denoising score matching but for a constant, and right for a Gaussian."""

import pytest
import torch
from torch import nn

from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VESDE, VPSDE
from scorefield.training import Batch, Draws, ScoreMatching, SlicedScoreMatching, build_objective
from scorefield.training.objectives.sliced import METHODS

CPU = torch.device("cpu")


class Linear(nn.Module):
    """F = A x + b; A and b are parameters."""

    def __init__(self, dimensions):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(dimensions, dimensions, generator=generator).double())
        self.b = nn.Parameter(torch.randn(dimensions, generator=generator).double())

    def forward(self, x, time):
        return x @ self.a.T + self.b


def batch_and_draws(n, dimensions=3, seed=0):
    x = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.7 + 0.3
    return Batch(x), lambda: Draws(n, seed, CPU)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5)], ids=["vp", "ve"])
@pytest.mark.parametrize("parametrization", ["eps", "v", "x0"])
@pytest.mark.parametrize("method", METHODS)
def test_its_mean_is_that_of_denoising_score_matching_less_that_of_the_weight(method, parametrization, sde):
    """The same times and noise, 40,000 examples: the means agree within five standard errors of their difference."""
    n = 40_000
    batch, draws = batch_and_draws(n)
    model = Denoiser(Linear(3), sde, parametrization)
    with torch.no_grad():
        for weighting in ("simple", "likelihood"):
            importance = weighting == "likelihood"
            sliced = SlicedScoreMatching(sde, weighting, importance=importance, method=method, directions=2)
            draw = sliced.draw(batch, draws())
            target = ScoreMatching(sde, weighting, importance=importance).loss(model, batch, draw.noisy)
            difference = sliced.loss(model, batch, draw) + draw.noisy.weight - target
            assert abs(float(difference.mean())) < 5 * float(difference.std()) / n**0.5


@pytest.mark.parametrize("method", ["ssm", "ssm_vr"])
def test_the_mean_over_directions_is_the_exact_loss(method):
    batch, draws = batch_and_draws(4)
    model = Denoiser(Linear(3), VPSDE(), "eps")
    with torch.no_grad():
        draw = SlicedScoreMatching(VPSDE(), method=method, directions=1).draw(batch, draws())
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)[None].expand(4, -1, -1).double()
        every = SlicedScoreMatching(VPSDE(), method=method).loss(model, batch, draw._replace(v=signs))
        exact = SlicedScoreMatching(VPSDE(), method="exact").loss(model, batch, draw)
    torch.testing.assert_close(every, exact, rtol=1e-12, atol=1e-12)


def test_the_exact_loss_is_its_hand_written_form():
    sde, (batch, draws) = VPSDE(), batch_and_draws(5)
    model, objective = Denoiser(Linear(3), sde, "eps"), SlicedScoreMatching(VPSDE(), "likelihood", method="exact")
    draw = objective.draw(batch, draws())
    t, weight, eps, _ = draw.noisy
    x_t = sde.perturb(batch.x, t, eps)
    jacobian = -model.network.a / sde.sigma(t)[:, None, None]      # of the score -(A x + b) / sigma
    trace, score = jacobian.diagonal(dim1=1, dim2=2).sum(1), model.score(x_t, t)
    expected = weight * 2 * sde.sigma(t) ** 2 / 3 * (trace + score.square().sum(1) / 2)
    torch.testing.assert_close(objective.loss(model, batch, draw), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_the_score_of_a_gaussian(method):
    """A linear network, fitted by L-BFGS on 20,000 examples of N(0.3, 0.7^2 I) at one time, against the exact score."""
    sde, n = VPSDE(), 20_000
    batch, draws = batch_and_draws(n, 2)
    model, t = Denoiser(Linear(2), sde, "eps"), torch.full((n,), 0.4, dtype=torch.float64)
    objective = SlicedScoreMatching(sde, method=method, directions=4)
    draw = objective.draw(batch, draws())
    draw = draw._replace(noisy=draw.noisy._replace(t=t, weight=torch.ones_like(t)))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(model, batch, draw).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = GaussianMixture(sde, torch.full((1, 2), 0.3), torch.tensor([0.49]))
    x = sde.perturb(batch.x[:1000], t[:1000], torch.randn(1000, 2, dtype=torch.float64))
    with torch.no_grad():
        score, wanted = model.score(x, 0.4), exact.score(x, 0.4)
    assert float((score - wanted).norm() / wanted.norm()) < 0.03


def test_it_trains_a_network_and_is_chosen_by_its_name():
    model = Denoiser(MLP((2,), 16, 2), VPSDE())
    section = {"objective": "sliced_score_matching", "method": "ssm", "directions": 2, "weighting": "min_snr"}
    objective = build_objective(model, section)
    assert isinstance(objective, SlicedScoreMatching) and objective.directions == 2
    batch, _ = batch_and_draws(8, 2)
    loss = objective.loss(model, Batch(batch.x.float()), objective.draw(Batch(batch.x.float()), Draws(8, 0, CPU)))
    loss.mean().backward()
    assert loss.shape == (8,) and all(bool(p.grad.isfinite().all()) for p in model.parameters())
    for settings, part in (({"method": "sssm"}, "ssm_vr"), ({"directions": 0}, "at least 1")):
        with pytest.raises(ArgumentError, match=part):
            SlicedScoreMatching(VPSDE(), **settings)
