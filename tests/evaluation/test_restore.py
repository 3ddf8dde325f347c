"""Restoring, against exact posteriors of Gaussians and mixtures."""

import dataclasses

import pytest
import torch

from scorefield.data.degradations import LowRes
from scorefield.evaluation.restore import LearnedMeasured, Measured, log_posterior, restore, with_noise
from scorefield.guidance.operators import make_operator
from scorefield.models import FullMixture, measured
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE

EVENT = (1, 2, 4)
NOISE = 0.2


def prior(components=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(components, 8, 8, generator=generator, dtype=torch.float64) * 0.3
    means = torch.randn(components, 8, generator=generator, dtype=torch.float64) * 0.5
    return FullMixture(VPSDE(), means, root @ root.mT + 0.02 * torch.eye(8, dtype=torch.float64))


@pytest.fixture
def problem():
    operator = make_operator("mask:half=right", EVENT)
    truth = prior().sample(3, generator=torch.Generator().manual_seed(5)).reshape(3, *EVENT).float()
    return Measured(operator, with_noise(operator(truth), NOISE, seed=1), NOISE)


def exact(model, problem, m):
    matrix = torch.eye(8)[problem.operator.places]
    return measured(model, matrix, problem.y[m], NOISE)


def smc(**options):
    return make_sampler("twisted_smc", **{"particles": 256, "steps": 40, **options})


def test_mean_spread_and_evidence_of_gaussian_data_are_those_of_the_exact_posterior(problem):
    model = prior()
    found = restore(model, problem, smc(particles=1024, steps=60), samples=64, batch_size=3000)
    assert found.x.shape == (3, 64, *EVENT)
    for m in range(3):
        law, log_evidence = exact(model, problem, m)
        std = law.covariances[0].diagonal().sqrt().reshape(EVENT)
        assert float(((found.mean[m] - law.means[0].reshape(EVENT)) / std).abs().max()) < 0.25
        torch.testing.assert_close(found.std[m].double(), std, rtol=0.2, atol=0)
        error = max(float(found.log_evidence_error[m]), 0.02)
        assert abs(float(found.log_evidence[m] - log_evidence)) < 4 * error
        assert float(found.x[m].double().std(0).div(std).log().abs().mean()) < 0.3      # the answers are spread as widely


def test_an_answer_depends_on_its_measurement_and_its_number_alone(problem):
    model = prior(2)
    for sampler in (smc(particles=16, steps=8), make_sampler("euler_maruyama", steps=20)):
        whole = restore(model, problem, sampler, "pigdm", samples=5, seed=3)
        parts = restore(model, problem, sampler, "pigdm", samples=5, seed=3, batch_size=7)
        first = dataclasses.replace(problem, y=problem.y[:1])
        alone = restore(model, first, sampler, "pigdm", samples=5, seed=3)
        torch.testing.assert_close(parts.x, whole.x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.x[0], whole.x[0], atol=1e-4, rtol=1e-4)
        other = restore(model, problem, sampler, "pigdm", samples=5, seed=4)
        assert not torch.allclose(other.x, whole.x, atol=1e-2)


@pytest.mark.parametrize("name", ["twisted_smc", "ddim"])
def test_known_elements_stay_to_the_bit_without_noise(name):
    operator = make_operator("mask:half=right", EVENT)
    y = operator(prior().sample(2, generator=torch.Generator().manual_seed(5)).reshape(2, *EVENT).float())
    sampler = smc(particles=32, steps=8) if name == "twisted_smc" else make_sampler(name, steps=8)
    found = restore(prior(), Measured(operator, y, 0.0), sampler, "pigdm", samples=4)
    for i in range(4):
        assert torch.equal(operator(found.x[:, i]), y)
    assert torch.equal(operator(found.mean), y)


def test_figures_are_of_the_answers_of_their_mean_and_of_the_pseudo_inverse(problem):
    truth = prior().sample(3, generator=torch.Generator().manual_seed(5)).reshape(3, *EVENT).float()
    found = restore(prior(), problem, make_sampler("ddim", steps=20), "pigdm", samples=4)
    figures = found.figures(problem, truth, lambda x: x / 4 + 0.5)
    unit = {name: (x / 4 + 0.5).clamp(0, 1).double() for name, x in
            {"truth": truth, "mean": found.mean, "x": found.x, "simple": problem.operator.pseudo_inverse(problem.y)}.items()}
    of_mean = -10 * (unit["mean"] - unit["truth"]).square().flatten(1).mean(1).log10()
    of_each = -10 * (unit["x"] - unit["truth"][:, None]).square().flatten(2).mean(2).log10()
    assert figures["psnr_mean"] == pytest.approx(of_mean.tolist())
    assert figures["psnr"] == pytest.approx(of_each.mean(1).tolist())
    simple = -10 * (unit["simple"] - unit["truth"]).square().flatten(1).mean(1).log10()
    assert figures["psnr_simple"] == pytest.approx(simple.tolist())
    residual = torch.stack([(problem.operator(found.x[:, i]) - problem.y).square().mean(1) for i in range(4)], 1).mean(1)
    assert figures["residual"] == pytest.approx(residual.sqrt().tolist(), rel=1e-4)
    assert {"ssim", "ssim_mean", "ssim_simple"} <= set(figures)


def test_the_log_posterior_is_that_of_bayes_rule_up_to_the_evidence(problem):
    model, x = prior(2), prior(2).sample(3, generator=torch.Generator().manual_seed(8)).reshape(3, *EVENT)
    exactly = dataclasses.replace(problem, y=problem.y.double())
    found = log_posterior(model, exactly, x, divergence="exact", rtol=1e-8, atol=1e-8)
    for m in range(3):
        law, log_evidence = exact(model, exactly, m)
        expected = law.log_prob(x[m:m + 1], 0.0) + log_evidence
        assert float(found[m]) == pytest.approx(float(expected), abs=0.05)      # the prior's own error at t_max
    with pytest.raises(ArgumentError, match="where a measurement has noise"):
        log_posterior(model, dataclasses.replace(problem, noise_std=0.0), x)


def test_the_noise_of_a_measurement_is_that_of_its_number():
    y = torch.zeros(500, 20)
    noisy = with_noise(y, 0.1, seed=2)
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.03)
    assert torch.equal(with_noise(y[:3], 0.1, seed=2), noisy[:3]) and torch.equal(with_noise(y, 0.0), y)


def test_a_learned_degradation_measures_as_it_was_learned():
    rule = LowRes("mask:box=0.5", (1, 8, 8), 17)
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    problem = LearnedMeasured(rule, rule.of_pictures((x + 1) / 2, [0, 1, 2, 3]))
    torch.testing.assert_close(problem.measure(x), problem.y)
    assert problem.simple().shape == x.shape


def test_what_cannot_be_restored_is_refused(problem):
    with pytest.raises(ArgumentError, match="samples must be at least 1"):
        restore(prior(), problem, smc(), samples=0)
    with pytest.raises(ArgumentError, match="unknown method"):
        restore(prior(), problem, smc(), "guess")
