"""DSBM and DSB: their losses are least at the right means, and iterations come to the closed form between Gaussians."""

import copy

import pytest
import torch
from torch import nn

from benchmarks import bridges
from scorefield.models import EMA, MLP, Bridge, FullMixture
from scorefield.models.gaussian_bridge import GaussianBridge
from scorefield.models.networks.two_way import SOURCE, TARGET, TwoWay
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE, BrownianSDE
from scorefield.sde_lib.reference import crowded
from scorefield.training.draws import Draws, HeldOutDraws
from scorefield.training.objectives import DSB, DSBM
from scorefield.training.objectives.objective import Batch
from tests.helpers import randomised

S0, S1 = (torch.tensor(c, dtype=torch.float64) for c in ([[1.0, 0.5], [0.5, 0.6]], [[0.4, 0.0], [0.0, 1.5]]))
M0, M1 = torch.tensor([1.0, -1.0]).double(), torch.tensor([0.2, 0.5]).double()


def exact(sde):
    return GaussianBridge(sde, (M0, S0), (M1, S1))


class Drawn:
    """Fresh examples of both Gaussians."""

    device = torch.device("cpu")

    def examples(self, end, n, generator):
        mean, covariance = (M0, S0) if end == SOURCE else (M1, S1)
        z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return mean + z @ torch.linalg.cholesky(covariance).mT


def batch_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(Drawn().examples(SOURCE, n, generator), {"target": Drawn().examples(TARGET, n, generator)})


def lot_of(objective, batch, seed=0):
    return objective.draw(batch, Draws(len(batch.x), seed, torch.device("cpu")))


class Shifted(nn.Module):
    """A bridge whose means are off by A x + b, of which each direction has its own, with unit scales of its outputs."""

    def __init__(self, bridge, means):
        super().__init__()
        self.sde, self.means, self.goal, self.bridge = bridge.sde, means, bridge.goal, bridge
        self.off = nn.Parameter(torch.zeros(2, 2, 3, dtype=torch.float64))

    def moved(self, x, way):
        return torch.cat([x, torch.ones_like(x[:, :1])], 1) @ self.off[way].mT

    def ends(self, x, t):
        one = torch.ones(1, dtype=torch.float64)
        return (self.means[0](x, t) + self.moved(x, 0), self.means[1](x, 1 - t) + self.moved(x, 1), one, one)

    def toward(self, goal):
        other = copy.copy(self)
        other.goal, other.sde = goal, self.bridge.toward(goal).sde
        return other

    @property
    def back(self):
        return self.toward(TARGET if self.goal == SOURCE else SOURCE)

    def goal_mean(self, x, s):
        way = [SOURCE, TARGET].index(self.goal)
        return self.means[way](x, s) + self.moved(x, way)


def slopes(model, losses):
    """How many standard errors the slope of the mean loss by each entry of `off` is from 0."""
    parts = torch.stack([torch.autograd.grad(part.mean(), model.off, retain_graph=True)[0] for part in losses.chunk(40)])
    return parts.mean(0) / (parts.std(0) / len(parts)**0.5).clamp(min=1e-12)


@pytest.mark.parametrize("sde", [BrownianSDE(), VPSDE(0.1, 3.0)], ids=["brownian", "vp"])
def test_the_loss_of_dsbm_on_the_pairs_of_the_bridge_is_least_at_the_means_of_the_bridge(sde):
    """So the Schroedinger bridge is a fixed point; any other means have a slope."""
    bridge, n = exact(sde), 40_000
    cross, objective = bridge.cross_covariance, DSBM(ends=Drawn(), paths=n, first_updates=1)
    mean, covariance = bridges.joint((M0, M1), S0, S1, cross)
    z = torch.randn(n, 4, generator=torch.Generator().manual_seed(1)).double()
    pairs = mean + z @ torch.linalg.cholesky(covariance).mT
    batch = Batch(pairs[:, :2], {"target": pairs[:, 2:]})
    lot = lot_of(objective, batch)
    to_source, to_target = bridge.toward(SOURCE).goal_mean, bridge.toward(TARGET).goal_mean
    right = Shifted(bridge, (to_source, to_target))
    assert float(slopes(right, objective.loss(right, batch, lot)).abs().max()) < 4
    wrong = Shifted(bridge, (to_source, lambda x, s: to_target(x, s) + 0.1 * x))
    assert float(slopes(wrong, objective.loss(wrong, batch, lot))[1].abs().max()) > 10


