"""The sampler of bridges: the moments of the closed form, and what it may sample."""

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.models.gaussian_bridge import GaussianBridge
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE, BrownianSDE


def exact(sde):
    covariance = torch.tensor([[1.0, 0.5], [0.5, 0.6]]).double()
    target = torch.zeros(2), torch.tensor([[0.4, 0.0], [0.0, 1.5]])
    return GaussianBridge(sde, (torch.tensor([1.0, -1.0]), covariance), target)


def drawn(bridge, n, **options):
    start = bridge.sde.prior.sample((2,), range(n), dtype=torch.float64)
    return make_sampler("bridge", **options)(bridge, start, range(n)), start


@pytest.mark.parametrize("sde", [BrownianSDE(), VPSDE(0.1, 3.0)], ids=["brownian", "vp"])
@pytest.mark.parametrize("goal", ["source", "target"])
def test_samples_have_the_moments_of_the_bridge_and_the_coupling_of_its_ends(sde, goal):
    """1,500 samples: 3.7 % is a standard error of a variance."""
    bridge, n = exact(sde).toward(goal), 1500
    result, start = drawn(bridge, n, steps=20)
    own, cross = bridge.of_end[goal], bridge.cross_covariance
    found = torch.cov(torch.cat([result.x, start], 1).mT)
    assert torch.allclose(result.x.mean(0), own.mean, atol=0.1)
    assert float((found[:2, :2] - own.covariance).norm() / own.covariance.norm()) < 0.12
    assert torch.allclose(found[:2, 2:], cross if goal == "source" else cross.mT, atol=0.1)
    assert result.nfe == 39      # two evaluations a step but one in the last


def test_the_rule_of_order_two_leaves_less_of_the_variance_out_than_that_of_order_one():
    bridge = exact(BrownianSDE())
    gaps = []
    for heun in (True, False):
        x = drawn(bridge, 2000, steps=20, heun=heun)[0].x
        gaps.append(float((torch.cov(x.mT) - bridge.of_end["source"].covariance).norm()))
    assert gaps[0] < 0.6 * gaps[1]


def test_the_flow_has_the_marginals_and_takes_both_networks():
    bridge = exact(BrownianSDE())
    result, _ = drawn(bridge, 3000, steps=20, eta=0.0)
    covariance = bridge.of_end["source"].covariance
    assert float((torch.cov(result.x.mT) - covariance).norm() / covariance.norm()) < 0.1
    assert result.nfe == 2 * 39


def test_only_its_own_sampler_takes_a_bridge_and_that_takes_nothing_else():
    bridge, x = exact(BrownianSDE()), torch.zeros(3, 2).double()
    with pytest.raises(ArgumentError, match="the model is a Schroedinger bridge, and only its own sampler may use it"):
        make_sampler("auto", steps=3)(bridge, x)
    mixture = GaussianMixture(BrownianSDE(), torch.zeros(1, 2), torch.ones(1))
    with pytest.raises(ArgumentError, match="for Schroedinger bridges, which objectives dsbm and dsb train"):
        make_sampler("bridge")(mixture, x, range(3))
    for options, match in (({"eta": 1.5}, "eta must lie in"), ({"steps": 0}, "steps must be"),
                           ({"crowding": 0.5}, "crowding must lie"), ({"t_end": 1.0}, "t_end must lie")):
        with pytest.raises(ArgumentError, match=match):
            make_sampler("bridge", **options)(bridge, x, range(3))
