"""Guidances of guidances under every sampler, and likelihoods, which a guided model does not have."""

import pytest
import torch

from scorefield.guidance import classifier_free, classifier_guided, threshold
from scorefield.likelihood import chain_elbo, elbo, log_prob
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.score_model import check_density
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample
from scorefield.sde_lib import VPSDE

FAST = {name: {"steps": 8} for name in SAMPLERS} | {
    "ode": {"rtol": 1e-3, "atol": 1e-3}, "torchsde": {"steps": 4}, "langevin": {"steps": 4}}
VARIED = [*FAST.items(), ("ancestral", {"steps": 8, "mean_shift": True}), ("ancestral", {"steps": 8, "variance": "beta"}),
          ("ddim", {"steps": 8, "eta": 1.0}), ("edm", {"steps": 5, "churn": 3.0}),
          ("dpm_solver++", {"steps": 8, "method": "sde"})]
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


def mixture():
    means = torch.tensor([[0.8, 0.0], [-0.6, 0.5], [0.0, -0.9]])
    return GaussianMixture(VPSDE(), means, torch.tensor([0.04, 0.1, 0.02]), labels=[0, 1, 2])


def network():
    torch.manual_seed(0)
    net = MLP((2,), width=8, layers=1, classes=3)
    for parameter in net.parameters():      # the last layers start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(net, VPSDE(), label_dropout=True).eval()


def composed(model, labels):
    """A classifier on thresholded classifier-free guidance, with intervals, thresholded again."""
    exact = mixture()
    free = threshold(classifier_free(model, 2.0, (0.1, 0.9), label=labels), "dynamic", 0.9)
    return threshold(classifier_guided(free, exact.class_log_prob, 1.5, labels, (0.05, 0.95)))


@pytest.mark.parametrize("make", [mixture, network])
@pytest.mark.parametrize(("name", "options"), VARIED, ids=str)
def test_sample_i_of_a_composition_depends_on_its_seed_alone(name, options, make):
    model, sampler = make(), make_sampler(name, **options)
    x_T = prior_sample(model.sde, (2,), range(6), dtype=torch.float64)
    together = sampler(composed(model, LABELS), x_T, range(6))
    assert bool(together.x.isfinite().all()) and float(together.x.abs().max()) <= 1
    tolerance = 0.01 if name == "ode" else 1e-9 if make is mixture else 1e-4      # adaptive steps; float32
    for i in (0, 3):
        alone = sampler(composed(model, LABELS[i]), x_T[i:i + 1], [i])
        torch.testing.assert_close(together.x[i:i + 1], alone.x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "options"), [("auto", {}), ("heun", {}), ("euler_maruyama", {}), ("ancestral", {}),
                                               ("ancestral", {"mean_shift": True})], ids=str)
def test_gradients_go_through_a_composition(name, options):
    model, sampler = composed(mixture(), LABELS), make_sampler(name, steps=5, **options)
    x = prior_sample(model.sde, (2,), range(6), dtype=torch.float64).requires_grad_()
    out = sampler(model, x, range(6), gradients=True).x
    assert torch.equal(out.detach(), sampler(model, x, range(6)).x)
    slope, = torch.autograd.grad(out.sum(), x)
    towards = torch.randn_like(x)
    ends = [sampler(model, x + h * towards, range(6)).x.sum() for h in (1e-6, -1e-6)]
    assert float((slope * towards).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_order_of_a_composition_matters_and_given_passes_through():
    model, t = mixture(), torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = classifier_free(threshold(model, low=-0.5, high=0.5), 3.0, label=0)
    outside = threshold(classifier_free(model, 3.0, label=0), low=-0.5, high=0.5)
    limited = [model.given(label=label).x0(x, t).clamp(-0.5, 0.5) for label in (None, 0)]
    torch.testing.assert_close(inside.x0(x, t), limited[0] + 3 * (limited[1] - limited[0]), rtol=1e-12, atol=1e-12)
    assert float(inside.x0(x, t).abs().max()) > 0.5 >= float(outside.x0(x, t).abs().max())
    assert float(inside.project(5 * x).abs().max()) == float(outside.project(5 * x).abs().max()) == 0.5
    guided = classifier_guided(model, model.class_log_prob, 2.0, label=1)
    free = classifier_free(guided, 1.0, label=2)
    expected = model.given(label=2).score(x, t) + guided.score(x, t) - model.score(x, t)
    torch.testing.assert_close(free.score(x, t), expected, rtol=1e-12, atol=1e-12)


# ---- likelihoods ---------------------------------------------------------------------------------------------------------

MODEL = mixture()
WITHOUT = {
    "free": classifier_free(MODEL, 2.0, label=1), "free 0 in an interval": classifier_free(MODEL, 0.0, (0.1, 0.5), label=1),
    "classifier": classifier_guided(MODEL, MODEL.class_log_prob, label=1), "threshold": threshold(MODEL),
    "free of a threshold": classifier_free(threshold(MODEL), 1.0, label=1),
    "classifier 0 of free": classifier_guided(classifier_free(MODEL, 2.0, label=1), MODEL.class_log_prob, 0.0, 1),
}
WITH = {
    "mixture": (MODEL, MODEL), "label": (MODEL.given(label=1), MODEL.given(label=1)),
    "free 1": (classifier_free(MODEL, 1.0, (0.1, 0.5), label=1), MODEL.given(label=1)),
    "free 0": (classifier_free(MODEL, 0.0, label=1), MODEL), "network": (network(), network()),
    "classifier 0": (classifier_guided(MODEL, MODEL.class_log_prob, 0.0, 1), MODEL),
}
LIKELIHOODS = {
    "dopri5": lambda model, x: log_prob(model, x, rtol=1e-2, atol=1e-2),
    "exponential": lambda model, x: log_prob(model, x, method="exponential", steps=8),
    "elbo": lambda model, x: elbo(model, x, draws=2, seeds=range(len(x))),
    "chain_elbo": lambda model, x: chain_elbo(model, x, None, steps=3, seeds=range(len(x))),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_a_density_has_no_likelihood(name, likelihood):
    with pytest.raises(ArgumentError, match="no likelihood: .*density") as caught:
        LIKELIHOODS[likelihood](WITHOUT[name], torch.zeros(2, 2))
    assert caught.value.arguments == ("model",) and "\n" not in str(caught.value)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", WITH)
def test_a_guidance_that_changes_nothing_has_the_likelihood_of_its_model(name, likelihood):
    model, same = WITH[name]
    check_density(model)
    result, expected = (LIKELIHOODS[likelihood](m, torch.zeros(2, 2)) for m in (model, same))
    assert torch.equal(result.value, expected.value) and result.nfe == expected.nfe
