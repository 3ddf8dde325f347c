"""The learned log-SNR: the bound knows its ends alone, and training brings the schedule to the one of least variance."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import newest_sound
from scorefield.cli.main import main
from scorefield.likelihood import elbo, log_prob
from scorefield.models import Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE, LearnedVPSDE
from scorefield.training import Batch, Draws, LearnedSchedule, ScoreMatching, build_objective
from scorefield.training.objectives.learned_schedule import log_slope_at_fixed_gamma
from tests.helpers import ROOT, SMALL, train_briefly

CPU, D, STD = torch.device("cpu"), 8, 0.5
MEANS, VARIANCES = torch.tensor([[1.0] * D, [-1.0] * D]), torch.tensor([0.2, 0.1])


def bent(seed=0, **ends):
    """A process with a schedule far from the first one."""
    sde = LearnedVPSDE(**ends)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sde.schedule.height.add_(1 + torch.randn(sde.hidden, generator=generator))
    return sde


def test_the_bound_depends_on_the_ends_of_the_schedule_alone():
    """Equation 18 of Kingma et al.: by draws at the same lambda the same number, and uniform in t the same mean."""
    x = GaussianMixture(VPSDE(), MEANS, VARIANCES).sample(40)
    sdes = [LearnedVPSDE(), bent(0), bent(1)]
    assert max(abs(float(sdes[0].half_log_snr(0.5) - sde.half_log_snr(0.5))) for sde in sdes[1:]) > 0.3
    bounds = [elbo(GaussianMixture(sde, MEANS, VARIANCES), x.double(), draws=32, seeds=range(40)).value for sde in sdes]
    for bound in bounds[1:]:
        torch.testing.assert_close(bound, bounds[0], rtol=0, atol=1e-6)
    other = elbo(GaussianMixture(LearnedVPSDE(lambda_max=4.0), MEANS, VARIANCES), x.double(), 32, range(40)).value
    assert float((other - bounds[0]).abs().max()) > 0.01

    means, errors = [], []
    for sde in sdes:
        denoiser = exact(sde)
        batch, draws = Batch(STD * torch.randn(8000, D, generator=torch.Generator().manual_seed(3))), Draws(8000, 0, CPU)
        objective = LearnedSchedule(sde, label_dropout=0.0)
        with torch.no_grad():
            loss = objective.loss(denoiser, batch, objective.draw(batch, draws))
        means.append(float(loss.mean()))
        errors.append(float(loss.std()) / len(loss) ** 0.5)
    assert max(means) - min(means) < 4 * math.hypot(*errors) < 0.1 * means[0]


class Exact(nn.Module):
    """The exact eps of N(0, STD^2 I) in terms of lambda, as a network."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, lam):
        alpha2 = torch.sigmoid(2 * lam.double())[:, None]
        return (x * (1 - alpha2).sqrt() / (alpha2 * STD**2 + 1 - alpha2)).to(x)


def exact(sde):
    network = Exact()
    network.schedule = sde.schedule
    return Denoiser(network, sde, time_input="half_log_snr")


def second_moment(sde):
    """Of the loss of the exact model, (gamma' m)^2 (1 + 2/D), in closed form but for the integral over time."""
    t = torch.linspace(sde.t_min, 1, 4001, dtype=torch.float64)
    shrunk = STD**2 * sde.alpha(t).square() / (STD**2 * sde.alpha(t).square() + sde.sigma(t).square())      # m
    return float(torch.trapezoid((sde.g2(t) / sde.sigma(t).square() * shrunk).square(), t)) * (1 + 2 / D)


@pytest.mark.slow
def test_training_the_schedule_lowers_the_variance_of_the_loss_towards_the_least_there_is():
    """For N(0, s^2 I) the error |eps_theta - eps|^2 / D is m chi^2_D / D, m = s^2 alpha^2 / (s^2 alpha^2 + sigma^2). By
    Cauchy and Schwarz the least second moment is that of gamma' m = const: the square of the mean, times 1 + 2/D.
    """
    sde = LearnedVPSDE()
    denoiser, objective = exact(sde), LearnedSchedule(sde, label_dropout=0.0)
    gamma = torch.linspace(-2 * sde.lambda_max, -2 * sde.lambda_min, 4001, dtype=torch.float64)
    mean = float(torch.trapezoid(torch.sigmoid(-gamma + 2 * math.log(STD)), gamma))      # of any schedule
    first, least = second_moment(sde) - mean**2, mean**2 * 2 / D
    optimizer = torch.optim.Adam(sde.schedule.parameters(), lr=0.1)
    for step in range(100):
        draws = Draws(256, step, CPU)
        batch = Batch(STD * torch.randn(256, D, generator=draws.host))
        optimizer.zero_grad()
        objective.loss(denoiser, batch, objective.draw(batch, draws)).mean().backward()
        optimizer.step()
    last = second_moment(sde) - mean**2
    assert first > 4 * least and least < last < 0.6 * first
    assert float(sde.half_log_snr(1.0)) == -5.0 and float(sde.half_log_snr(sde.t_min)) == pytest.approx(6.9, abs=1e-12)


