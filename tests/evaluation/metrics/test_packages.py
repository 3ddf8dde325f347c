"""The metrics of features agree with the reference packages on the same features: torchmetrics and prdc."""

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from scorefield.data import from_arrays, make_codec
from scorefield.evaluation.metrics import Features, Reference, make_metrics
from scorefield.evaluation.metrics.frechet import Moments, frechet, root_of

WIDTH = 24


def pictures(n, seed, contrast=1.0):
    """(n, 1, 6, 6) uint8, neighbours alike."""
    noise = torch.randn(n, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 4, 1) * 160 * contrast
    return (smooth + 128).clamp(0, 255).to(torch.uint8)


class Network(torch.nn.Module):
    """A fixed random network. Its features are of the size of Inception's, near 0.5."""

    num_features = WIDTH

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(36, WIDTH, generator=generator) / 6)

    def forward(self, x):
        return torch.relu(x.flatten(1).double() / 64 @ self.weight.double()).float()


class Logits(Network):
    def forward(self, x):
        return super().forward(x)[:, :10]


@pytest.fixture(scope="module")
def case():
    """Samples, training examples, and our figures."""
    samples, train = pictures(1300, 1, 0.9), pictures(900, 2)
    network = Network()
    features = Features(lambda x: (network(x), network(x)[:, :10]), "random", classes=10)
    reference = Reference(from_arrays(train, pictures(200, 3)), make_codec(256), features)
    metrics = make_metrics(["fid", "kid", "precision", "recall", "inception_score"], reference)
    for metric in metrics.values():
        for x in samples.split(256):
            metric.update(x)
    return samples, train, {name: metric.result() for name, metric in metrics.items()}


def test_fid_is_that_of_torchmetrics(case):
    samples, train, figures = case
    oracle = FrechetInceptionDistance(Network()).set_dtype(torch.float64)
    oracle.update(samples, real=False)
    oracle.update(train, real=True)
    assert figures["fid"].value == pytest.approx(float(oracle.compute()), rel=1e-6)


def test_kid_is_that_of_torchmetrics_on_one_subset_of_everything(case):
    """Their subsets are drawn at random, so only that of all elements is the same; it takes as many of both."""
    samples, train, _ = case
    oracle = KernelInceptionDistance(Network(), subsets=1, subset_size=900)
    oracle.update(samples[:900], real=False)
    oracle.update(train, real=True)
    reference = Reference(from_arrays(train, train[:50]), make_codec(256), Features(Network()))
    metric = make_metrics(["kid"], reference)["kid"]
    metric.update(samples[:900])
    assert metric.result().value == pytest.approx(float(oracle.compute()[0]), rel=1e-3)


def test_the_inception_score_is_that_of_torchmetrics(case):
    samples, _, figures = case
    oracle = InceptionScore(Logits(), splits=1)
    oracle.update(samples)
    assert figures["inception_score"].value == pytest.approx(float(oracle.compute()[0]), rel=1e-5)


def test_precision_and_recall_are_those_of_prdc(case, capsys):
    samples, train, figures = case
    with torch.no_grad():
        oracle = prdc.compute_prdc(Network()(train).numpy(), Network()(samples).numpy(), nearest_k=3)
    assert figures["precision"].value == pytest.approx(oracle["precision"], rel=1e-3)
    assert figures["recall"].value == pytest.approx(oracle["recall"], rel=1e-3)
    assert 0.1 < oracle["recall"] < 0.999 and 0.1 < oracle["precision"] < 0.999


@pytest.mark.parametrize("n", [500, 30])
def test_the_trace_in_fid_is_that_of_scipy_s_matrix_root_also_for_fewer_samples_than_features(n):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(m, 40, generator=generator, dtype=torch.float64) @ torch.randn(40, 40, generator=generator).double()
            for m in (n, 600))
    mean, covariance = (torch.from_numpy(np.asarray(a)) for a in (x.mean(0), np.cov(x.T.numpy())))
    to_mean, to_covariance = y.mean(0), torch.from_numpy(np.cov(y.T.numpy()))
    root = scipy.linalg.sqrtm(covariance.numpy() @ to_covariance.numpy()).real.trace()
    expected = (mean - to_mean).square().sum() + covariance.trace() + to_covariance.trace() - 2 * root
    moments = Moments()
    for rows in x.split(7):
        moments.add(rows)
    distance, carry = frechet(*moments.result(), to_mean, to_covariance, root_of(to_covariance))
    assert distance == pytest.approx(float(expected), rel=1e-7)
    if n > 40:
        torch.testing.assert_close(carry @ covariance @ carry, to_covariance)      # it carries one Gaussian to the other
