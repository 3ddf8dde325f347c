"""The cache of a data set's statistics: it saves work, belongs to contents, and is never believed for others."""

import math

import numpy as np
import pytest
import torch

from scorefield.data import Points, from_arrays, make_codec
from scorefield.evaluation.metrics import Features, Reference, distances, kernels, make_metrics, sliced
from scorefield.numerics.errors import ArgumentError


def pictures(n, seed):
    return torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Counting(torch.nn.Module):
    """A linear network that counts the pictures that it was given."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(scale * torch.randn(16, 5, generator=torch.Generator().manual_seed(1)) / 255)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return x.flatten(1).float() @ self.weight


TRAIN, TEST, SAMPLES = pictures(120, 1), pictures(80, 2), pictures(90, 3)
NAMES = ["fid", "kid", "precision", "recall", "neighbours"]


def figures(cache, network=None, train=TRAIN, test=TEST, **settings):
    reference = Reference(from_arrays(train, test), make_codec(256), Features(network or Counting()), cache, **settings)
    metrics = make_metrics(NAMES, reference, bootstrap=20)
    for metric in metrics.values():
        metric.update(SAMPLES)
    return {name: metric.result() for name, metric in metrics.items()}


def seen(*arguments, **settings):
    network = Counting()
    figures(*arguments, network=network, **settings)
    return network.seen


def test_metrics_of_one_reference_share_the_features_of_a_batch():
    assert seen(None) == 90 + 120 + 80


def test_a_second_evaluation_reads_the_statistics_from_the_cache(tmp_path):
    first = figures(tmp_path)
    probes = 16
    assert seen(tmp_path) == 90 + probes and figures(tmp_path) == first


def test_a_changed_example_is_noticed(tmp_path):
    figures(tmp_path)
    changed = TRAIN.clone()
    changed[7, 0, 2, 2] ^= 1
    assert figures(tmp_path, train=changed) == figures(None, train=changed) != figures(tmp_path)


def test_other_weights_are_noticed(tmp_path):
    figures(tmp_path)
    assert figures(tmp_path, Counting(1.1)) == figures(None, Counting(1.1)) != figures(tmp_path)


def test_a_function_without_weights_is_told_apart_by_what_it_gives(tmp_path):
    def first(x):
        return x.flatten(1).float()

    def second(x):
        return x.flatten(1).float().square()

    assert figures(tmp_path, first) == figures(None, first)
    assert figures(tmp_path, second) == figures(None, second)


def test_another_part_of_the_training_examples_is_noticed(tmp_path):
    figures(tmp_path)
    few = figures(tmp_path, n=60)
    assert few == figures(None, n=60) and few["fid"].reference == 60
    assert few["fid"].floor_samples == 80


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""),
                                    lambda file: file.write_bytes(file.read_bytes()[:-200]),
                                    lambda file: file.write_bytes(file.read_bytes().replace(b"\0", b"\1")),
                                    lambda file: np.savez(file, key=np.array("another"), value=np.array(7.0))])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    first = figures(tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) > 5
    for file in files:
        damage(file)
    assert figures(tmp_path) == first and figures(tmp_path) == first


def test_nothing_but_whole_files_is_left(tmp_path):
    figures(tmp_path)
    assert all(file.suffix == ".npz" and not file.name.startswith(".") for file in tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_a_warning_and_the_figures_are_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert figures(tmp_path / "file") == figures(None)


def test_another_codec_of_points_is_noticed(tmp_path):
    y = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))

    def energy(cache, codec):
        metric = make_metrics(["energy"], Reference(from_arrays(y, y[:40]), codec, cache=cache))["energy"]
        metric.update(y[:50] + 0.1)
        return metric.result()

    plain = energy(tmp_path, Points())
    assert energy(tmp_path, Points(0.0, 2.0)) == energy(None, Points(0.0, 2.0)) != plain


def test_a_tensor_that_is_filled_again_is_a_new_batch():
    reference = Reference(from_arrays(TRAIN, TEST), make_codec(256), Features(Counting()))
    metric = make_metrics(["fid"], reference)["fid"]
    buffer = SAMPLES[:45].clone()
    metric.update(buffer)
    buffer.copy_(SAMPLES[45:])
    metric.update(buffer)
    assert metric.result().value == pytest.approx(figures(None)["fid"].value, rel=1e-6)


def test_fid_alone_keeps_no_features_of_the_training_examples():
    reference = Reference(from_arrays(TRAIN, TEST[:10]), make_codec(256), Features(Counting()))
    metric = make_metrics(["fid"], reference, bootstrap=0)["fid"]
    metric.update(SAMPLES)
    assert math.isfinite(metric.result().value)
    assert not any(name.startswith("network") for name in reference._known)


@pytest.mark.parametrize("n", [0, 1])
def test_a_reference_needs_two_examples(n):
    with pytest.raises(ArgumentError, match="at least 2"):
        Reference(from_arrays(TRAIN, TEST), make_codec(256), n=n)




@pytest.mark.parametrize("dimensions", [16, 192])
@pytest.mark.parametrize("same", [False, True])
def test_nearest_neighbours_do_not_depend_on_the_blocks(monkeypatch, dimensions, same):
    y = torch.randint(0, 256, (70, dimensions), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = y if same else y[:9].roll(1, 1)
    known = torch.cdist(x.double() / 255, y.double() / 255)
    if same:
        known.fill_diagonal_(math.inf)
    for elements in (2**26, 23 * dimensions, dimensions):
        monkeypatch.setattr(distances, "ELEMENTS", elements)
        found, index = distances.nearest(x, y, 3, torch.device("cpu"), same, reals=lambda rows: rows.double() / 255)
        wanted = known.topk(3, largest=False)
        assert torch.allclose(found, wanted.values, rtol=1e-12) and index.equal(wanted.indices)


def test_metrics_of_pictures_keep_bytes_and_do_not_depend_on_the_blocks(monkeypatch):
    def found():
        reference = Reference(from_arrays(TRAIN, TEST), make_codec(256))
        metrics = make_metrics(["sliced_wasserstein", "energy", "mmd", "neighbours"], reference, bootstrap=20)
        for metric in metrics.values():
            metric.update(SAMPLES)
        assert reference.vectors("train", "data").dtype == torch.uint8
        assert all(rows.dtype == torch.uint8 for metric in metrics.values() for rows in metric._rows)
        return {name: metric.result().value for name, metric in metrics.items()}

    whole = found()
    for module in (distances, sliced):
        monkeypatch.setattr(module, "ELEMENTS", 7 * 16)
    monkeypatch.setattr(kernels, "BLOCK", 11)
    assert found() == pytest.approx(whole, rel=1e-9)
