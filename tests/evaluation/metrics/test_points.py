"""Sliced Wasserstein, energy distance and MMD against closed forms on Gaussians, and what every metric offers."""

import math

import numpy as np
import pytest
import torch
from scipy.special import gamma, hyp1f1
from scipy.stats import wasserstein_distance

from scorefield.data import Points, from_arrays, make_codec
from scorefield.evaluation.metrics import METRICS, Figure, Reference, default_metrics, make_metrics
from scorefield.evaluation.metrics.sliced import directions, squared_w2
from scorefield.numerics.errors import ArgumentError

ALL = [name for name in METRICS if name != "inception_score"]      # which is of networks with classes


def normal(n, dimensions, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_of(train, test=None, **settings):
    return Reference(from_arrays(train, train[:20] if test is None else test), make_codec(None), **settings)


def figure_of(name, samples, reference, batch=700, **settings):
    metric = make_metrics([name], reference, **settings)[name]
    for x in samples.float().split(batch):
        metric.update(x)
    return metric.result()


def mean_distance(means, std):
    """E|z|, z ~ N(mean, std^2 I), for means (n, D): the mean of a noncentral chi distribution."""
    d = means.shape[1]
    squares = means.square().sum(1).numpy() / std**2
    return std * math.sqrt(2) * gamma((d + 1) / 2) / gamma(d / 2) * hyp1f1(-0.5, d / 2, -squares / 2)


def mean_kernel(means, std, h):
    """E exp(-|z|^2 / (2 h^2)), z ~ N(mean, std^2 I)."""
    d, total = means.shape[1], h * h + std * std
    return (h * h / total) ** (d / 2) * np.exp(-means.square().sum(1).numpy() / (2 * total))


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_sliced_wasserstein_of_two_gaussians_is_the_closed_form(dimensions):
    """W_2^2 of N(m, s^2 I) and N(0, I) on a direction is <theta, m>^2 + (s - 1)^2; its mean is |m|^2/D + (s - 1)^2."""
    figure = figure_of("sliced_wasserstein", normal(10_000, dimensions, 1, 0.5, 1.5),
                       reference_of(normal(10_000, dimensions, 2)))
    assert figure.value == pytest.approx(math.sqrt(0.25 + 0.25), abs=0.025)
    assert figure.low < math.sqrt(0.5) < figure.high and figure.high - figure.low < 0.06


def test_in_many_dimensions_there_are_200_orthonormal_directions_and_no_square_matrix():
    theta = directions(20_000, 0)      # a basis would take 3.2 GB
    assert theta.shape == (200, 20_000)
    torch.testing.assert_close(theta @ theta.T, torch.eye(200, dtype=torch.float64))
    assert directions(200, 0).shape == (200, 200) and directions(199, 0).shape == (398, 199)


@pytest.mark.parametrize("dimensions", [1, 2, 5, 7])
def test_the_directions_are_exact_for_means(dimensions):
    theta, mean = directions(dimensions, 3), normal(1, dimensions, 4)[0]
    torch.testing.assert_close(theta.norm(dim=1), torch.ones(len(theta), dtype=torch.float64))
    assert float((theta @ mean).square().mean()) == pytest.approx(float(mean.square().sum()) / dimensions, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 4), (5, 11), (1, 3), (9, 2)])
def test_w2_of_sets_of_any_sizes_is_that_of_the_copies_that_make_them_equal(n, m):
    x, y = normal(1, n, 1).sort(1).values, normal(1, m, 2).sort(1).values
    distance, potential = squared_w2(x, y)
    assert float(distance) == pytest.approx(float((x.repeat_interleave(m, 1) - y.repeat_interleave(n, 1)).square().mean()))
    if math.gcd(n, m) > 1:      # the potential is not unique
        return
    for i in range(n):      # the derivative with respect to the weight of x_i is the potential, less its mean
        nudged = torch.cat([x.repeat_interleave(3000, 1), x[:, i:i + 1]], 1).sort(1).values
        change = (squared_w2(nudged, y)[0] - distance) * (3000 * n + 1)
        assert float(change) == pytest.approx(float((potential - potential.mean())[0, i]), abs=2e-3)


