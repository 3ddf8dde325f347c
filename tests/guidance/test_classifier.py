"""Classifier guidance against the exact classifier of labelled mixtures, and the paper's two algorithms by hand."""

import math

import pytest
import torch

from scorefield.guidance import classifier_free, classifier_guided, threshold
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.networks.classifier import Classifier
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain

KINDS = ("score", "eps", "x0", "v", "flow")


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_classifier_at_scale_one_gives_the_score_given_the_label(mixture, kind, x, t):
    for label in (1, torch.tensor([0, 1, 0, 1, 1, 0])):
        exact = mixture.given(label=label).predict(x, t, kind)
        close(classifier_guided(mixture, mixture.class_log_prob, label=label).predict(x, t, kind), exact, 1e-10)

    def bound(z, time):
        return mixture.class_log_prob(z, time)[:, 1]

    close(classifier_guided(mixture, bound).predict(x, t, kind), mixture.given(label=1).predict(x, t, kind), 1e-10)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_the_gradient_is_added_by_the_scale(mixture, scale, x, t):
    none, told = mixture.score(x, t), mixture.given(label=0).score(x, t)
    guided = classifier_guided(mixture, mixture.class_log_prob, scale, label=0)
    close(guided.score(x, t), none + scale * (told - none), 1e-10)
    assert not guided.score(x, t).requires_grad and guided.evaluations == guided.evaluations_at(t) == 2


def test_scale_zero_is_the_model_to_the_bit_and_costs_what_it_does(mixture, x, t):
    guided = classifier_guided(mixture, mixture.class_log_prob, 0.0, label=0)
    for kind in KINDS:
        assert torch.equal(guided.predict(x, t, kind), mixture.predict(x, t, kind))
    assert guided.evaluations == 1 and torch.equal(guided.posterior(x, t).variance, mixture.posterior(x, t).variance)


def test_outside_of_the_interval_the_model_is_unguided_to_the_bit(mixture, x, t):
    limited = classifier_guided(mixture, mixture.class_log_prob, 2.0, 1, (0.2, 0.7))
    whole = classifier_guided(mixture, mixture.class_log_prob, 2.0, 1)
    within = (t >= 0.2) & (t <= 0.7)
    for kind in KINDS:
        mixed = limited.predict(x, t, kind)
        assert torch.equal(mixed[~within], mixture.predict(x, t, kind)[~within])
        close(mixed[within], whole.predict(x, t, kind)[within])
        assert torch.equal(limited.predict(x, 0.1, kind), mixture.predict(x, 0.1, kind))
        assert torch.equal(limited.predict(x, 0.7, kind), whole.predict(x, 0.7, kind))
    assert [limited.evaluations_at(time) for time in (0.1, 0.2, t)] == [1, 2, 2]


def test_logits_of_a_network_guide_by_their_log_softmax_and_its_parameters_collect_nothing(x):
    """A linear classifier has the gradient w_y - sum_k p_k w_k, with bf16 arithmetic too, to its rounding."""
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 3, dtype=torch.float32)

        def forward(self, z, time):
            return self.layer(z)

    network, label = Linear(), torch.tensor([0, 1, 2, 2, 1, 0])
    model = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    weight = network.layer.weight.detach().double()
    p = (x @ weight.T + network.layer.bias.detach().double()).softmax(1)
    expected = 2 * (weight[label] - p @ weight)
    for autocast, tolerance in ((None, 1e-5), (torch.bfloat16, 0.05)):
        classifier = Denoiser(network, model.sde)
        classifier.autocast = autocast
        guided = classifier_guided(model, classifier, 2.0, label)
        found = guided.score(x, 0.5) - model.score(x, 0.5)
        assert found.dtype == torch.float64
        close(found, expected, tolerance)
        with torch.inference_mode():
            close(guided.score(x + 0, 0.5) - model.score(x, 0.5), expected, tolerance)
    assert all(p.grad is None for p in network.parameters())


def test_gradients_through_a_guided_sampler_are_those_of_finite_differences(x):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2)).double()
    model = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    for learns in (True, False):
        network.requires_grad_(learns)
        guided = classifier_guided(model, lambda z, time: network(z), 3.0, label=1)
        for name, options in (("auto", {}), ("ddim", {}), ("ancestral", {"mean_shift": True})):
            sampler = make_sampler(name, steps=4, **options)
            start = x.clone().requires_grad_()
            out = sampler(guided, start, range(6), gradients=True).x
            out.square().sum().backward()
            towards = torch.randn_like(x)
            ends = [sampler(guided, x + h * towards, range(6)).x.square().sum() for h in (1e-5, -1e-5)]
            assert float((start.grad * towards).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5)
            if learns:      # by the parameters too, also where the start has no gradients
                network.zero_grad()
                sampler(guided, x, range(6), gradients=True).x.square().sum().backward()
                weight = network[0].weight
                with torch.no_grad():
                    ends = []
                    for h in (1e-5, -2e-5):
                        weight[0, 0] += h
                        ends.append(sampler(guided, x, range(6)).x.square().sum())
                    weight[0, 0] += 1e-5
                assert float(weight.grad[0, 0]) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)


