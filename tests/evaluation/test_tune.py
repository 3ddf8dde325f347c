"""Tuned solvers: nearer to the flow than auto on starts that they have not seen, never worse, and what they cost."""

import json

import pytest
import torch

from scorefield.evaluation.tune import Dense, Starts, robust_least_squares, tune
from scorefield.models import Denoiser, GaussianMixture
from scorefield.models.student import CONSISTENCY_MODEL
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.quadrature import exponential_moments, exponential_weights
from scorefield.samplers import Tuned, make_sampler, prior_sample, sample_seeds
from scorefield.samplers.adams import ExponentialAdams
from scorefield.samplers.multistep import Schedule
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE
from tests.helpers import randomised


def mixture(sde, seed=0, d=4):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(5, d, generator=generator)
    return GaussianMixture(sde, means, torch.full((5,), 0.05), labels=[0, 1, 0, 1, 1])


def distances(model, sampler, n=100):
    x_T = prior_sample(model.sde, (4,), sample_seeds(9, 0, n), dtype=torch.float64)
    end = make_sampler("auto", order=3, steps=150)(model, x_T).x
    return (sampler(model, x_T).x - end).square().mean(1).sqrt()


@pytest.mark.costly
@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), VESDE()])
def test_a_tuned_solver_beats_auto_on_other_starts_by_its_median_and_costs_less_than_ten_thousand_evaluations(sde):
    model = mixture(sde)
    for tuning in tune(model, (4,), [5, 8], dtype=torch.float64, dense=48):
        auto = distances(model, make_sampler("auto", steps=tuning.solver.steps))
        tuned = distances(model, Tuned.of(tuning.solver))
        assert tuned.median() < 0.5 * auto.median() and tuned.square().mean() < auto.square().mean()
        assert tuning.evaluations == 64 * (49 + 7 * tuning.solver.steps) < 10_000      # auto and six candidates
        assert tuning.chosen != "auto" and len(tuning.figures) == 7


def test_where_nothing_can_be_won_auto_stays_to_the_bit():
    """One point has a flow that auto solves exactly, so no candidate is nearer."""
    model = GaussianMixture(VPSDE(), torch.zeros(1, 4), torch.ones(1))
    tuning, = tune(model, (4,), [6], dense=24, starts=16, dtype=torch.float64)
    assert tuning.chosen == "auto"
    x_T = prior_sample(model.sde, (4,), range(5), dtype=torch.float64)
    assert torch.equal(Tuned.of(tuning.solver)(model, x_T).x, make_sampler("auto", steps=6)(model, x_T).x)


def test_the_grid_is_the_best_of_all_grids_of_the_dense_runs_nodes():
    model = mixture(VPSDE())
    run = Dense(Starts(lambda batch: model, (4,), 16, 0, 16, "cpu", torch.float64), 12, 1.0)
    corrected, predicted, first = run.residuals
    best, steps = run.grid(4), 4
    costs = {}
    for a in range(1, 11):
        for b in range(a + 1, 11):
            for c in range(b + 1, 12):
                costs[0, a, b, c, 12] = first[a] + corrected[0, a, b] + corrected[a, b, c] + predicted[b, c]
    assert len(best) == steps + 1 and tuple(best) == min(costs, key=costs.get)
    with torch.no_grad():      # a tabulated residual is that of auto's own corrector
        nodes = run.times[[2, 5, 9]]
        lam = Schedule.of(model.sde, nodes).lam
        weights = exponential_weights(lam[1], lam[2], lam[[2, 1, 0]], 1.0)
        residual = run.y[9] - run.y[5] - sum(w * m for w, m in zip(weights, run.m[[9, 5, 2]], strict=True))
    assert corrected[2, 5, 9] == pytest.approx(float(residual.square().mean(1).sqrt().mean()), rel=1e-9)
    one = exponential_weights(0.2, 0.9, lam[:1], 0.7)[0]
    assert exponential_moments(0.2, 0.9, 3, 0.7)[0] == pytest.approx(one, rel=1e-12)


def test_robust_least_squares_is_that_of_most_rows_where_a_few_go_elsewhere():
    generator = torch.Generator().manual_seed(0)
    features, true = torch.randn(40, 3, 2, generator=generator).double(), torch.tensor([0.7, -0.2]).double()
    target = features @ true + 1e-3 * torch.randn(40, 3, generator=generator)
    target[:4] += 5
    plain = torch.linalg.lstsq(features.reshape(-1, 2), target.reshape(-1)).solution
    found = robust_least_squares(features, target, 1e-8)
    assert float((found - true).abs().max()) < 1e-3 < 0.05 < float((plain - true).abs().max())


