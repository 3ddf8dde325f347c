"""Twisted sequential Monte Carlo against exact posteriors of mixtures."""

import math

import pytest
import torch

from scorefield.guidance import posterior
from scorefield.guidance.operators import Matrix, make_operator
from scorefield.models import FullMixture, GaussianMixture, measured
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import particle_seeds
from scorefield.samplers import make_sampler, prior_sample
from scorefield.samplers.twisted_smc import Cloud, along_main_axis, systematic
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain, FlowSDE

A = torch.tensor([[1.0, 0.2, 0.0]], dtype=torch.float64)
Y = torch.tensor([[0.1]], dtype=torch.float64)
NOISE = 0.2


def two_modes(sde=None):
    """Data of which A x leaves both modes likely; they differ in the other elements."""
    means = torch.tensor([[0.2, 1.0, 0.5], [0.0, -1.0, -0.5]], dtype=torch.float64)
    return GaussianMixture(sde or VPSDE(), means, torch.tensor([0.05, 0.1], dtype=torch.float64), [1.0, 2.0])


def run(model, guided, particles, seed=0, first=0, **options):
    seeds = particle_seeds(seed, guided.measurements, particles, first)
    shape = guided.operator.shape
    sampler = make_sampler("twisted_smc", particles=particles, **options)
    return sampler(guided, prior_sample(model.sde, shape, seeds, dtype=torch.float64), seeds)


@pytest.mark.costly
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 10.0), FlowSDE(), DDPMChain.from_schedule().to_sde()],
                         ids=lambda sde: type(sde).__name__)
def test_modes_and_evidence_of_a_mixture_are_right(sde):
    """With 16 runs of 256 particles beside each other, within 3 standard errors of their mean, or .03 nats and .02."""
    model, runs = two_modes(sde), 16
    exact, log_evidence = measured(model, A, Y[0], NOISE)
    result = run(model, posterior(model, Matrix(A, (3,)), Y.repeat(runs, 1), NOISE), 256, steps=50)
    evidence = result.log_evidence
    assert abs(float(evidence.mean() - log_evidence)) < max(3 * float(evidence.std()) / runs**0.5, 0.03)
    assert 0.5 < float(result.log_evidence_error.mean() / evidence.std()) < 2      # the error that each run states
    upper = (result.x[:, 1] > 0).double().reshape(runs, -1)
    shares = (upper * result.log_weights.exp()).sum(1)
    truth = float((exact.sample(200_000, generator=torch.Generator().manual_seed(0))[:, 1] > 0).double().mean())
    assert abs(float(shares.mean()) - truth) < max(3 * float(shares.std()) / runs**0.5, 0.02)


@pytest.mark.parametrize("method", ["pigdm", "ddnm", "dps:zeta=0.1"])
def test_any_method_is_weighted_to_the_same_posterior(method):
    """Where the twist of TMPD needs 256 particles, those of others need more; they agree within their own errors."""
    model, runs = two_modes(), 8
    _, log_evidence = measured(model, A, Y[0], NOISE)
    evidence = run(model, posterior(model, Matrix(A, (3,)), Y.repeat(runs, 1), NOISE, method), 256, steps=50).log_evidence
    mean = evidence.logsumexp(0) - math.log(runs)      # p(y) itself has no bias
    error = float((evidence - mean).exp().std()) / runs**0.5
    assert abs(float((log_evidence - mean).exp()) - 1) < max(3 * error, 0.05) and error < 0.3


@pytest.mark.parametrize("noise_std", [0.3, 0.0])
def test_mean_and_covariance_of_gaussian_data_are_right(noise_std):
    root = torch.tensor([[0.8, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.4, 0.2, 0.3]], dtype=torch.float64)
    model = FullMixture(VPSDE(), torch.tensor([[0.3, -0.2, 0.1]]), (root @ root.T)[None])
    exact, log_evidence = measured(model, A, Y[0], noise_std)
    result = run(model, posterior(model, Matrix(A, (3,)), Y, noise_std), 4096, steps=50)
    n = float(result.effective_samples)
    mean, covariance = exact.means[0], exact.covariances[0]
    assert n > 2000
    assert bool(((result.mean()[0] - mean).abs() < 4 * (covariance.diagonal() / n).sqrt() + 3e-3).all())
    found = torch.cov((result.x - mean).T, aweights=result.log_weights[0].exp())
    spread = ((covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()) / n).sqrt()
    assert bool(((found - covariance).abs() < 4 * spread + 3e-3).all())
    assert abs(float(result.log_evidence - log_evidence)) < max(3 * float(result.log_evidence_error), 0.02)


def test_the_error_falls_as_particles_grow():
    model, runs = two_modes(), 24
    _, log_evidence = measured(model, A, Y[0], NOISE)
    guided = posterior(model, Matrix(A, (3,)), Y.repeat(runs, 1), NOISE)
    few, more = (float((run(model, guided, n, steps=50).log_evidence - log_evidence).square().mean().sqrt())
                 for n in (8, 96))
    assert more < few / 2


def test_a_particle_depends_on_the_seed_its_measurement_and_its_number_alone():
    model, operator = two_modes(), Matrix(A, (3,))
    y = torch.tensor([[0.1], [-0.6], [0.4]], dtype=torch.float64)
    together = run(model, posterior(model, operator, y, NOISE), 16, steps=20)
    alone = run(model, posterior(model, operator, y[1:2], NOISE), 16, first=1, steps=20)
    torch.testing.assert_close(together.x[16:32], alone.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.log_evidence[1:2], alone.log_evidence, rtol=1e-9, atol=1e-9)
    again = run(model, posterior(model, operator, y[1:2], NOISE), 16, seed=1, first=1, steps=20)
    assert not torch.allclose(again.x, alone.x)