# ---- the paper's algorithms ----------------------------------------------------------------------------------------------

STEPS, SCALE = 50, 2.5


@pytest.fixture
def chain_problem():
    chain = DDPMChain.from_schedule("linear", STEPS)
    mixture = GaussianMixture(chain.to_sde(), torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                              torch.tensor([0.04, 0.1, 0.02]), labels=torch.tensor([0, 1, 1]))
    x_T = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return chain.betas, mixture, x_T, torch.tensor([0, 1, 0, 1, 1, 0])


def gradient(mixture, x, t, label):
    z = x.clone().requires_grad_()
    return torch.autograd.grad(mixture.class_log_prob(z, t)[torch.arange(len(x)), label].sum(), z)[0]


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_mean_shift_is_algorithm_1(chain_problem, variance):
    """x_(i-1) ~ N(mu + s Sigma grad log p(y given x_i), Sigma), mu = (x - beta / sqrt(1 - bar) eps) / sqrt(1 - beta)."""
    betas, mixture, x, label = chain_problem
    bars, noise, expected = (1 - betas).cumprod(0), NoiseStream(range(6)), x
    for i in range(STEPS - 1, 0, -1):
        t = torch.tensor((i + 1) / STEPS, dtype=torch.float64)
        sigma = betas[i] if variance == "beta" else betas[i] * (1 - bars[i - 1]) / (1 - bars[i])
        mu = (expected - betas[i] / (1 - bars[i]).sqrt() * mixture.eps(expected, t)) / (1 - betas[i]).sqrt()
        mean = mu + SCALE * sigma * gradient(mixture, expected, t, label)
        expected = mean + sigma.sqrt() * noise.normal(expected)
    guided = classifier_guided(mixture, mixture.class_log_prob, SCALE, label)
    sampler = make_sampler("ancestral", variance=variance, mean_shift=True, steps=STEPS - 1, grid="strided")
    result = sampler(guided, x, range(6), predictions=True)
    close(result.x, expected)
    assert result.nfe == 2 * (STEPS - 1) and len(result.predictions) == STEPS - 1
    other = make_sampler("ancestral", variance=variance, steps=STEPS - 1, grid="strided")(guided, x, range(6))
    assert float((other.x - expected).abs().max()) > 1e-3      # guiding the score has another weight


def test_the_deterministic_sampler_is_algorithm_2(chain_problem):
    """e = eps - sqrt(1 - bar) s grad log p(y given x);  x' = sqrt(bar') (x - sqrt(1-bar) e)/sqrt(bar) + sqrt(1-bar') e."""
    betas, mixture, x, label = chain_problem
    bars, expected = (1 - betas).cumprod(0), x
    for i in range(STEPS - 1, 0, -1):
        t, now, then = torch.tensor((i + 1) / STEPS, dtype=torch.float64), bars[i], bars[i - 1]
        eps = mixture.eps(expected, t) - (1 - now).sqrt() * SCALE * gradient(mixture, expected, t, label)
        expected = then.sqrt() * (expected - (1 - now).sqrt() * eps) / now.sqrt() + (1 - then).sqrt() * eps
    guided = classifier_guided(mixture, mixture.class_log_prob, SCALE, label)
    result = make_sampler("ddim", steps=STEPS - 1, grid="strided")(guided, x)
    close(result.x, expected)
    assert result.nfe == 2 * (STEPS - 1)


def test_mean_shift_takes_apart_what_is_composed_and_counts_it(chain_problem, monkeypatch):
    _, mixture, x, _ = chain_problem
    inner = classifier_guided(mixture, mixture.class_log_prob, 1.5, 0, (0.3, 0.8))
    twice = classifier_guided(inner, lambda z, t: -z.square().sum(1), 0.5)
    t = torch.tensor(0.5, dtype=torch.float64)
    parts = twice.mean_guidance()
    assert parts.unguided is mixture
    close(parts.gradient(x, t), inner.gradient(x, t) - x)
    assert [parts.evaluations_at(time) for time in (0.5, 0.9)] == [2, 1]
    parts = threshold(classifier_free(inner, 3.0, label=1), low=-0.1, high=0.1).mean_guidance()
    close(parts.unguided.x0(x, t), classifier_free(mixture, 3.0, label=1).x0(x, t).clamp(-0.1, 0.1))
    close(parts.gradient(x, t), inner.gradient(x, t))
    sampler = make_sampler("ancestral", mean_shift=True, steps=20, denoise=True)
    result, calls, predict = sampler(inner, x, range(6)), [], GaussianMixture.predict
    inside = sum(0.3 <= float(time) <= 0.8 for time in result.times)
    monkeypatch.setattr(GaussianMixture, "predict", lambda self, *args: calls.append(1) or predict(self, *args))
    assert sampler(inner, x, range(6)).nfe == result.nfe == len(calls) + inside == 21 + inside


