"""Scores in batches that are kept, shared and merged."""

import csv
import math

import numpy as np
import pytest
import torch

from scorefield.data import Dataset, load_images, make_codec
from scorefield.evaluation import Evaluation, auroc, score
from scorefield.evaluation.score import write_csv
from scorefield.models import GaussianMixture
from scorefield.numerics.processes import World
from scorefield.sde_lib import VPSDE

QUICK = {"method": "exponential", "steps": 12, "progress": False}
CODEC = make_codec(17)
MODEL = GaussianMixture(VPSDE(), torch.zeros(1, 16), torch.tensor([0.3]))


def noise(n=10, levels=17):
    k = torch.randint(0, levels, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", k, k, (1, 4, 4), levels, False)


def evaluation(folder=None, world=None, data=None, **settings):
    return Evaluation(MODEL, data or noise(), CODEC, batch_size=4, folder=folder, world=world, **QUICK | settings)


def same(a, b):
    assert torch.equal(a.log_prob, b.log_prob) and torch.equal(a.evaluations, b.evaluations)


def test_a_killed_evaluation_goes_on_where_it_stopped_and_ends_as_if_it_had_not(tmp_path):
    whole = evaluation().run().result()
    first = evaluation(tmp_path)
    first._write(first.units[1], first._evaluate(first.units[1]))      # one batch of three is done when it is killed
    again = evaluation(tmp_path)
    assert again.resumed == 1
    done = []
    evaluate = again._evaluate
    again._evaluate = lambda unit: done.append(unit) or evaluate(unit)
    same(again.run().result(), whole)
    assert done == [again.units[0], again.units[2]]
    again.clear()
    assert not tmp_path.exists()


def test_a_damaged_or_foreign_part_is_done_again(tmp_path):
    evaluation(tmp_path).run()
    files = sorted(tmp_path.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-20])
    assert evaluation(tmp_path).resumed == 2
    other = noise()
    other.test.data[9] = 3
    assert evaluation(tmp_path, data=other).resumed == 1      # what example 9 holds has changed; the first is damaged
    same(evaluation(tmp_path).run().result(), evaluation().run().result())


