import numpy as np
import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.numerics.noise import PRIOR, PROBES, STEPS
from scorefield.samplers import NoiseStream, make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import VPSDE


def test_a_sample_depends_on_its_seed_and_not_on_its_batch():
    model = GaussianMixture(VPSDE(), torch.eye(3), torch.full((3,), 0.1))
    sampler = make_sampler("euler_maruyama", steps=20)

    def draw(numbers):
        seeds = [(7, i) for i in numbers]
        return sampler(model, prior_sample(model.sde, (3,), seeds, dtype=torch.float64), seeds).x

    together = draw(range(10))
    shuffled = draw([3, 9, 0, 5])
    torch.testing.assert_close(shuffled, together[[3, 9, 0, 5]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw([4]), together[4:5], rtol=1e-12, atol=1e-12)


def test_streams_of_one_seed_and_seeds_of_one_stream_are_independent():
    like = torch.empty(40, 1000, dtype=torch.float64)
    draws = torch.cat([NoiseStream(sample_seeds(run, 0, 40), stream).normal(like) for run in (0, 1)
                       for stream in (PRIOR, STEPS)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert float(correlation.abs().max()) < 6 / np.sqrt(1000)


def test_successive_draws_differ_and_are_standard_normal():
    stream = NoiseStream(range(50))
    first, second = (stream.normal(torch.empty(50, 4000)) for _ in range(2))
    assert not torch.equal(first, second)
    both = torch.stack([first, second]).double()
    assert abs(float(both.mean())) < 4 / np.sqrt(both.numel())
    assert abs(float(both.var()) - 1) < 4 * np.sqrt(2 / both.numel())
    assert abs(float(both.pow(4).mean()) - 3) < 4 * np.sqrt(96 / both.numel())


def test_rademacher_draws_are_fair_signs_and_uniform_ones_lie_in_the_unit_interval():
    signs = NoiseStream(range(20), PROBES).rademacher(torch.empty(20, 5000))
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 4 / np.sqrt(signs.numel())
    u = NoiseStream(range(20)).uniform(torch.empty(20, 5000))
    assert 0 <= float(u.min()) and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 4 / np.sqrt(12 * u.numel())


def test_a_whole_number_is_a_seed_and_a_negative_one_is_refused():
    like = torch.empty(1, 5)
    assert torch.equal(NoiseStream([3]).normal(like), NoiseStream([(3, 0)]).normal(like))
    with pytest.raises(ValueError, match="seed"):
        NoiseStream([-1])