def test_w1_of_scipy_lies_below_our_w2():
    x, y = normal(50, 1, 1), normal(80, 1, 2, 1.0)
    w2 = float(squared_w2(x.T.sort(1).values, y.T.sort(1).values)[0].sqrt())
    assert wasserstein_distance(x[:, 0], y[:, 0]) <= w2 < 1.5


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("name", ["energy", "mmd"])
def test_the_estimate_has_the_closed_form_as_its_mean_and_the_interval_covers_it(name, dimensions):
    """Given the training examples y_j, the mean over samples is 2 mean_j E|x - y_j| - E|x - x'| - mean_jk |y_j - y_k|."""
    y, shift, std, n = normal(150, dimensions, 0).float().double(), 0.3, 1.2, 200
    reference = reference_of(y)
    own = torch.cdist(y, y)
    if name == "energy":
        between, within = mean_distance(shift - y, std).mean(), mean_distance(torch.zeros(1, dimensions), std * 2**0.5)[0]
        truth = 2 * between - within - float(own.sum()) / (150 * 149)
    else:
        h = float(torch.pdist(y).median())
        between, within = mean_kernel(shift - y, std, h).mean(), mean_kernel(torch.zeros(1, dimensions), std * 2**0.5, h)[0]
        truth = within + (float((own**2 / (-2 * h * h)).exp().sum()) - 150) / (150 * 149) - 2 * between
    figures = [figure_of(name, normal(n, dimensions, 100 + seed, shift, std), reference, bootstrap=200, seed=seed)
               for seed in range(120)]
    values = np.array([figure.value for figure in figures])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / math.sqrt(len(values)))
    covered = np.mean([figure.low <= truth <= figure.high for figure in figures])
    assert 0.88 <= covered <= 0.995