def edited(path, name, change):
    """The file of arrays with one of them changed, as NumPy writes it: its own checksums are right."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **arrays | {name: change(arrays[name])})


@pytest.mark.parametrize(("name", "change"), [
    ("value", lambda v: v + 1), ("nfe", lambda v: v * 2), ("seconds", lambda v: v + 1), ("value", np.float32),
    ("extra", lambda v: v)])
def test_an_edited_part_is_done_again(tmp_path, name, change):
    evaluation(tmp_path).run()
    file = sorted(tmp_path.iterdir())[1]
    if name == "extra":      # without its digest, as earlier versions wrote
        with np.load(file) as arrays:
            np.savez(file, **{key: arrays[key] for key in arrays.files if key != "seal"})
    else:
        edited(file, name, change)
    assert evaluation(tmp_path).resumed == 2
    same(evaluation(tmp_path).run().result(), evaluation().run().result())


def test_processes_share_the_batches_and_the_result_is_that_of_one(tmp_path):
    second = evaluation(tmp_path, World(1, 2), draws=2).run()
    assert len(second.parts) == 3
    first = evaluation(tmp_path, World(0, 2), draws=2).run()
    same(first.result(), evaluation(draws=2).run().result())


def test_an_error_keeps_what_is_done_and_says_so(tmp_path):
    data = noise()
    data.test.data[9] = 17      # the last of three batches
    with pytest.raises(ValueError, match=r"17.*levels are 0 .. 16.*; 8 of 10 examples are done and kept"):
        evaluation(tmp_path, data=data).run()
    assert len(list(tmp_path.iterdir())) == 2


def test_further_draws_leave_the_first_as_it_is_and_the_weighted_bound_is_tighter():
    one, three = evaluation().run().result(), evaluation(draws=3).run().result()
    assert torch.equal(three.log_prob[:1], one.log_prob) and three.log_prob.shape == (3, 10)
    assert three.nfe == 3 * one.nfe == 36
    weighted = three.bits_per_dim_iw
    assert (weighted < three.bits_per_dim).all() and one.bits_per_dim_iw is None
    brute = [-math.log2(np.mean(np.exp(column))) / 16 + math.log2(17 / 2) for column in three.log_prob.T.numpy()]
    torch.testing.assert_close(weighted, torch.tensor(brute, dtype=torch.float64))


def test_noisy_log_densities_have_no_importance_weighted_bound():
    noisy = evaluation(draws=2, divergence="hutchinson").run().result()
    assert noisy.bits_per_dim_iw is None and "bits_per_dim_iw" not in noisy.summary()


@pytest.mark.slow
def test_the_parts_of_the_standard_error_are_what_repetitions_scatter_by():
    """Over other seeds, the mean of fixed data moves by the dequantisation's and the probes' parts together."""
    model = GaussianMixture(VPSDE(), torch.tensor([[0.5] * 16, [-0.5] * 16]), torch.tensor([0.05, 0.2]))
    settings = QUICK | {"divergence": "hutchinson", "probes": 3, "draws": 3}
    scores = [score(model, noise(), CODEC, seed=seed, **settings) for seed in range(60)]
    parts = [s.standard_error_parts for s in scores]
    claimed = math.sqrt(np.mean([p["dequantization"] ** 2 + p["probes"] ** 2 for p in parts]))
    scatter = np.std([s.mean for s in scores], ddof=1)
    assert 0.7 < claimed / scatter < 1.4
    total = np.mean([s.standard_error for s in scores])
    whole = [math.sqrt(sum(part**2 for part in p.values())) for p in parts]
    assert abs(np.mean(whole) - total) < 0.02 * total


def test_bounds_score_through_the_same_door():
    exact = evaluation().run().result()
    common = {"progress": False, "batch_size": 4}
    bound = score(MODEL, noise(), CODEC, estimator="elbo", bound_draws=16, **common)
    assert bound.nfe == 16 and bound.probe_error is not None
    assert sum(bound.summary()["terms"].values()) == pytest.approx(bound.mean)
    assert abs(bound.mean - exact.mean) < 4 * bound.standard_error
    dense = score(MODEL, noise(), CODEC, estimator="chain_elbo", steps=100, discrete=False, **common)
    integers = score(MODEL, noise(), CODEC, estimator="chain_elbo", steps=100, **common)
    assert abs(dense.mean - exact.mean) < 0.1 < integers.mean - dense.mean and dense.nfe == 100
    with pytest.raises(ValueError, match="not dequantised"):
        score(MODEL, noise(), CODEC, estimator="chain_elbo", draws=2, **common)
    with pytest.raises(ValueError, match="ode, elbo, chain_elbo"):
        score(MODEL, noise(), CODEC, estimator="vlb", **common)


def test_auroc_is_the_share_of_pairs_in_order():
    a, b = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([2.0, 3.0, 6.0])
    brute = np.mean([(y > x) + (y == x) / 2 for x in a.tolist() for y in b.tolist()])
    assert auroc(a, b) == pytest.approx(brute) and auroc(a, a) == 0.5


def test_a_row_an_example(tmp_path):
    result = evaluation(draws=2).run().result()
    write_csv(tmp_path / "scores.csv", result.rows([f"{i}.png" for i in range(10)]))
    with open(tmp_path / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{i}.png" for i in range(10)]
    assert [float(row["bits_per_dim"]) for row in rows] == result.bits_per_dim.tolist()


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_integers_are_read_in_either_layout_of_channels(layout, tmp_path):
    k = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=k.transpose(layout))
    data, _ = load_images(str(tmp_path / "a.npz"), (3, 4, 4), make_codec(256), "images")
    assert np.array_equal(data.test[torch.arange(5)][0].numpy(), k)


def test_grey_pictures_need_no_channel_and_samples_are_quantised(tmp_path):
    k = np.random.default_rng(0).integers(0, 17, (5, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", k)
    x = 2 * (k[:, None].astype(np.float32) + 0.4) / 17 - 1
    np.savez(tmp_path / "b.npz", x=x)
    for name in "ab":
        data, _ = load_images(str(tmp_path / f"{name}.npz"), (1, 4, 4), make_codec(17, dequantize=True), "images")
        assert np.array_equal(data.test[torch.arange(5)][0].numpy()[:, 0], k)


@pytest.mark.parametrize("array, parts", [
    (np.full((3, 1, 4, 4), 17, np.uint8), "17.*levels are 0 .. 16"), (np.zeros((3, 1, 5, 4), np.uint8), r"\(3, 1, 5, 4\)"),
    (np.full((3, 1, 4, 4), np.nan), "nan"), (np.full((3, 1, 4, 4), 9.0), "floats must lie"),
    (np.zeros((0, 1, 4, 4), np.uint8), r"\(0, 1, 4, 4\)"), (np.zeros((3, 1, 4, 4), bool), "bool"),
])
def test_images_that_do_not_fit_are_refused(array, parts, tmp_path):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(ValueError, match=parts):
        load_images(str(tmp_path / "a.npz"), (1, 4, 4), CODEC, "images")