def test_mean_shift_needs_a_classifier(chain_problem):
    _, mixture, x, _ = chain_problem
    for model in (mixture, mixture.given(label=1), classifier_free(mixture, 2.0, label=1), threshold(mixture)):
        with pytest.raises(ArgumentError, match="the model has none") as caught:
            make_sampler("ancestral", mean_shift=True, steps=3)(model, x, range(6))
        assert caught.value.arguments == ("mean_shift",)


@pytest.mark.parametrize("way", ["free", "classifier", "mean_shift"])
def test_samples_given_a_label_have_the_mean_and_the_covariance_of_its_component(way):
    """n = 2000: each mean lies within 4.5 std / sqrt(n) of the exact one, each covariance within 4.5 var sqrt(2 / n), a
    confidence of 1 - 7e-6 for each number; .01 more is for the steps and for what is left of the noise."""
    n, mean, variance = 2000, torch.tensor([-1.0, 0.5]), 0.1
    means, variances = torch.stack([torch.tensor([1.0, 0.0]), mean]), torch.tensor([0.04, variance])
    model = GaussianMixture(VPSDE(), means, variances, labels=[0, 1])
    guided = (classifier_free(model, 1.0, label=1) if way == "free" else
              classifier_guided(model, model.class_log_prob, label=1))
    shift = way == "mean_shift"
    sampler = make_sampler("ancestral", steps=300, mean_shift=True) if shift else make_sampler("auto", steps=15)
    x = sampler(guided, prior_sample(model.sde, (2,), range(n), dtype=torch.float64), range(n)).x
    assert float((x.mean(0) - mean).abs().max()) < 4.5 * math.sqrt(variance / n) + 0.01
    assert float((x.T.cov() - variance * torch.eye(2)).abs().max()) < 4.5 * variance * math.sqrt(2 / n) + 0.01


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "match", "argument"), [
    ({"scale": math.nan}, "scale must be finite", "scale"), ({"label": 1.5}, "label must be an integer", "label"),
    ({"interval": (0.5, 0.1)}, "0 <= LO < HI", "interval"), ({"classifier": 3}, "function of", "classifier"),
    ({"classifier": Denoiser(Classifier(8, 1, classes=3, width=8, multipliers=(1,), num_blocks=1), VPSDE()), "label": 3},
     "labels go from 0 to 2, got 3", "label"),
    ({"classifier": Denoiser(Classifier(8, 1, classes=3, width=8, multipliers=(1,), num_blocks=1), VPSDE()), "label": None},
     "knows 3 classes: give the label", "label"),
    ({"classifier": Denoiser(MLP((2,)), VESDE())}, "trained on data under VESDE", "classifier"),
    ({"classifier": Denoiser(MLP((2,)), VPSDE(beta_max=19.0))}, "trained on data under VPSDE.*19", "classifier"),
    ({"classifier": GaussianMixture(VESDE(), torch.eye(2), torch.ones(2), labels=[0, 1]).class_log_prob},
     "trained on data under VESDE", "classifier"),
])
def test_what_cannot_guide_is_refused_at_once(change, match, argument):
    model = GaussianMixture(VPSDE(), torch.eye(2), torch.ones(2), labels=[0, 1])
    with pytest.raises(ArgumentError, match=match) as caught:
        classifier_guided(**{"model": model, "classifier": model.class_log_prob, "label": 1} | change)
    assert caught.value.arguments == (argument,)


@pytest.mark.parametrize(("classifier", "label", "match", "argument"), [
    (lambda x, t: torch.zeros(len(x), 2), 1, "cannot be differentiated", "classifier"),
    (lambda x, t: x.detach() * torch.ones(1, requires_grad=True), 1, "cannot be differentiated", "classifier"),
    (lambda x, t: x, 2, "labels go from 0 to 1, got 2", "label"),
    (lambda x, t: x, None, "give a label", "label"), (lambda x, t: x.sum(), None, "must return shape", "classifier"),
    (lambda x, t: x.sum(1), 1, r"must return shape \(batch, classes\)", "classifier"),
    (lambda x, t: None, 1, "NoneType", "classifier"), (lambda x, t: x, torch.tensor([0, 1]), "batch of 2", "label"),
    (torch.nn.Bilinear(3, 3, 2), 1, r"events of shape \(2,\) do not fit", "classifier"),
])
def test_what_cannot_guide_is_refused_by_the_first_evaluation(classifier, label, match, argument):
    model = GaussianMixture(VPSDE(), torch.eye(2), torch.ones(2))
    guided = classifier_guided(model, classifier, label=label)
    with pytest.raises(ArgumentError, match=match) as caught:
        make_sampler("auto")(guided, torch.zeros(3, 2))
    assert caught.value.arguments == (argument,)
