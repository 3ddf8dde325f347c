"""Restorations side by side: what they cost, how they are judged, and their page."""

import csv
import json

import pytest
import torch

from scorefield.data import make_codec
from scorefield.evaluation.comparison.restorations import compare_restorations, energy_score
from scorefield.evaluation.restore import Measured, with_noise
from scorefield.guidance.operators import make_operator
from scorefield.models import FullMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

EVENT, NOISE, M = (1, 4, 4), 0.3, 12


def gaussian():
    """Data whose elements depend on each other, so that only methods that know how they do are exact."""
    place = torch.arange(16, dtype=torch.float64)
    covariance = 0.25 * torch.exp(-(place[:, None] - place).abs() / 6)
    return FullMixture(VPSDE(), torch.zeros(1, 16, dtype=torch.float64), covariance[None])


@pytest.fixture(scope="module")
def parts():
    model, operator = gaussian(), make_operator("mask:half=right", EVENT)
    truth = model.sample(M, generator=torch.Generator().manual_seed(3)).reshape(M, *EVENT).float()
    return model, Measured(operator, with_noise(operator(truth), NOISE), NOISE), truth


@pytest.fixture(scope="module")
def compared(parts, tmp_path_factory):
    made = compare_restorations(*parts, make_codec(17), ("twisted_smc:particles=16", "ddim:eta=1.0", "heun"),
                                ("tmpd", "replacement"), (90, 320), samples=8, bootstrap=200, title="Halves", progress=False)
    return made, made.write(tmp_path_factory.mktemp("compared") / "compare")


def test_every_method_runs_by_every_sampler_and_keeps_to_the_budgets(compared):
    made, _ = compared
    assert made.names == tuple(f"{method} by {sampler}" for sampler in ("twisted_smc:particles=16", "ddim:eta=1.0", "heun")
                               for method in ("tmpd", "replacement"))
    assert len(made.rows) == 12 and not made.left_out
    for row in made.rows:
        if "twisted_smc" in row.name:      # an evaluation more than steps, and those of resampled particles
            assert row.sampler.steps == row.budget // 16 - 1 and row.nfe >= 16 * (row.sampler.steps + 1)
        else:
            assert row.nfe == 8 * (2 * row.sampler.steps - 1 if "heun" in row.name else row.sampler.steps) <= row.budget
            assert row.nfe + 16 > row.budget


def test_the_exact_method_is_recommended_and_a_wrong_one_is_worse(compared):
    made, _ = compared
    score = {(row.name, row.budget): row.figures["energy_score"].value for row in made.rows}
    assert made.recommendation.row.name.startswith("tmpd")
    for sampler in ("ddim:eta=1.0", "heun"):
        assert score[f"tmpd by {sampler}", 320] < score[f"replacement by {sampler}", 320]
    assert "12 measurements each" in str(made.recommendation)


def test_the_energy_score_is_least_for_draws_from_the_posterior():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4000, 3, generator=generator)
    draws = {scale: scale * torch.randn(4000, 8, 3, generator=generator) for scale in (0.3, 1.0, 2.0)}
    score = {scale: float(energy_score(x, truth).mean()) for scale, x in draws.items()}
    assert score[1.0] < score[0.3] and score[1.0] < score[2.0]
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])      # both at distance 1 of the truth, and root 2 of each other
    assert float(energy_score(x, torch.zeros(1, 2))) == pytest.approx((1 - 2**0.5 / 2) / 2**0.5)


def test_the_page_and_its_files_speak_of_restorations(compared):
    made, path = compared
    page = path.read_text()
    for text in ("Restorations compared", "Method and sampler", "Milliseconds a measurement", "Energy score"):
        assert text in page
    assert "exact flow" not in page and "held-out examples" not in page and "{{" not in page
    rows = list(csv.DictReader((path.parent / "results.csv").open()))
    assert [row["sampler"] for row in rows] == [row.name for row in made.rows]
    record = json.loads((path.parent / "results.json").read_text())
    assert record["counted"] == "measurements" and set(record["rows"][0]["figures"]) == set(made.metrics)


def test_a_row_of_the_picture_has_truth_measurement_mean_and_answers(compared, parts):
    made, _ = compared
    _, problem, truth = parts
    shown = made.rows[0].shown.unflatten(0, (8, 8))
    assert torch.equal(shown[:, 0], truth[:8]) and torch.equal(shown[:, 1], problem.simple()[:8])


@pytest.mark.parametrize(("change", "says"), [
    ({"samples": 1}, "at least 2 answers"), ({"methods": ("guess",)}, "unknown method 'guess'"),
    ({"methods": ("tmpd", "tmpd")}, "methods must be different"), ({"metrics": ("fid",)}, "unknown metric 'fid'"),
    ({"samplers": ("dim",)}, "unknown sampler 'dim'"), ({"budgets": (0,)}, "whole numbers of evaluations"),
    ({"budgets": (1,)}, "nothing could be run")])
def test_what_cannot_be_compared_is_refused(parts, change, says):
    settings = {"samplers": ("ddim",), "methods": ("ddnm",), "budgets": (80,)} | change
    with pytest.raises(ArgumentError, match=says):
        compare_restorations(*parts, make_codec(17), progress=False, **settings)