def test_each_sample_keeps_its_label_and_guidance_counts_twice():
    model = mixture(VPSDE())
    labels = torch.arange(32) % 2

    from scorefield.guidance import guided

    def of(batch):
        return guided(model, labels[batch.start:batch.stop], scale=2.0)

    whole, = tune(of, (4,), [5], starts=32, dense=16, batch_size=32, dtype=torch.float64)
    parts, = tune(of, (4,), [5], starts=32, dense=16, batch_size=10, dtype=torch.float64)
    assert whole.evaluations == parts.evaluations == 2 * 32 * (17 + 7 * 5)
    assert whole.chosen == parts.chosen
    torch.testing.assert_close(torch.tensor(whole.solver.rules[2].predict), torch.tensor(parts.solver.rules[2].predict))


def test_a_solver_in_a_file_is_the_same_and_refuses_what_it_was_not_made_for(tmp_path):
    model, path = mixture(VPSDE()), tmp_path / "auto_5.json"
    tuning, = tune(model, (4,), [5], starts=16, dense=16, dtype=torch.float64)
    path.write_text(json.dumps(tuning.solver.stored()))
    x_T = prior_sample(model.sde, (4,), range(6), dtype=torch.float64)
    read = make_sampler("tuned", steps=5, solver=str(path))(model, x_T)
    assert torch.equal(read.x, Tuned.of(tuning.solver)(model, x_T).x) and read.nfe == 5
    with pytest.raises(ArgumentError, match="was tuned for 5 steps, not 8"):
        make_sampler("tuned", solver=str(path))
    with pytest.raises(ArgumentError, match="was tuned for VPSDE.*, and the model has CosineVPSDE"):
        make_sampler("tuned", steps=5, solver=str(path))(mixture(CosineVPSDE()), x_T)
    with pytest.raises(ArgumentError, match="has its own end"):
        make_sampler("tuned", steps=5, solver=str(path), denoise=True)
    with pytest.raises(ArgumentError, match="needs the file of a solver"):
        make_sampler("tuned", steps=5)
    with pytest.raises(ArgumentError, match="there is no tuned solver"):
        make_sampler("tuned", solver=str(tmp_path / "none.json"))
    for damage in ("{", "[]", path.read_text().replace('"times": [', '"times": [0.1, ')):
        path.write_text(damage)
        with pytest.raises(ArgumentError, match="is damaged"):
            make_sampler("tuned", steps=5, solver=str(path))


def test_budgets_and_models_that_cannot_be_tuned_are_refused_before_anything_is_computed():
    model = mixture(VPSDE())
    for steps, starts, words in (([1], 64, "steps must lie in 2 .. 32"), ([40], 64, "steps must lie in 2 .. 32"),
                                 ([8], 4, "at least 16 starts")):
        with pytest.raises(ArgumentError, match=words):
            tune(model, (4,), steps, starts=starts)
    from scorefield.models import MLP

    student = Denoiser(randomised(MLP((4,), width=8, layers=1)), VPSDE())
    student.made_for = CONSISTENCY_MODEL
    with pytest.raises(ArgumentError, match="tuning needs a score model"):
        tune(student, (4,))


def test_between_the_nodes_of_the_dense_run_its_states_are_known_to_fourth_order():
    model, errors = mixture(VPSDE()), []
    with torch.no_grad():
        for steps in (40, 80):
            run = Dense(Starts(lambda batch: model, (4,), 16, 0, 16, "cpu", torch.float64), steps, 1.0)
            assert torch.allclose(run.at(run.times), run.y, rtol=0, atol=1e-12)
            inner = make_sampler("auto", steps=7).times(model)[1:-1]
            finer = Dense(Starts(lambda batch: model, (4,), 16, 0, 16, "cpu", torch.float64), 7 * 60, 1.0)
            errors.append(float((run.at(inner) - finer.y[60:-60:60]).abs().max()))
    assert errors[1] < errors[0] / 8 and errors[1] < 1e-4


def test_the_dense_run_is_that_of_auto_at_order_3():
    model = mixture(VPSDE())
    run = Dense(Starts(lambda batch: model, (4,), 16, 0, 16, "cpu", torch.float64), 20, 1.0)
    auto = ExponentialAdams(order=3, steps=20)(model, run.starts.x_T)
    assert torch.allclose(run.end, auto.x, rtol=0, atol=1e-12) and run.starts.evaluations == 16 * 21
