"""Two data sets as the ends of a bridge."""

import dataclasses

import pytest
import torch

from scorefield.data import from_arrays, load_dataset, make_codec
from scorefield.data.fingerprint import changes, fingerprint
from scorefield.data.pair import paired, resized
from scorefield.numerics.errors import ArgumentError
from scorefield.training.batches import Batches
from scorefield.training.ends import TrainingEnds
from scorefield.training.objectives import DSBM

CPU = torch.device("cpu")


def test_a_pair_has_the_examples_of_both_and_no_labels():
    pair = load_dataset({"dataset": "pair", "source": "swiss_roll:size=50:seed=3", "target": "gaussians8:size=40"})
    alone = load_dataset({"dataset": "swiss_roll", "size": 50, "seed": 3})
    every = torch.arange(50)
    assert torch.equal(pair.train[every][0], alone.train[every][0])
    assert (pair.name, pair.target.name, len(pair.target.train), pair.levels) == ("swiss_roll", "gaussians8", 40, None)
    pictures = paired(*(load_dataset({"dataset": "digits"}),) * 2)
    assert pictures.class_names == () and pictures.train[every][1] == {} and pictures.levels == 17


def test_pictures_of_other_sizes_and_levels_become_bytes_of_one_size():
    k = torch.arange(0, 16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    same = resized(k, 16, None)
    assert torch.equal(same.long(), 17 * k.long()) and torch.equal(resized(k, 16, 4), same)
    assert resized(k, 16, 2).shape == (1, 1, 2, 2) and resized(k, 16, 9).shape == (1, 1, 9, 9)
    flat = torch.full((1, 1, 8, 8), 3, dtype=torch.uint8)
    assert torch.equal(resized(flat, 16, 5).unique(), torch.tensor([51], dtype=torch.uint8))
    small = from_arrays(torch.randint(0, 256, (20, 1, 12, 12), dtype=torch.uint8), name="small")
    pair = paired(load_dataset({"dataset": "digits"}), small, side=6)
    assert pair.shape == pair.target.shape == (1, 6, 6) and pair.levels == pair.target.levels == 256
    assert pair.train[torch.arange(3)][0].shape == (3, 1, 6, 6) and pair.target.name == "small 6x6"


@pytest.mark.parametrize(("source", "target", "side", "match"), [
    ("digits", "patches32", None, r"shape \(1, 8, 8\) and the target 'patches32' of \(3, 32, 32\)"),
    ("digits", "swiss_roll", None, "joins pictures with pictures, or points with points"),
    ("swiss_roll", "gaussians8", 8, "side is for pictures"), ("digits", "digits", 0, "side must lie in"),
    ("nonsense", "digits", None, "unknown source 'nonsense'; choose from digits"),
    ("pair", "digits", None, "unknown source 'pair'"),
    ("swiss_roll:sizes=3", "gaussians8", None, "'swiss_roll' takes size=VALUE, seed=VALUE, got 'sizes=3'"),
    ("swiss_roll:size=x", "gaussians8", None, "size must be a whole number"),
])
def test_ends_that_do_not_fit_are_refused_in_one_line(source, target, side, match, monkeypatch):
    from scorefield.data import datasets

    small = dataclasses.replace(load_dataset({"dataset": "digits"}), name="patches32", shape=(3, 32, 32), levels=17)
    monkeypatch.setitem(datasets.DATASETS, "patches32", datasets.Source(lambda: small, 17))
    with pytest.raises(ArgumentError, match=match) as caught:
        load_dataset({"dataset": "pair", "source": source, "target": target, "side": side})
    assert "\n" not in str(caught.value) and all(name.startswith("data.") for name in caught.value.arguments)


def test_standardised_data_and_a_degradation_are_refused():
    table = from_arrays(torch.randn(30, 2), standardise=True)
    with pytest.raises(ArgumentError, match="standardised by its own mean"):
        paired(table, table)
    with pytest.raises(ArgumentError, match="a bridge has no low_res"):
        load_dataset({"dataset": "pair", "source": "digits", "target": "digits", "degradation": "downsample:factor=2"})


def test_a_step_has_examples_of_both_ends_in_orders_of_their_own():
    x = torch.arange(40.0)[:, None]
    pair = paired(from_arrays(x, x), from_arrays(x, x))
    batches = Batches(pair, make_codec(None), DSBM(), 40, 0, CPU)
    (first, _), (again, _), (second, _) = (batches(step) for step in (0, 0, 1))
    for name, of in (("source", lambda batch: batch.x), ("target", lambda batch: batch.condition["target"])):
        assert torch.equal(of(first), of(again)) and not torch.equal(of(first), of(second)), name
        assert torch.equal(of(first)[:, 0].sort().values, torch.arange(40.0)), name      # an epoch: each once
    assert not torch.equal(first.x, first.condition["target"])


def test_examples_to_simulate_from_are_all_of_them_as_often_as_goes():
    x = torch.arange(10.0)[:, None]
    ends = TrainingEnds(paired(from_arrays(x, x), from_arrays(100 + x, x)), make_codec(None), CPU)
    found = [ends.examples("target", 25, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*found) and sorted((found[0][:, 0] - 100).tolist()).count(3.0) in (2, 3)
    assert set(ends.examples("source", 10, torch.Generator())[:, 0].tolist()) == set(range(10))


def test_another_target_is_seen_as_other_data():
    one, other = (fingerprint(load_dataset({"dataset": "pair", "target": f"gaussians8:size={n}"})) for n in (30, 31))
    assert changes(one, one) == "" and changes(one, other) == "target_train has 31 examples, not 30"