def test_the_first_turn_of_dsb_learns_the_denoiser_of_the_reference_and_leaves_the_other_network_alone():
    sde, n = BrownianSDE(), 20_000
    bridge, objective = exact(sde), DSB(ends=Drawn(), paths=n, sim_steps=10, turn=5)
    denoiser = FullMixture(sde, M0[None], S0[None])      # E[x_0 given x_s] of source examples in Brownian motion
    model, batch = Shifted(bridge, (denoiser.x0, None)), batch_of(n)
    lot = lot_of(objective, batch)
    losses = objective.loss(model, batch, lot)
    assert torch.autograd.grad(losses.sum(), model.off, retain_graph=True)[0][1].abs().max() == 0
    assert float(slopes(model, losses)[0].abs().max()) < 4
    wrong = Shifted(bridge, (lambda x, s: denoiser.x0(x, s) + 0.1 * x, None))
    assert float(slopes(wrong, objective.loss(wrong, batch, lot))[0].abs().max()) > 10


def test_a_turn_of_dsb_points_to_where_mean_matching_says():
    """B_(k+1) = y_(k+1) + O_k(y_k) - O_k(y_(k+1)), recomputed from the states with the other direction's means."""
    bridge = exact(BrownianSDE(0.7))
    objective, n = DSB(ends=Drawn(), paths=6, sim_steps=5, turn=1), 6
    objective.stepped(World())      # now toward the target, from paths toward the source
    batch = batch_of(n)
    kept = objective.simulated(Shifted(bridge, (bridge.goal_mean, None)), batch.x, batch.condition["target"],
                               torch.Generator().manual_seed(0))
    times = crowded(5, 2.0).flip(0)
    share = bridge.toward(TARGET).sde.share(times)
    for k in range(1, 5):
        before, after = kept["state"][:, k - 1], kept["state"][:, k]
        part = (share[k + 1] - share[k]) / (1 - share[k])

        def moved(y, k=k, part=part):      # toward the source, at time 1 - s seen from there
            return y + part * (bridge.toward(SOURCE).goal_mean(y, 1 - times[k]) - y)

        step = after + moved(before) - moved(after)
        assert torch.allclose(after + (share[k + 1] - share[k]) / share[k + 1] * (kept["end"][:, k] - after), step)


