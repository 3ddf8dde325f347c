"""Bridges: the reference between known ends, the closed form between Gaussians, and the model of two networks."""

import pytest
import torch

from scorefield.likelihood import log_prob
from scorefield.models import MLP, Bridge
from scorefield.models.gaussian_bridge import GaussianBridge
from scorefield.models.networks.two_way import Both, TwoWay
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VESDE, VPSDE, BrownianSDE, DDPMChain, FlowSDE, SubVPSDE
from scorefield.sde_lib.reference import Reference, crowded
from tests.helpers import randomised

SDES = {"brownian": BrownianSDE(0.8), "ve": VESDE(0.01, 3.0), "vp": VPSDE(0.1, 5.0), "subvp": SubVPSDE(0.1, 4.0)}
references = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
goals = pytest.mark.parametrize("goal", ["source", "target"])
S0 = torch.tensor([[1.0, 0.4], [0.4, 0.5]]).double()
S1 = torch.tensor([[0.6, -0.2], [-0.2, 1.2]]).double()
M0, M1 = torch.tensor([1.0, -0.5]).double(), torch.tensor([-0.3, 0.8]).double()


def exact(sde):
    return GaussianBridge(sde, (M0, S0), (M1, S1))


@references
@pytest.mark.parametrize("forward", [False, True])
def test_a_reference_is_its_sde_from_the_goal_and_ends_in_both_ends(sde, forward):
    reference, s = Reference(sde, forward), torch.linspace(0, 1, 9, dtype=torch.float64)
    a, b, std = reference.between(s)
    assert torch.allclose(torch.stack([a[0], b[0], std[0]]), torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-7)
    assert torch.allclose(torch.stack([a[-1], b[-1], std[-1]]), torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-7)
    inner = s[1:-1]
    by_hand = super(Reference, reference)
    assert torch.allclose(reference.g2(inner), by_hand.g2(inner), rtol=1e-8)
    assert torch.allclose(reference.drift(inner), by_hand.drift(inner), rtol=1e-8, atol=1e-12)
    t = 1 - s if forward else s      # the bridge of a linear SDE, from its transitions (Zhou et al. 2023, equation 7)
    alpha, sigma, first = sde.alpha(t), sde.sigma(t), sde.sigma(0.0)
    own, rest = sigma**2 - alpha**2 * first**2, sde.sigma(1.0)**2 - (sde.alpha(1.0) / alpha * sigma)**2
    whole = sde.sigma(1.0)**2 - sde.alpha(1.0)**2 * first**2
    of_source, of_target = alpha * rest / whole, sde.alpha(1.0) / alpha * own / whole
    assert torch.allclose(a, of_target if forward else of_source, atol=1e-9)
    assert torch.allclose(b, of_source if forward else of_target, atol=1e-9)
    assert torch.allclose(std.square(), (own * rest / whole).clamp(min=0), atol=1e-9)


@references
@goals
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_with_the_right_ends_keeps_the_law_of_the_path(sde, goal, eta):
    reference = Reference(sde, goal == "target")
    for s, later in ((0.9, 0.4), (0.4, 0.1), (0.1, 0.001)):
        (a, b, std), (c, d, after) = reference.between(s), reference.between(later)
        rule = reference.step(s, later, eta)
        assert rule.of_goal + rule.of_x * float(a) == pytest.approx(float(c), abs=1e-9)
        assert rule.of_start + rule.of_x * float(b) == pytest.approx(float(d), abs=1e-9)
        assert rule.of_x**2 * float(std)**2 + rule.of_noise**2 == pytest.approx(float(after)**2, abs=1e-9)
        assert (rule.of_noise == 0) is (eta == 0)
    assert reference.step(0.3, 0.0).of_noise == 0 and reference.step(1.0, 0.5).of_start == pytest.approx(0, abs=1e-12)


def test_the_cross_covariance_is_the_known_number_and_goes_from_transport_to_independence():
    one = torch.ones(1, 1).double()
    for s0, s1, s2 in ((1.0, 1.0, 2.0), (0.5, 2.0, 0.3)):      # (sqrt(4 s0 s1 + s^4) - s^2) / 2
        bridge = GaussianBridge(BrownianSDE(s2**0.5), (torch.zeros(1), s0 * one), (torch.zeros(1), s1 * one))
        assert float(bridge.cross_covariance) == pytest.approx(((4 * s0 * s1 + s2**2)**0.5 - s2) / 2, rel=1e-12)
    root = torch.linalg.eigh(S0)
    half = root[1] @ root[0].sqrt().diag() @ root[1].mT
    inner = torch.linalg.eigh(half @ S1 @ half)
    transport = half @ inner[1] @ inner[0].sqrt().diag() @ inner[1].mT @ torch.linalg.inv(half)      # Monge's, S0 A
    assert torch.allclose(exact(BrownianSDE(1e-3)).cross_covariance, transport, atol=1e-5)
    assert float(exact(BrownianSDE(300.0)).cross_covariance.abs().max()) < 1e-4