def test_chunks_change_nothing():
    model, operator = two_modes(), Matrix(A, (3,))
    guided = posterior(model, operator, Y.repeat(2, 1), NOISE)
    whole, parts = run(model, guided, 16, steps=12), run(model, guided, 16, steps=12, chunk=5)
    torch.testing.assert_close(parts.x, whole.x)
    torch.testing.assert_close(parts.log_weights, whole.log_weights)
    assert parts.nfe == whole.nfe


@pytest.mark.parametrize("method", ["tmpd", "ddnm"])
def test_known_pixels_are_kept_to_the_bit_without_noise(method):
    model = GaussianMixture(VPSDE(), torch.rand(3, 16, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.01))
    operator, y = make_operator("mask:half=right", (1, 4, 4)), torch.rand(2, 8, generator=torch.Generator().manual_seed(1))
    x = run(model, posterior(model, operator, y, 0.0, method), 8, steps=10).x
    assert torch.equal(operator(x), y.repeat_interleave(8, 0).to(x))


def test_the_last_step_may_be_left_out():
    model = two_modes()
    guided = posterior(model, Matrix(A, (3,)), Y, NOISE)
    noisy, clean = run(model, guided, 64, steps=30, denoise=False), run(model, guided, 64, steps=30)
    assert noisy.nfe == clean.nfe and not torch.equal(noisy.x, clean.x)
    assert abs(float(noisy.log_evidence - clean.log_evidence)) < 0.02


def test_systematic_resampling_takes_each_particle_its_share_of_times():
    weights = torch.tensor([[0.05, 0.6, 0.0, 0.35], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    for u in (0.0, 0.3, 0.99):
        chosen = systematic(weights, torch.full((2, 1), u, dtype=torch.float64), 40)
        counts = torch.stack([row.bincount(minlength=4) for row in chosen])
        assert bool(((counts - 40 * weights).abs() < 1 + 1e-9).all()) and int(counts[0, 2]) == 0


def test_resampling_along_a_line_keeps_the_share_of_every_part_of_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 500, 3, dtype=torch.float64, generator=generator) * torch.tensor([0.3, 3.0, 0.3])
    log_weights = torch.randn(2, 500, dtype=torch.float64, generator=generator)
    place = along_main_axis(x, log_weights.softmax(1))
    for found, second in zip(place, x[:, :, 1], strict=True):
        assert float(torch.corrcoef(torch.stack([found, second]))[0, 1].abs()) > 0.99
    cloud = Cloud(log_weights.clone(), torch.zeros(2, dtype=torch.float64), torch.arange(500).repeat(2, 1))
    chosen = cloud.resample(torch.tensor([True, True]), torch.full((2, 1), 0.5, dtype=torch.float64), place)
    upper = (log_weights.softmax(1) * (place > 0)).sum(1)
    assert bool(((place.gather(1, chosen) > 0).double().mean(1) - upper).abs().max() <= 1 / 500)


def test_resampling_keeps_the_evidence_and_the_lines_of_descent():
    cloud = Cloud(torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64),
                  torch.arange(2).repeat(2, 1))
    ancestors = cloud.resample(torch.tensor([True, False]), torch.full((2, 1), 0.9, dtype=torch.float64),
                               torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert ancestors.tolist() == [[1, 1], [0, 1]] and cloud.eve.tolist() == [[1, 1], [0, 1]]
    assert cloud.log_evidence.tolist() == pytest.approx([math.log((1 + math.e**2) / 2), 0])
    assert cloud.error().tolist() == pytest.approx([1.0, 0.0])


def test_results_are_given_as_answers_mean_and_deviation():
    model = two_modes()
    result = run(model, posterior(model, Matrix(A, (3,)), Y.repeat(2, 1), NOISE), 64, steps=20)
    chosen = result.chosen(1000, seed=1)
    assert chosen.shape == (2, 1000, 3) and torch.equal(chosen, result.chosen(1000, seed=1))
    torch.testing.assert_close(chosen.mean(1), result.mean(), rtol=0, atol=0.02)
    torch.testing.assert_close(chosen.std(1, correction=0), result.std(), rtol=0, atol=0.02)
    torch.testing.assert_close(result.log_weights.logsumexp(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_what_cannot_be_is_refused():
    model = two_modes()
    guided, x = posterior(model, Matrix(A, (3,)), Y, NOISE), torch.zeros(8, 3)
    sampler, seeds = make_sampler("twisted_smc", particles=8), particle_seeds(0, 1, 8)
    with pytest.raises(ArgumentError, match="given a measurement"):
        sampler(model, x, seeds)
    with pytest.raises(ArgumentError, match="need a batch of 8, got 4"):
        sampler(guided, x[:4], seeds[:4])
    with pytest.raises(ValueError, match="pass seeds"):
        sampler(guided, x)
    with pytest.raises(ArgumentError, match="no gradients"):
        sampler(guided, x, seeds, gradients=True)
    for option, value in (("particles", 0), ("resample_below", 2.0), ("chunk", 0), ("variance", "analytic")):
        with pytest.raises(ArgumentError, match=option):
            make_sampler("twisted_smc", **{option: value})
