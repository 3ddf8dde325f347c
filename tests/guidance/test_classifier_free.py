"""Classifier-free guidance on labelled mixtures, whose scores with and without a label are known exactly."""

import math

import pytest
import torch

from scorefield.guidance import classifier_free
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE

LABELS = torch.tensor([0, 1, 1])
X = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.05, 1, 6, dtype=torch.float64)


@pytest.fixture(params=[VPSDE(), VESDE(0.01, 5.0)], ids=repr)
def mixture(request):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]])
    variances, weights = torch.tensor([0.04, 0.1, 0.02]), torch.tensor([1.0, 2.0, 1.5])
    return GaussianMixture(request.param, means, variances, weights, labels=LABELS)


@pytest.mark.parametrize("kind", ["score", "eps", "x0", "v", "flow"])
def test_scale_one_is_the_model_with_the_label_and_zero_the_one_without_to_the_bit(mixture, kind):
    for scale, exact in ((1.0, mixture.given(label=1)), (0.0, mixture)):
        assert torch.equal(classifier_free(mixture, scale, label=1).predict(X, T, kind), exact.predict(X, T, kind))


@pytest.mark.parametrize("kind", ["score", "eps", "x0", "v", "flow"])
@pytest.mark.parametrize("scale", [-0.5, 0.5, 2.0, 7.5])
def test_other_scales_go_on_along_the_line_through_both(mixture, kind, scale):
    none, label = mixture.predict(X, T, kind), mixture.given(label=1).predict(X, T, kind)
    guided = classifier_free(mixture, scale, label=1).predict(X, T, kind)
    torch.testing.assert_close(guided, none + scale * (label - none), rtol=1e-12, atol=1e-12)


def test_each_sample_of_a_batch_is_guided_to_its_own_label(mixture):
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    together = classifier_free(mixture, 2.0, label=labels).score(X, T)
    for i, label in enumerate(labels.tolist()):
        alone = classifier_free(mixture, 2.0, label=label).score(X[i:i + 1], T[i:i + 1])
        torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "calls"), [(0.0, 1), (1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("sampler", ["auto", "euler_maruyama", "heun", "ode"])
def test_a_guided_sampler_counts_every_call_of_the_network(scale, calls, sampler):
    called = []
    network = MLP((2,), width=8, layers=1, classes=3)
    network.register_forward_hook(lambda *_: called.append(1))
    model = Denoiser(network, VPSDE(), label_dropout=True)
    options = {"rtol": 1e-2, "atol": 1e-2} if sampler == "ode" else {"steps": 6}
    guided = classifier_free(model, scale, label=2)
    result = make_sampler(sampler, **options)(guided, prior_sample(model.sde, (2,), range(3)), range(3))
    assert guided.evaluations == calls and result.nfe == len(called)



@pytest.mark.parametrize(("scale", "condition", "match"), [
    (math.inf, {"label": 1}, "scale must be finite, got inf"), (2.0, {}, "guidance needs a condition"),
    (2.0, {"text": 1}, "cannot be given 'text'"), (2.0, {"label": 7}, "labels go from 0 to 1, got 7"),
])
def test_what_cannot_guide_is_refused(mixture, scale, condition, match):
    with pytest.raises(ArgumentError, match=match):
        classifier_free(mixture, scale, **condition)


def test_a_model_that_never_saw_no_label_cannot_be_guided():
    with pytest.raises(ArgumentError, match="trained without label dropout"):
        classifier_free(Denoiser(MLP((2,), width=8, classes=3), VPSDE()), 2.0, label=1)
