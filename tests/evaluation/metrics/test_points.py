"""Sliced Wasserstein, energy distance and MMD against closed forms on Gaussians, and what every metric offers."""

import math

import pytest
import torch

from scorefield.data import from_arrays, make_codec
from scorefield.evaluation.metrics import METRICS, Figure, Reference, make_metrics
from scorefield.numerics.errors import ArgumentError


def normal(n, dimensions, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_of(train, test=None, **settings):
    return Reference(from_arrays(train, train[:20] if test is None else test), make_codec(None), **settings)


def figure_of(name, samples, reference, batch=700, **settings):
    metric = make_metrics([name], reference, **settings)[name]
    for x in samples.split(batch):
        metric.update(x)
    return metric.result()


def test_sliced_wasserstein_of_two_gaussians_is_the_closed_form():
    """W_2^2 of N(m, s^2 I) and N(0, I) on a direction is <theta, m>^2 + (s - 1)^2; its mean is |m|^2/D + (s - 1)^2."""
    for dimensions in (1, 2, 5):
        figure = figure_of("sliced_wasserstein", normal(20_000, dimensions, 1, 0.5, 1.5),
                           reference_of(normal(20_000, dimensions, 2)))
        assert figure.value == pytest.approx(math.sqrt(0.25 + 0.25), abs=0.02)
        assert figure.low < figure.value < figure.high and figure.high - figure.low < 0.05


@pytest.mark.parametrize("name", ["sliced_wasserstein", "energy", "mmd"])
def test_batches_do_not_matter(name):
    samples, reference = normal(300, 3, 1, 0.2), reference_of(normal(400, 3, 2), normal(200, 3, 3))
    whole, parts = (figure_of(name, samples, reference, batch) for batch in (300, 7))
    assert whole == parts and isinstance(whole, Figure)
    assert whole.samples == 300 and whole.reference == 400 and whole.floor_samples == 200


@pytest.mark.parametrize("name", [name for name in METRICS if name != "inception_score"])
def test_too_few_samples_are_refused_with_the_minimum(name):
    with pytest.raises(ArgumentError, match=f"{name} needs at least {METRICS[name].minimum} samples, got 1"):
        figure_of(name, normal(1, 2, 1), reference_of(normal(400, 2, 2)))
