"""The recommendation follows its rule, and is honest about intervals that overlap."""

from types import SimpleNamespace

import pytest

from scorefield.evaluation.comparison.recommend import recommend
from scorefield.evaluation.metrics import Figure


def rows(*made, floor=1.0, better="lower"):
    """(name, nfe, value, half width of the interval), ..."""
    return [SimpleNamespace(name=name, nfe=nfe, matched={}, figures={
        "fid": Figure(value, value - half, value + half, floor, 500, 1000, 500, better)}) for name, nfe, value, half in made]


def test_the_fewest_evaluations_that_reach_the_floor_are_recommended():
    result = recommend(rows(("auto", 5, 3.0, 0.2), ("auto", 10, 1.1, 0.2), ("auto", 20, 1.05, 0.2), ("ddim", 10, 2.0, 0.2),
                            ("ddim", 20, 1.15, 0.2), ("ddim", 50, 1.0, 0.2), ("sde", 100, 4.0, 0.1)), "fid")
    assert (result.row.name, result.row.nfe, result.at_floor) == ("auto", 10, True)
    assert result.sentences[0].startswith("Use auto with 10 evaluations: FID is at the floor, 1.1 [0.9, 1.3] of 500 samples "
                                          "against 1 of 500 held-out examples.")
    assert result.sentences[1].startswith("More evaluations do not help measurably")
    assert "ddim is at the floor from 20 evaluations on" in str(result)
    assert "sde is not at the floor with 100 evaluations" in str(result)
    assert "500 samples" in result.sentences[-1] and "does not make them equal" in result.sentences[-1]


def test_without_a_row_at_the_floor_it_takes_what_loses_less_than_the_best_is_uncertain():
    made = rows(("auto", 5, 2.45, 0.3), ("auto", 10, 2.2, 0.3), ("auto", 20, 2.0, 0.3), ("sde", 100, 3.0, 0.1))
    result = recommend(made, "fid")
    assert (result.row.nfe, result.at_floor) == (10, False)      # 2.45 lies outside [1.7, 2.3], though intervals overlap
    assert result.sentences[0].startswith("No sampler reaches the floor, 1 of 500 held-out examples")
    assert "sde is not as good with 100 evaluations: 3 [2.9, 3.1]" in str(result)


def test_more_evaluations_that_help_are_said_to():
    made = rows(("auto", 5, 1.1, 0.15), ("auto", 10, 0.9, 0.02))
    made[0].figures["fid"] = Figure(0.915, 0.912, 0.918, 1.0, 500, 1000, 500, "lower")
    made[1].figures["fid"] = Figure(0.9, 0.89, 0.91, 1.0, 500, 1000, 500, "lower")
    assert recommend(made, "fid").row.nfe == 10
    made[1].figures["fid"] = Figure(0.9, 0.85, 0.911, 1.0, 500, 1000, 500, "lower")
    made[0].figures["fid"] = Figure(0.911, 0.9105, 0.9115, 1.0, 500, 1000, 500, "lower")
    assert recommend(made, "fid").row.nfe == 5


def test_higher_may_be_better():
    made = rows(("auto", 5, 0.5, 0.05), ("auto", 10, 0.88, 0.05), ("auto", 20, 0.9, 0.05), floor=0.92, better="higher")
    result = recommend(made, "fid")
    assert result.row.nfe == 10 and result.at_floor


def test_without_a_floor_or_intervals_it_says_so():
    nan = float("nan")
    made = rows(("auto", 5, 2.0, nan), ("auto", 10, 1.0, nan), floor=None)
    result = recommend(made, "fid")
    assert result.row.nfe == 10 and not result.at_floor
    assert "no floor" in str(result) and "no intervals" in str(result)


def test_equal_evaluations_are_decided_by_the_value():
    result = recommend(rows(("unipc", 10, 1.2, 0.3), ("auto", 10, 1.1, 0.3)), "fid")
    assert result.row.name == "auto"


def test_no_figure_means_no_recommendation():
    result = recommend(rows(("auto", 5, float("nan"), 0.1)), "fid")
    assert result.row is None and "none is recommended" in str(result)


@pytest.mark.parametrize("values, words", [((1.0, 3.0), "but is not with 20"), ((3.0, 1.0), "from 20 evaluations on")])
def test_a_sampler_that_loses_its_quality_again_is_told(values, words):
    made = rows(("auto", 5, 1.0, 0.1), ("heun", 10, values[0], 0.1), ("heun", 20, values[1], 0.1))
    assert words in str(recommend(made, "fid"))


@pytest.mark.parametrize("better, value, reaches", [("lower", 0.9, True), ("lower", 1.1, False), ("higher", 1.1, True),
                                                    ("higher", 0.9, False)])
def test_without_intervals_the_values_are_compared_with_the_floor_and_it_says_so(better, value, reaches):
    nan = float("nan")
    result = recommend(rows(("auto", 5, value, nan), ("ddim", 5, 1 + 2 * (value - 1) * (-1) ** reaches, nan), better=better),
                       "fid")
    assert result.at_floor is reaches and "no intervals" in result.sentences[-1]
    words = "no worse than the floor (values alone" if reaches else "No sampler has a value that reaches the floor"
    assert words in result.sentences[0] and "measurably" not in str(result)


def test_a_biased_metric_is_judged_by_as_many_samples_as_the_floor_has():
    made = rows(("auto", 5, 20.0, 1.0), ("auto", 10, 19.5, 1.0), floor=30.0)      # of 1000 samples; the floor of 360
    for row, value in zip(made, (40.0, 30.5), strict=True):
        figure = row.figures["fid"]
        row.figures["fid"] = Figure(figure.value, figure.low, figure.high, 30.0, 1000, 1437, 360, "lower")
        row.matched["fid"] = Figure(value, value - 1, value + 1, 30.0, 360, 1437, 360, "lower")
    result = recommend(made, "fid")
    assert (result.row.nfe, result.at_floor) == (10, True)
    assert result.sentences[0] == ("Use auto with 10 evaluations: FID is at the floor, 30.5 [29.5, 31.5] of the first 360 "
                                   "samples against 30 of 360 held-out examples; of all 1,000 samples it is 19.5 [18.5, "
                                   "20.5].")
    made[1].matched["fid"] = Figure(40.0, 39.0, 41.0, 30.0, 360, 1437, 360, "lower")
    result = recommend(made, "fid")
    assert not result.at_floor
    assert result.sentences[0].startswith("No sampler reaches the floor, 30 of 360 held-out examples")
