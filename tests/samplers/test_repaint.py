"""RePaint's resampling."""

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import VPSDE

MODEL = GaussianMixture(VPSDE(), torch.tensor([[0.5, -0.5]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64))


def test_taken_once_its_steps_are_those_of_ddim_with_all_noise():
    seeds = sample_seeds(0, 0, 8)
    x = prior_sample(MODEL.sde, (2,), seeds, dtype=torch.float64)
    once = make_sampler("repaint", steps=12, jump=5, resample=1)(MODEL, x, seeds)
    same = make_sampler("ddim", steps=12, eta=1.0)(MODEL, x, seeds)
    torch.testing.assert_close(once.x, same.x, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_steps_that_are_taken_again_keep_the_mean_and_count():
    seeds = sample_seeds(0, 0, 2000)
    x = prior_sample(MODEL.sde, (2,), seeds, dtype=torch.float64)
    result = make_sampler("repaint", steps=160, jump=10, resample=3, grid="logsnr")(MODEL, x, seeds, trajectory=True)
    assert result.nfe == 480 and len(result.trajectory) == len(result.times) == 161
    assert (result.x.mean(0) - MODEL.means[0]).abs().max() < 4 * (0.3 / 2000) ** 0.5


@pytest.mark.parametrize("option", ["jump", "resample"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ArgumentError, match=option):
        make_sampler("repaint", **{option: 0})
