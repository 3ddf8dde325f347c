"""Flow matching on coupled pairs: the couplings against closed forms, and what may follow a flow that has no score."""

import itertools

import pytest
import torch

from scorefield.guidance import classifier_free, posterior
from scorefield.guidance.operators import make_operator
from scorefield.likelihood import elbo, log_prob
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.student import COUPLED_FLOW, student_of
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, own_sampler, prior_sample
from scorefield.sde_lib import CosineVPSDE, FlowSDE
from scorefield.training import Batch, Draws, FlowMatching, ScoreMatching
from scorefield.training.objectives.flow_matching import transport
from tests.helpers import randomised


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(n=64, labels=None):
    return Batch(normal(n, 2, seed=1), {} if labels is None else {"label": labels})


def drawn(objective, of, n=64):
    return objective.draw(of, Draws(n, 0, torch.device("cpu")))


def network(sde=None, **settings):
    made = randomised(MLP((2,), width=8, layers=1, **settings))
    return Denoiser(made, sde or FlowSDE(), "flow", label_dropout="classes" in settings)


def test_transport_is_the_cheapest_of_all_permutations_and_with_labels_of_those_within_each():
    x, eps = normal(6, 3, seed=1), normal(6, 3, seed=2)
    label = torch.tensor([0, 1, 0, 1, 1, 0])

    def cost(order):
        return float((x - eps[list(order)]).square().sum())

    every = [*itertools.permutations(range(6))]
    within = [order for order in every if torch.equal(label[list(order)], label)]
    assert tuple(transport(x, eps).tolist()) == min(every, key=cost)
    assert tuple(transport(x, eps, label).tolist()) == min(within, key=cost)
    line, noise = normal(50, 1, seed=3), normal(50, 1, seed=4)      # on a line it sorts
    assert torch.equal(noise[transport(line, noise)].argsort(0), line.argsort(0))


def test_independent_pairs_give_the_loss_of_the_velocity_which_is_score_matching_otherwise_weighted():
    model, objective = network(), FlowMatching(FlowSDE(), label_dropout=0.0)
    of = batch()
    draw = drawn(objective, of)
    t = draw.t[:, None]
    x_t = (1 - t) * of.x + t * draw.eps
    wanted = (model(x_t, draw.t) - (draw.eps - of.x)).square().mean(1)
    torch.testing.assert_close(objective.loss(model, of, draw), wanted)
    scores = ScoreMatching(FlowSDE(), label_dropout=0.0).loss(model, of, draw[:4])      # of eps, by 1 - t in F
    torch.testing.assert_close(wanted * (1 - draw.t).square(), scores)


def test_each_example_is_told_its_label_and_its_noise_comes_from_its_class():
    labels = torch.arange(64) % 3
    objective, of = FlowMatching(FlowSDE(), coupling="optimal_transport", label_dropout=0.3), batch(labels=labels)
    draw, model = drawn(objective, of), network(classes=3)
    assert 5 < int(draw.dropped.sum()) < 35
    x_0, eps, condition = objective.pairs(model, of, draw)
    told = torch.where(draw.dropped, 3, labels)
    assert torch.equal(condition["label"], told) and torch.equal(x_0, of.x)
    for value in range(4):
        own = told == value
        assert torch.equal(eps[own].sort(0).values, draw.eps[own].sort(0).values)
    assert objective.metrics(model, of, draw)["transport_cost"].sum() < (of.x - draw.eps).square().mean(1).sum()
    loss = objective.loss(model, of, draw)
    t = draw.t[:, None]
    wanted = (model((1 - t) * x_0 + t * eps, draw.t, {"label": told}) - (eps - x_0)).square().mean(1)
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("sde, near", [(FlowSDE(), 4e-3), (CosineVPSDE(), 1e-2)])
def test_reflow_pairs_noise_with_the_end_of_its_teachers_flow(sde, near):
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]])
    teacher = GaussianMixture(sde, means, torch.full((2,), 0.2), labels=[0, 1])
    objective = FlowMatching(sde, coupling="reflow", teacher_model=teacher, flow_steps=40, label_dropout=0.0)
    of = batch(n=8, labels=torch.arange(8) % 2)
    draw = drawn(objective, of, 8)
    x_0, eps, _ = objective.pairs(network(sde, classes=2), of, draw)
    start = eps * float(sde.sigma(torch.tensor(sde.t_max, dtype=torch.float64)))
    wanted = make_sampler("auto", order=3, steps=150, denoise=True)(teacher.given(label=torch.arange(8) % 2), start).x
    torch.testing.assert_close(x_0, wanted, rtol=0, atol=near)
    assert torch.equal(eps, draw.eps)


def test_a_coupled_flow_is_drawn_and_scored_by_its_flow_and_has_no_score():
    training = {"objective": "flow_matching", "coupling": "optimal_transport"}
    assert student_of(training, FlowSDE()) is COUPLED_FLOW
    assert student_of({**training, "coupling": "independent"}, FlowSDE()) is None
    model = network(classes=2)
    model.made_for = COUPLED_FLOW
    x_T = prior_sample(model.sde, (2,), range(3))
    for name in ("auto", "ddim", "heun", "edm", "ode", "dpm_solver++"):
        assert make_sampler(name)(model, x_T).x.isfinite().all()
        assert own_sampler(model, make_sampler(name)) == make_sampler(name)
    assert own_sampler(model, make_sampler("euler_maruyama")) == make_sampler("auto")
    classifier_free(model, 2.0, label=1)
    assert log_prob(model, x_T, seeds=range(3), method="exponential", steps=8).value.isfinite().all()
    for name, options in (("euler_maruyama", {}), ("ddim", {"eta": 1.0}), ("ancestral", {}), ("langevin", {}),
                          ("edm", {"churn": 10.0}), ("consistency", {})):
        with pytest.raises(ArgumentError, match="flow of coupled pairs, which has no score: choose a deterministic"):
            sampler = make_sampler(name, **options)
            sampler.check(model, torch.tensor([1.0, 0.0]))
    for use in (lambda: elbo(model, x_T, seeds=range(3)),
                lambda: posterior(model, make_operator("mask:half=right", (2,)), torch.zeros(1, 1), 0.1)):
        with pytest.raises(ArgumentError, match="needs a score model, and this is a flow of coupled pairs"):
            use()


def test_couplings_that_do_not_fit_are_refused_in_one_line():
    teacher = GaussianMixture(FlowSDE(), torch.eye(2), torch.ones(2))
    for settings, words in (({"coupling": "sorted"}, "unknown coupling 'sorted'"),
                            ({"coupling": "reflow"}, "coupling reflow needs a teacher"),
                            ({"coupling": "optimal_transport", "teacher_model": teacher}, "has no teacher; leave it out"),
                            ({"coupling": "reflow", "teacher_model": teacher, "flow_steps": 0}, "flow_steps must lie in")):
        with pytest.raises(ArgumentError, match=words):
            FlowMatching(FlowSDE(), **settings)
    scaled = network(classes=2, guidance=(0.0, 2.0))
    with pytest.raises(ArgumentError, match="only a teacher can be guided"):
        FlowMatching(FlowSDE(), coupling="optimal_transport").require(scaled)
