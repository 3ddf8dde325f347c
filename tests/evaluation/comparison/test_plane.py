"""Points in the plane: every column has room, whatever its scale, and the ticks say the units of the data."""

import itertools
import re

import numpy as np
import pytest
import torch

from scorefield.data import Points, from_arrays
from scorefield.evaluation import compare, plots
from scorefield.evaluation.page import plane, sheets, svg
from scorefield.models import GaussianMixture
from scorefield.sde_lib import VPSDE

MEAN, STD = torch.tensor([5000.0, 0.02]), torch.tensor([1000.0, 0.01])      # of columns such as an income and a rate


@pytest.fixture(scope="module")
def of_table(tmp_path_factory):
    """A comparison of a standardised table whose columns' scales differ by 1e5; the model is exact."""
    model = GaussianMixture(VPSDE(), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.full((2,), 0.1))
    draw = torch.Generator().manual_seed(3)
    train, test = (model.sample(500, generator=draw).float() * STD + MEAN for _ in range(2))
    codec = Points(tuple(MEAN.tolist()), tuple(STD.tolist()))
    made = compare(model, from_arrays(train, test), ("auto",), (8,), n=200, codec=codec, bootstrap=20, likelihood=0,
                   metrics=("energy",), progress=False)
    made.write(tmp_path_factory.mktemp("of_table") / "compare")
    return model, made, codec, tmp_path_factory.getbasetemp()


def spread_of(mask):
    """The shares of the height and the width that the marked pixels have."""
    rows, columns = mask.nonzero()
    return np.ptp(rows) / len(mask), np.ptp(columns) / mask.shape[1]


def test_points_fill_the_picture_along_both_axes(of_table):
    _, made, codec, _ = of_table
    picture = sheets.Plane.around(codec, made.behind)(made.rows[0].shown)
    assert min(spread_of(np.asarray(picture) == 2)) > 0.3
    identity = sheets.Plane.around(Points(), codec.decode(made.behind))      # without a codec that standardises, too
    assert min(spread_of(np.asarray(identity(codec.decode(made.rows[0].shown))) == 2)) > 0.6


def test_the_density_shown_is_that_of_the_model_at_its_places(of_table):
    model, made, codec, _ = of_table
    left, right, bottom, top = sheets.Plane.around(codec, made.behind).reach
    places = torch.tensor([(left + (j + 0.5) / 72 * (right - left), top - (i + 0.5) / 72 * (top - bottom))
                           for i, j in itertools.product((20, 36, 50), (15, 36, 60))])
    shown = torch.stack([made.extras.density[i, j] for i, j in itertools.product((20, 36, 50), (15, 36, 60))])
    torch.testing.assert_close(shown, model.log_prob(places).double(), atol=0.05, rtol=0.02)
    assert min(spread_of((made.extras.density > made.extras.density.max() - 3).numpy())) > 0.15


def test_the_ticks_are_in_the_units_of_the_data(of_table):
    _, made, codec, _ = of_table
    window = sheets.Plane.around(codec, made.behind)
    left, right, bottom, top = window.reach
    for ticks, low, high, mean, std in ((window.ticks[0], left, right, 5000, 1000),
                                        (window.ticks[1], bottom, top, 0.02, 0.01)):
        assert len(ticks) >= 3
        for share, text in ticks:
            assert float(text) == pytest.approx(mean + std * (low + share * (high - low)), abs=1e-3 * std)


def test_ticks_of_numbers_far_from_zero_are_told_apart():
    ticks = svg.ticks_of(1.7e9, 1.7e9 + 1000)
    assert len({text for _, text in ticks}) == len(ticks) >= 3
    assert all(float(text) == pytest.approx(1.7e9 + share * 1000, abs=1) for share, text in ticks)
    assert svg.ticks_of(1.0, 1.0) == []


def test_paths_fill_their_picture(of_table):
    _, made, _, _ = of_table
    drawn = plane.paths(made)
    places = np.array([[float(v) for v in pair] for pair in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", drawn)])
    assert (np.ptp(places, axis=0) > 0.6 * plane.SIZE).all()
    assert ">4000<" in drawn and ">0.04<" in drawn      # ticks


def test_axes_of_like_scale_have_equal_units_and_others_their_own():
    left, right, bottom, top = sheets.window(np.zeros(2), np.array([2.0, 1.0]), 0.1)
    assert right - left == pytest.approx(top - bottom) == pytest.approx(2.4)
    left, right, bottom, top = sheets.window(np.zeros(2), np.array([1e5, 1.0]), 0.1)
    assert (right - left, top - bottom) == (pytest.approx(1.2e5), pytest.approx(1.2))
    assert sheets.window(np.zeros(2), np.array([1.0, 0.0]), 0.1)[2:] == (-1.0, 1.0)


@pytest.mark.parametrize("draw", [
    lambda x: plots.points_over_data(x, x), lambda x: plots.trajectory_panels(x[None].repeat(3, 1, 1), (1.0, 0.5, 0.0))])
def test_plots_of_points_and_trajectories_give_each_axis_its_room(draw):
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * STD + MEAN
    picture = draw(x).double()
    red = (picture[0] > picture[1] + 60).numpy()
    assert spread_of(red)[0] > 0.5
