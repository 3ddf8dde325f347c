"""The time at which a likelihood starts, chosen by training examples."""

import json
import math

import pytest
import torch

from scorefield.cli.main import main
from scorefield.data import Dataset, make_codec
from scorefield.data.codec import Points
from scorefield.evaluation import best_t_min, score
from scorefield.evaluation.truncation import candidates
from scorefield.models import Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE, DDPMChain, FlowSDE
from tests.helpers import train_briefly

GAUSSIAN = GaussianMixture(VPSDE(), torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64))
POINTS = 0.5 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
DATA = Dataset("points", POINTS, POINTS[:8] + 9, (4,), None)
QUICK = {"divergence": "exact", "method": "exponential", "steps": 40, "float64": True, "progress": False}


class Broken(torch.nn.Module):
    """The exact eps of GAUSSIAN, but below t = 1e-4 with x / sigma added, which expands the flow."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, time):
        eps = GAUSSIAN.eps(x.double(), time.double()).to(x)
        sigma = GAUSSIAN.sde.sigma(time)[:, None]
        return torch.where((time < 1e-4)[:, None], eps + x / sigma, eps)


def test_the_candidates_are_six_times_from_the_sdes_own_on():
    assert candidates(VPSDE()) == pytest.approx((1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3))
    chain = DDPMChain.from_schedule("linear", 100).to_sde()
    assert candidates(chain)[0] == chain.t_min and max(candidates(chain)) < chain.t_max
    assert max(candidates(FlowSDE())) < FlowSDE().t_max


def test_the_figure_of_each_time_is_the_density_of_the_data_with_that_much_noise():
    """Closed form: x_t of N(0, s^2 I) is N(0, (alpha^2 s^2 + sigma^2) I)."""
    times = (1e-5, 1e-3, 0.05)
    chosen = best_t_min(GAUSSIAN, DATA, Points(), times, **QUICK)
    for t in times:
        variance = float(GAUSSIAN.sde.alpha(t)) ** 2 * 0.25 + float(GAUSSIAN.sde.sigma(t)) ** 2
        nats = 0.5 * (POINTS.double().square().mean() / variance + math.log(2 * math.pi * variance))
        assert chosen.bits[t] == pytest.approx(float(nats) / math.log(2), abs=1e-4)
    assert chosen.t_min == min(times, key=lambda t: chosen.bits[t])


def test_a_model_that_is_wrong_at_small_times_starts_after_them_by_the_training_examples_alone():
    model = Denoiser(Broken(), VPSDE(), time_input=lambda sde, t: t)
    for settings in (QUICK, {"estimator": "elbo", "bound_draws": 128, "progress": False}):
        chosen = best_t_min(model, DATA, Points(), **settings)
        assert chosen.t_min == pytest.approx(1e-4) and abs(chosen.bits[1e-5] - chosen.bits[chosen.t_min]) > 0.1
        other = Dataset("other", POINTS, POINTS[:8] * 0, (4,), None)
        assert best_t_min(model, other, Points(), **settings) == chosen


def test_a_chain_has_no_such_time_and_there_must_be_one():
    with pytest.raises(ArgumentError, match="starts at the first index"):
        best_t_min(GAUSSIAN, DATA, Points(), estimator="chain_elbo")
    with pytest.raises(ArgumentError, match="there must be a time"):
        best_t_min(GAUSSIAN, DATA, Points(), times=())


@pytest.mark.slow
@pytest.mark.one_machine
def test_mode_likelihood_says_and_records_which_time_it_took(tmp_path, capsys):
    run = train_briefly("vp_digits", tmp_path / "run")
    quick = ["--workdir", str(run), "--mode", "likelihood", "--method", "exponential", "--steps", "16", "--num_images", "4"]
    main([*quick, "--t_min", "best"])
    said = capsys.readouterr().out
    summary = json.loads((run / "likelihood/summary_method_exponential_steps16_t_min_best_num_images4.json").read_text())
    bits = summary["t_min_by_train"]
    best = min(bits, key=bits.get)
    assert len(bits) == 6 and summary["settings"]["t_min"] == float(best) and f"t_min {best} is the best of" in said
    main([*quick, "--t_min", best])
    same = json.loads((run / f"likelihood/summary_method_exponential_steps16_t_min{best}_num_images4.json").read_text())
    assert same["bits_per_dim"] == summary["bits_per_dim"]
    with pytest.raises(ArgumentError, match="chain_elbo' takes no t_min"):
        main([*quick[:4], "--estimator", "chain_elbo", "--t_min", "best"])


def test_it_takes_no_more_examples_than_there_are():
    few = Dataset("few", POINTS[:3], POINTS, (4,), None)
    expected = score(GAUSSIAN, few, Points(), "train", t_min=1e-3, **QUICK).mean
    assert best_t_min(GAUSSIAN, few, Points(), (1e-3,), **QUICK).bits == {1e-3: expected}
    assert make_codec(None) == Points()