@pytest.mark.costly
@pytest.mark.parametrize("name", ["fid", "kid", "sliced_wasserstein", "precision", "recall"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_interval_covers_the_mean_of_the_figure_at_this_number_of_samples(name, shift):
    reference = reference_of(normal(200, 3, 0))
    figures = [figure_of(name, normal(100, 3, 100 + seed, shift), reference, bootstrap=200, seed=seed)
               for seed in range(120)]
    mean = np.mean([figure.value for figure in figures])
    assert 0.86 <= np.mean([figure.low <= mean <= figure.high for figure in figures]) <= 1
    width = np.mean([figure.high - figure.low for figure in figures]) / (2 * 1.96)
    assert width == pytest.approx(np.std([figure.value for figure in figures]), rel=1.0 if name == "recall" else 0.5)


@pytest.mark.parametrize("name", ["fid", "kid", "sliced_wasserstein", "energy", "mmd", "recall"])
def test_the_influence_of_a_sample_is_what_leaving_it_out_changes(name):
    metric = make_metrics([name], reference_of(normal(150, 2, 0)))[name]
    x, n = normal(120, 2, 1, 0.5), 120
    value, influence = metric.measure(x)
    change = torch.tensor([metric.measure(torch.cat([x[:i], x[i + 1:]]))[0] - value for i in range(n)], dtype=torch.float64)
    expected = -(n - 1) * (change - change.mean())
    assert influence.dtype == torch.float64 and float(influence.mean()) == pytest.approx(0, abs=1e-9)
    assert float((influence - expected).std() / expected.std()) < (1e-9 if name == "recall" else 0.06)


def test_large_sets_are_compared_in_groups_without_bias(monkeypatch):
    import scorefield.evaluation.metrics.kernels as kernels
    x, y = normal(400, 2, 1, 0.5), normal(300, 2, 2)
    whole = figure_of("energy", x, reference_of(y))
    monkeypatch.setattr(kernels, "GROUP", 100)
    groups = figure_of("energy", x, reference_of(y))
    parts = [figure_of("energy", x[i::4], reference_of(y[i::4])).value for i in range(4)]
    assert groups.value == pytest.approx(np.mean(parts), rel=1e-6)
    assert groups.value != whole.value and groups.low < whole.value < groups.high
    assert groups.high - groups.low == pytest.approx(whole.high - whole.low, rel=0.3)


def test_few_training_examples_make_no_empty_groups(monkeypatch):
    import scorefield.evaluation.metrics.kernels as kernels
    monkeypatch.setattr(kernels, "GROUP", 10)
    assert math.isfinite(figure_of("energy", normal(60, 2, 1), reference_of(normal(5, 2, 0))).value)


@pytest.mark.parametrize("name", ALL)
def test_batches_do_not_matter(name):
    samples, reference = normal(300, 3, 1, 0.2), reference_of(normal(400, 3, 2), normal(200, 3, 3))
    whole, parts = (figure_of(name, samples, reference, batch) for batch in (300, 7))
    assert whole == parts and isinstance(whole, Figure)
    assert whole.samples == 300 and whole.reference == 400 and whole.floor_samples == 200
    assert whole.low <= whole.value <= whole.high


@pytest.mark.parametrize("name", ALL)
def test_the_floor_is_the_figure_of_as_many_held_out_examples(name):
    train, test = normal(400, 3, 2), normal(200, 3, 3)
    figure = figure_of(name, normal(80, 3, 1, 0.2), reference_of(train, test))
    assert figure.floor_samples == 80
    assert figure.floor == figure_of(name, test[torch.arange(80) * 200 // 80], reference_of(train, test)).value
    assert figure_of(name, normal(80, 3, 1), reference_of(train, test[:4])).floor is None      # too few are held out


@pytest.mark.parametrize("name", ALL)
def test_too_few_samples_are_refused_with_the_minimum(name):
    with pytest.raises(ArgumentError, match=f"{name} needs at least {METRICS[name].minimum} samples, got 1"):
        figure_of(name, normal(1, 2, 1), reference_of(normal(400, 2, 2)))


def test_without_replicates_there_is_no_interval_and_fid_keeps_sums_alone():
    samples, reference = normal(300, 3, 1, 0.2), reference_of(normal(400, 3, 2))
    metric = make_metrics(["fid"], reference, bootstrap=0)["fid"]
    for x in samples.float().split(50):
        metric.update(x)
    figure = metric.result()
    assert metric._rows == [] and math.isnan(figure.low) and math.isnan(figure.high)
    assert figure.value == pytest.approx(figure_of("fid", samples, reference).value, rel=1e-9)


def test_points_are_compared_as_the_model_sees_them():
    y = normal(300, 2, 2) * torch.tensor([100.0, 0.01]) + 7
    dataset = from_arrays(y)
    codec = Points.standardising(dataset.train.data)
    figure = figure_of("energy", normal(200, 2, 1), Reference(dataset, codec))
    assert abs(figure.value) < 0.05


@pytest.mark.parametrize(("samples", "message"), [
    (torch.full((60, 2), math.nan), "sample 0 is not finite"),
    (torch.zeros(60, 3), r"shape \(3,\), but the examples of data set 'arrays' have \(2,\)"),
    (torch.zeros(60, 2, dtype=torch.uint8), "must be reals, as the model draws them, got torch.uint8")])
def test_samples_that_cannot_be_compared_are_refused(samples, message):
    with pytest.raises(ArgumentError, match=message):
        make_metrics(["energy"], reference_of(normal(60, 2, 2)))["energy"].update(samples)


def test_the_sample_that_is_not_finite_is_named_by_its_number_among_all():
    metric = make_metrics(["energy"], reference_of(normal(60, 2, 2)))["energy"]
    metric.update(torch.zeros(50, 2))
    with pytest.raises(ArgumentError, match="sample 53 is not finite"):
        metric.update(torch.tensor([[0.0, 0.0]] * 3 + [[0.0, math.inf]]))


def test_an_unknown_metric_lists_those_that_exist():
    with pytest.raises(ArgumentError, match="unknown metric 'fidd'; choose from fid, kid.*did you mean 'fid'"):
        make_metrics(["fidd"], reference_of(normal(60, 2, 2)))


def test_points_get_the_metrics_of_points_by_default():
    assert default_metrics(from_arrays(normal(60, 2, 2)), None) == ("sliced_wasserstein", "energy", "mmd", "neighbours")


def test_equal_training_examples_leave_mmd_without_a_width():
    with pytest.raises(ArgumentError, match="leave mmd out"):
        figure_of("mmd", normal(60, 2, 1), reference_of(torch.ones(50, 2)))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_new_points_count_as_copies_with_probability_3_to_the_minus_d(dimensions):
    rng = torch.Generator().manual_seed(0)
    train, samples = torch.rand(8000, dimensions, generator=rng), 0.1 + 0.8 * torch.rand(4000, dimensions, generator=rng)
    figure = figure_of("neighbours", samples, reference_of(train))
    assert figure.low < 3.0**-dimensions < figure.high


def test_few_training_examples_are_refused_where_neighbours_lack_and_else_compared():
    few = reference_of(normal(3, 2, 0))
    with pytest.raises(ArgumentError, match="3 nearest neighbours need at least 4 training examples, got 3"):
        figure_of("precision", normal(60, 2, 1), few)
    for name in ("energy", "kid", "fid", "neighbours"):
        assert math.isfinite(figure_of(name, normal(60, 2, 1), few).value)


def test_copies_of_training_examples_are_found_and_paired():
    train = normal(500, 20, 0).float()
    samples = torch.cat([train[40:60], train[90:100] + 0.01, normal(70, 20, 1).float()])
    metric = make_metrics(["neighbours"], reference_of(train))["neighbours"]
    for x in samples.split(30):
        metric.update(x)
    distances, index = metric.pairs()
    assert metric.result().value == pytest.approx(0.30)
    assert index[:30, 0].tolist() == [*range(40, 60), *range(90, 100)] and distances[:20, 0].eq(0).all()
    exact = torch.cdist(samples.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    torch.testing.assert_close(distances, exact.values[:, :2])
    assert torch.equal(index[30:], exact.indices[30:, :2])