@pytest.mark.parametrize(("rule", "count", "most"), [(bridges.imf, 4, 0.05), (bridges.ipf, 8, 0.08)])
def test_the_iterations_come_to_the_closed_form_between_gaussians(rule, count, most):
    """Moments of exact regressions and paths: means, covariances and cross-covariances, both ways (docs/bridges.md)."""
    found = [bridges.errors(bridges.problem(1, BrownianSDE()), joint)
             for joint in rule(bridges.problem(1, BrownianSDE()), count)]
    assert max(found[-1]) < most and found[-1][2] < found[0][2] / 3


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 5])
def test_networks_that_dsbm_trains_come_to_the_closed_form(d):
    """Within 8 %; exact regressions come within 3 (docs/bridges.md)."""
    torch.manual_seed(0)
    truth = bridges.problem(d, BrownianSDE())

    class Ends:
        device = torch.device("cpu")

        def examples(self, end, n, generator):
            own = truth.of_end[end]
            z = torch.randn(n, d, generator=generator, dtype=torch.float64)
            return (own.mean + z @ torch.linalg.cholesky(own.covariance).mT).float()

    objective = DSBM(ends=Ends(), paths=20_000, first_updates=600, refresh=400)
    model = Bridge(TwoWay(MLP((d,), 64, 2), MLP((d,), 64, 2)), BrownianSDE())
    optimizer, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    steps, average = 3000, EMA(model.network, 0.995)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps) ** 2
        batch = Batch(Ends().examples(SOURCE, 512, generator), {"target": Ends().examples(TARGET, 512, generator)})
        objective.loss(model, batch, lot_of(objective, batch, step)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.stepped(World())
        average.update(model.network)
    trained = model.with_network(average.module)
    for goal in (SOURCE, TARGET):
        start = truth.toward(goal).sde.prior
        x1 = start.sample((d,), range(20_000))
        x0 = make_sampler("bridge", steps=40)(trained.toward(goal, start), x1, range(20_000)).x
        found, own = torch.cov(torch.cat([x0, x1], 1).mT).double(), truth.of_end[goal]
        cross = truth.cross_covariance if goal == SOURCE else truth.cross_covariance.mT
        assert float((x0.mean(0) - own.mean).abs().max() / own.covariance.diagonal().max().sqrt()) < 0.08
        assert float((found[:d, :d] - own.covariance).norm() / own.covariance.norm()) < 0.08
        assert float((found[:d, d:] - cross).norm() / cross.norm()) < 0.08


def small(kind, **settings):
    model = Bridge(randomised(TwoWay(MLP((2,), 8, 1), MLP((2,), 8, 1))), BrownianSDE()).double()
    return model, kind(ends=Drawn(), paths=16, sim_steps=3, **settings)


@pytest.mark.parametrize(("kind", "settings"), [(DSBM, {"first_updates": 1}), (DSB, {"turn": 3})])
def test_what_was_simulated_stays_until_it_is_refreshed_and_goes_on_from_a_state(kind, settings):
    model, objective = small(kind, refresh=2, **settings)
    batch, kept = batch_of(8), []
    for step in range(5):
        objective.loss(model, batch, lot_of(objective, batch, step))
        kept.append(dict(objective.progress.kept))
        if step == 3:
            state = {name: tensor.clone() for name, tensor in objective.state().items()}
        objective.stepped(World())
    first = next(iter(kept[-1]))
    made = [len(at) and float(at[first].sum()) for at in kept]
    # DSBM: independent pairs at step 0, then at 1 and 3; DSB: at 0, 2, and 3, where the turn changes
    anew = [True, False, True, False] if kind is DSBM else [False, True, True, False]
    assert [made[i] != made[i - 1] for i in range(1, 5)] == anew
    again = small(kind, refresh=2, **settings)[1]
    again.restore(state)
    again.stepped(World())
    lot = lot_of(objective, batch, 4)
    objective.progress.updates -= 1
    assert torch.equal(again.loss(model, batch, lot), objective.loss(model, batch, lot))


def test_held_out_losses_simulate_for_themselves_and_remember_nothing():
    for kind in (DSBM, DSB):
        model, objective = small(kind)
        batch = batch_of(6)
        draws = HeldOutDraws(6, torch.arange(6), torch.Generator().manual_seed(0), torch.device("cpu"), None)
        losses = objective.loss(model, batch, objective.draw(batch, draws))
        assert losses.shape == (6,) and bool(losses.isfinite().all()) and not objective.progress.kept


@pytest.mark.parametrize(("kind", "settings", "match"), [
    (DSBM, {"refresh": 0}, "refresh must lie in"), (DSBM, {"first_updates": 0}, "first_updates must be at least 1"),
    (DSBM, {"paths": 2**23}, "paths must lie in"), (DSBM, {"crowding": 9.0}, "crowding must lie in"),
    (DSBM, {"time_sampling": "odd"}, "unknown time_sampling 'odd'"), (DSB, {"turn": 0}, "turn must be at least 1"),
    (DSB, {"turn": 10, "updates": 19}, "set training.steps to at least 20"),
])
def test_settings_out_of_range_are_refused(kind, settings, match):
    with pytest.raises(ArgumentError, match=match):
        kind(**settings)