@references
@goals
def test_the_two_drifts_of_the_exact_bridge_sum_to_the_score_of_its_marginals(sde, goal):
    """Only right means of both ends do that, so it proves them, and that both directions are those of one process."""
    bridge = exact(sde).toward(goal)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for s in (0.05, 0.3, 0.8):
        time, seen = torch.tensor(s, dtype=torch.float64), bridge.sde
        y, u, total = x / seen.alpha(time), float(seen.share(time)), seen.total
        drifts = (bridge.x0(x, s) - y) / u + (bridge.start_mean(x, time) / seen.end - y) / (1 - u)
        mean, covariance = bridge.marginal(s)
        score = -torch.linalg.solve(covariance, (x - mean).mT).mT * seen.alpha(time)      # by y
        assert torch.allclose(drifts / total, score, rtol=1e-8, atol=1e-8)
        other = bridge.back.marginal(1 - s)
        assert torch.allclose(other[0], mean, atol=1e-9) and torch.allclose(other[1], covariance, atol=1e-9)


@pytest.mark.parametrize(("word", "goal"), [("brownian", "source"), ("brownian", "target"), ("vp", "source")])
def test_the_flow_of_the_exact_bridge_gives_the_density_of_its_goal(word, goal):
    bridge = exact(SDES[word]).toward(goal)
    x = bridge.of_end[goal].sample((2,), range(6), dtype=torch.float64)
    value = log_prob(bridge.probability_flow(), x, rtol=1e-4, atol=1e-4).value
    assert torch.allclose(value, bridge.of_end[goal].log_prob(x), atol=0.01)
    with pytest.raises(ArgumentError, match="choose an adaptive method"):
        log_prob(bridge.probability_flow(), x, method="exponential")


def networks(**settings):
    return Bridge(randomised(TwoWay(MLP((2,), 8, 1), MLP((2,), 8, 1))), BrownianSDE(), **settings)


def test_a_bridge_of_networks_knows_its_goal_when_it_is_there_and_both_ends_by_one_call():
    bridge, x = networks(source_std=0.5, target_std=2.0), torch.randn(5, 2)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    source, target, of_source, of_target = bridge.ends(x, t)
    assert torch.allclose(source, bridge.x0(x, t), atol=1e-6)
    assert torch.allclose(target, bridge.toward("target").x0(x, 1 - t), atol=1e-6)
    assert torch.allclose(bridge.x0(x, 1e-10), x, atol=1e-3)
    # halfway x = (x_0 + x_1) / 2 + z / 2, of variance 21/16; c_out^2 = Var x_0 - Cov(x_0, x)^2 / Var x
    assert float(of_source[2]) == pytest.approx((0.25 - (0.125**2) / (21 / 16))**0.5, rel=1e-6)
    assert float(of_target[2]) == pytest.approx((4 - 2**2 / (21 / 16))**0.5, rel=1e-6)
    assert bridge.network(x, t).shape == (2, 5, 2) and not torch.allclose(*bridge.network(x, t))


def test_what_cannot_be_a_bridge_is_refused_in_one_line():
    for sde, match in ((DDPMChain.from_schedule().to_sde(), "must be a fixed SDE"),
                       (FlowSDE(), "must remember where it began")):
        with pytest.raises(ArgumentError, match=match):
            Bridge(TwoWay(MLP((2,)), MLP((2,))), sde)
    with pytest.raises(ArgumentError, match="unknown goal 'left'; choose from source, target"):
        networks().toward("left")
    with pytest.raises(ArgumentError, match="predicts its goal, 'x0', and no eps"):
        networks().eps(torch.zeros(1, 2), 0.5)
    with pytest.raises(ArgumentError, match="starts at examples of its other end"):
        _ = networks().sde.prior
    with pytest.raises(ArgumentError, match="take x and time alone, and these take label"):
        Both(MLP)((2,), classes=3)
    with pytest.raises(ArgumentError, match="positive definite"):
        GaussianBridge(BrownianSDE(), (M0, S0), (M1, -S1))
    for wrong in (0, -3):
        with pytest.raises(ArgumentError, match="steps must be at least 1"):
            crowded(wrong, 2.0)