def test_the_gradient_of_the_schedule_is_that_of_the_second_moment():
    """At fixed gamma, by central differences of log gamma' where gamma is what it was."""
    sde, direction = bent(0), torch.randn(64, generator=torch.Generator().manual_seed(1))
    s = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slope = log_slope_at_fixed_gamma(sde.schedule, s)
    gradient = torch.autograd.grad(slope.sum(), sde.schedule.height)[0]
    target = sde.half_log_snr(sde.t_min + (1 - sde.t_min) * s)

    def shifted(h):
        other = bent(0)
        with torch.no_grad():
            other.schedule.height.add_(h * direction)
            return other.schedule(other.place(other.time(target)))[1].log().sum()

    expected = (shifted(1e-2) - shifted(-1e-2)) / 2e-2
    assert float(expected) == pytest.approx(float(gradient @ direction), rel=1e-3)


def test_the_loss_is_score_matching_with_the_likelihood_weighting():
    sde = bent()
    denoiser, objective = exact(sde), LearnedSchedule(sde, label_dropout=0.0)
    batch = Batch(STD * torch.randn(64, D, generator=torch.Generator().manual_seed(0)))
    draw = objective.draw(batch, Draws(64, 0, CPU))
    plain = ScoreMatching(sde, "likelihood", label_dropout=0.0)
    torch.testing.assert_close(objective.loss(denoiser, batch, draw), plain.loss(denoiser, batch, draw), rtol=1e-6, atol=0)


def test_the_exact_density_of_a_gaussian_is_found_along_a_bent_schedule():
    model = GaussianMixture(bent(), torch.zeros(1, 4), torch.tensor([0.25]))
    x = 0.5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = 0.25 * float(model.sde.alpha(1e-5)) ** 2 + float(model.sde.sigma(1e-5)) ** 2
    expected = -0.5 * (x.square().sum(1) / variance + 4 * math.log(2 * math.pi * variance))
    found = log_prob(model, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-4)      # the prior is not quite the marginal at t = 1


def test_a_schedule_needs_its_objective_and_the_objective_a_schedule():
    with pytest.raises(ArgumentError, match="learned_schedule trains the schedule of sde.name=learned"):
        LearnedSchedule(VPSDE())
    with pytest.raises(ArgumentError, match="by objective learned_schedule, and by no other"):
        build_objective(exact(LearnedVPSDE()), {"objective": "score_matching"})
    with pytest.raises(ArgumentError, match="need lambda_min < lambda_max, got -5.0 and -5.0"):
        LearnedVPSDE(lambda_max=-5.0)
    with pytest.raises(ArgumentError, match="hidden must be at least 1"):
        LearnedVPSDE(hidden=0)


LEARNED = ["--config.sde.name=learned", "--config.training.objective=learned_schedule"]


@pytest.mark.slow
@pytest.mark.one_machine
def test_a_run_keeps_its_schedule_goes_on_exactly_samples_and_is_scored(tmp_path):
    whole = train_briefly("vp_digits", tmp_path / "whole", *LEARNED)
    train_briefly("vp_digits", tmp_path / "parts", *LEARNED, "--config.training.steps=2")
    parts = train_briefly("vp_digits", tmp_path / "parts", *LEARNED)
    one, other = newest_sound(whole).state, newest_sound(parts).state
    for name in ("network", "ema"):
        assert all(torch.equal(tensor, other[name][key]) for key, tensor in one[name].items())
    assert not torch.equal(one["network"]["schedule.height"], LearnedVPSDE().schedule.height)      # it has moved
    averaged, raw = load_denoiser(whole), load_denoiser(whole, ema=False)
    for model, weights in ((averaged, one["ema"]), (raw, one["network"])):
        assert torch.equal(model.sde.schedule.height, weights["schedule.height"])
        assert model.with_network(model.network).sde.schedule is model.network.schedule
    main(["--workdir", str(whole), "--mode", "sample", "--sampler", "auto", "--steps", "4", "--num_samples", "2"])
    main(["--workdir", str(whole), "--mode", "likelihood", "--method", "exponential", "--steps", "8", "--num_images", "2"])
    assert (whole / "likelihood/summary_method_exponential_steps8_num_images2.json").exists()


@pytest.mark.slow
@pytest.mark.one_machine
def test_two_processes_train_the_schedule_as_one(tmp_path):
    """Up to the order of summation, and to the mean square of the loss, which each process takes of its own half."""
    single = newest_sound(train_briefly("vp_digits", tmp_path / "one", *LEARNED)).state["network"]
    words = ["--config", str(ROOT / "configs/vp_digits.py"), "--mode", "train", "--workdir", str(tmp_path / "two"), *SMALL]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                    str(ROOT / "main.py"), *words, *LEARNED], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                   capture_output=True, timeout=300)
    shared = newest_sound(tmp_path / "two").state["network"]
    moved, too = (state["schedule.height"] - LearnedVPSDE().schedule.height.detach() for state in (single, shared))
    assert float(torch.nn.functional.cosine_similarity(moved, too, 0)) > 0.8
    for name, tensor in single.items():
        if not name.startswith("schedule"):
            torch.testing.assert_close(shared[name], tensor, rtol=5e-2, atol=5e-3)
