"""Comparisons: the same noise for every pair, honest costs, what is left out, and files that are whole or not there."""

import csv
import errno
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import from_arrays
from scorefield.evaluation import compare
from scorefield.evaluation.classes import of_classes
from scorefield.evaluation.comparison import record
from scorefield.evaluation.metrics import Reference, make_metrics
from scorefield.guidance import classifier_free
from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import VPSDE

from .conftest import EVIL, pictures, points


def test_on_the_mixture_auto_is_at_the_floor_by_8_evaluations_and_ddim_is_not_by_20(oracle, tmp_path):
    """On 4,000 samples of the mixture in the plane that the benchmarks use; fewer cannot tell DDIM from the floor."""
    model, data = points(oracle, 4000)
    made = compare(model, data, ("auto", "ddim"), (8, 20), n=4000, batch_size=2000, metrics=("sliced_wasserstein",),
                   likelihood=0, progress=False)
    floor = {(row.name, row.budget): row.figures["sliced_wasserstein"].low <= row.figures["sliced_wasserstein"].floor
             for row in made.rows}
    assert floor == {("auto", 8): True, ("auto", 20): True, ("ddim", 8): False, ("ddim", 20): False}
    assert (made.recommendation.row.name, made.recommendation.row.nfe) == ("auto", 8)
    assert "ddim is not at the floor by 20 evaluations" in str(made.recommendation)
    assert made.rows[0].error < made.rows[2].error and made.rows[0].accuracy < 1e-6
    assert made.extras.density.shape == (72, 72) and len(made.extras.fields) == 7 and made.extras.paths.shape[1:] == (48, 2)
    exact = model.log_prob(torch.zeros(1, 2))      # the density shown is that of the model
    left, right, bottom, top = _window(made)
    i, j = int((top - 0) / (top - bottom) * 72), int((0 - left) / (right - left) * 72)
    assert float(made.extras.density[i, j]) == pytest.approx(float(exact), abs=0.3)
    page = made.write(tmp_path / "compare")
    assert page.stat().st_size < 5_000_000
    assert {"density.png", "score_0.png", "paths.svg", "exact_flow.png"} <= {f.name for f in page.parent.iterdir()}


def _window(made):
    from scorefield.evaluation.page.sheets import Plane

    return Plane.around(made.codec, made.behind).reach


def test_every_pair_starts_from_the_same_noise_whatever_the_batches(of_pictures):
    made, _ = of_pictures
    model, _, _ = pictures()
    for row in made.rows:
        seeds = sample_seeds(0, 0, 50)      # those of the first batch
        alone = row.sampler(model, prior_sample(model.sde, (1, 6, 6), seeds), seeds)
        np.testing.assert_allclose(row.shown[:50], alone.x, atol=1e-5)
        assert row.budget is None or row.nfe == alone.nfe
        assert row.seconds > 0
    last = sample_seeds(0, 50, 70)
    x = make_sampler("auto", steps=3)(model, prior_sample(model.sde, (1, 6, 6), last)).x
    np.testing.assert_allclose(made.rows[0].shown[50:], x[:14], atol=1e-5)


def test_what_cannot_be_run_is_left_out_with_a_word(of_pictures):
    made, folder = of_pictures
    assert [(row.name, row.budget, row.nfe) for row in made.rows[:5]] == [
        ("auto", 3, 3), ("auto", 6, 6), ("ddim:eta=0.5", 3, 3), ("ddim:eta=0.5", 6, 6), ("rk4", 6, 4)]
    assert made.rows[5].name == "ode" and made.rows[5].budget is None and made.rows[5].nfe > 20
    assert [(out.name, out.budget, out.reason) for out in made.left_out] == [("rk4", 3, "its fewest evaluations are 4")]
    assert [row.error is None for row in made.rows] == [False, False, True, True, False, False]
    assert made.rows[5].error < 1e-4      # dopri5 at 1e-5
    same = compare(*pictures()[:2], ("heun",), (4, 5), codec=pictures()[2], n=20, metrics=("energy",), likelihood=0,
                   progress=False)
    assert [row.nfe for row in same.rows] == [3, 5]
    same = compare(*pictures()[:2], ("heun",), (3, 4), codec=pictures()[2], n=20, metrics=("energy",), likelihood=0,
                   progress=False)
    assert "takes the same 3 evaluations as with 3" in same.left_out[0].reason


def test_a_sampler_that_fails_is_left_out_and_the_others_stay():
    model, data, codec = pictures()
    made = compare(model, data, ("auto", "ode:max_evaluations=5"), (4,), codec=codec, n=20, metrics=("energy",),
                   likelihood=0, progress=False)
    assert [row.name for row in made.rows] == ["auto"] and "more than 5 evaluations" in made.left_out[0].reason
    with pytest.raises(ArgumentError, match="no sampler could be run"):
        compare(model, data, ("ode:max_evaluations=5",), (4,), n=20, codec=codec, metrics=("energy",), progress=False)


@pytest.mark.parametrize("change, words", [
    ({"samplers": ("autoo",)}, "did you mean 'auto'"), ({"samplers": ()}, "at least one"),
    ({"samplers": ("auto", "auto")}, "different names"), ({"budgets": (0,)}, "1 or more"),
    ({"budgets": ()}, "whole numbers"),
    ({"metrics": ("fidd",)}, "fid"), ({"n": 3}, "at least 10 samples"), ({"n": 0}, "at least"),
    ({"samplers": ("rk4",), "budgets": (2,)}, "fewest evaluations are 4"), ({"label": 5}, "label"),
])
def test_what_does_not_fit_together_is_refused(change, words):
    model, data, codec = pictures()
    asked = {"samplers": ("auto",), "budgets": (4,), "n": 20, "metrics": ("energy",), "codec": codec, "progress": False}
    with pytest.raises(ArgumentError, match=words):
        compare(model, data, **asked | change)


def test_samples_of_a_class_are_compared_with_examples_of_that_class():
    model, data, codec = pictures()
    settings = {"samplers": ("auto",), "budgets": (20,), "n": 60, "codec": codec, "metrics": ("energy",), "likelihood": 0,
                "progress": False}
    one, every = compare(model, data, label=1, **settings), compare(model, data, label="all", **settings)
    figure = one.rows[0].figures["energy"]
    assert figure.reference == int((data.train.condition["label"] == 1).sum()) < every.rows[0].figures["energy"].reference
    assert figure.value < 0.3      # against examples of both classes it would be far
    assert len(of_classes(data, [1]).train) == figure.reference and of_classes(data, [1, 0]) is data
    with pytest.raises(ArgumentError, match="no labels"):
        of_classes(from_arrays(torch.zeros(20, 2)), [0])


def test_a_guided_model_has_no_likelihood_and_no_density_and_says_so(oracle):
    labels = torch.arange(8) % 2
    model = GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"], labels=labels.tolist())
    _, data = points(oracle, 200)
    made = compare(classifier_free(model, 3.0, label=1), data, ("auto",), (8,), n=50, metrics=("energy",), likelihood=4,
                   progress=False)
    assert made.rows[0].nfe == 8 and made.rows[0].sampler.steps == 4
    assert made.extras.density is None and not made.extras.likelihood
    assert sum("no known density" in note for note in made.extras.notes) == 2


def test_the_files_hold_every_number(of_pictures):
    made, folder = of_pictures
    stored = json.loads((folder / "results.json").read_text())
    assert sorted(stored["files"]) == sorted(file.name for file in folder.iterdir())
    assert stored["recommendation"]["words"] == str(made.recommendation)
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert len(rows) == len(stored["rows"]) == len(made.rows) == 6
    for row, line, known in zip(made.rows, rows, stored["rows"], strict=True):
        figure = row.figures["energy"]
        assert line["sampler"] == known["sampler"] == row.name and float(line["nfe"]) == known["nfe"] == row.nfe
        assert float(line["energy"]) == known["figures"]["energy"]["value"] == figure.value
        assert float(line["energy_low"]) == figure.low and float(line["energy_floor"]) == figure.floor
        assert line["error"] == ("" if row.error is None else str(row.error))
    assert sum(line["recommended"] == "1" for line in rows) == 1
    assert Image.open(folder / "auto_3.png").size == (7 * 7 - 1, 7 * 7 - 1)
    assert {"ddim_eta0.5_6.png", "rk4_6.png", "ode.png", "exact_flow.png"} <= set(stored["files"])
    shares = [line.split(",") for line in (folder / "likelihood.csv").read_text().splitlines()[1:]]
    assert len(shares) == 16 and {line[0] for line in shares} == {"held-out examples", "training examples"}
    for svg in folder.glob("*.svg"):
        text = svg.read_text()
        assert text.startswith("<?xml") and "<title>" in text and EVIL not in text


def test_a_pictures_sheet_shows_the_decoded_samples(of_pictures):
    made, folder = of_pictures
    sheet = np.asarray(Image.open(folder / "auto_6.png"))
    tile = made.codec.decode(made.rows[1].shown[8:9])[0, 0].double() * (255 / 16)
    np.testing.assert_array_equal(sheet[7:13, 7:13], tile.round())      # row 1, column 1 of 7


def test_a_disk_that_fills_leaves_the_earlier_comparison_as_it_was(of_pictures, tmp_path, monkeypatch):
    made, _ = of_pictures
    for there in (False, True):
        folder = tmp_path / f"compare_{there}"
        if there:
            made.write(folder)
            (folder / "mine.txt").write_text("a user's own file")
        before = {file.name: file.read_bytes() for file in folder.iterdir()} if there else {}
        for fails_at in (1, 5, len(json.loads((tmp_path / "compare_True/results.json").read_text())["files"])
                         if there else 3):
            calls = 0
            real = os.fsync

            def full(descriptor, fails_at=fails_at, real=real):
                nonlocal calls
                calls += 1
                if calls == fails_at:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(descriptor)

            monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=f"No space left on device.*{folder.name}"):
                made.write(folder)
            monkeypatch.setattr(os, "fsync", real)
            after = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}
            assert after == before
            assert not list(tmp_path.glob(".*"))


def test_a_new_comparison_replaces_the_files_of_the_earlier_one_and_no_others(of_pictures, tmp_path):
    made, _ = of_pictures
    folder = tmp_path / "compare"
    made.write(folder)
    (folder / "mine.png").write_bytes(b"mine")
    model, data, codec = pictures()
    compare(model, data, ("auto",), (4,), codec=codec, n=20, metrics=("energy",), likelihood=0, progress=False).write(folder)
    names = {file.name for file in folder.iterdir()}
    assert "auto_4.png" in names and "mine.png" in names
    assert not names & {"auto_3.png", "ode.png", "sliced_wasserstein_over_seconds.svg", "likelihood.csv"}
    (folder / record.RESULTS).write_text("damaged")
    made.write(folder)
    assert (folder / "mine.png").exists() and "auto_4.png" in {file.name for file in folder.iterdir()}


def test_pages_are_bounded_by_fewer_tiles_and_palettes():
    from scorefield.evaluation.page import sheets

    x = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1      # noise: the worst case
    draw = sheets.Tiles(pictures(3)[2], 0.0, 16.0)
    sheet = draw(x, 64, False)
    assert sheet.size == (8 * 65 - 1, 8 * 65 - 1) and sheet.mode == "RGB"
    files, tiles = sheets.fitting(lambda n, palette: [sheets.png(draw(x, n, palette))] * 3, 500_000, 64)
    assert tiles < 64 and sum(map(len, files)) * 4 / 3 < 500_000
    large = draw(torch.zeros(4, 3, 256, 200), 4, False)
    assert max(large.size) <= 4 * sheets.LARGEST_SIDE


def test_series_and_wide_pictures_are_drawn():
    from scorefield.data.codec import Points
    from scorefield.evaluation.page import sheets

    x = torch.sin(torch.arange(40) / 3)[None, None].expand(9, 2, 40) * torch.linspace(0.2, 1, 9)[:, None, None]
    x = x * torch.tensor([1.0, -0.5])[:, None]
    picture = sheets.renderer(Points(), (2, 40), x)(x, 64, False)
    assert len(np.unique(np.asarray(picture))) == 4      # the ground, frames and two lines
    wide = sheets.renderer(pictures()[2], (1, 4, 12), torch.zeros(1, 1, 4, 12))(torch.zeros(6, 1, 4, 12), 64, False)
    assert wide.size[0] % 13 == 12 and wide.size[1] % 5 == 4


def test_names_of_files_are_the_settings():
    from scorefield.evaluation.page.parts import stem

    assert stem("ddim:eta=0.5", 10) == "ddim_eta0.5_10" and stem("dpm_solver++:order=3", 5) == "dpm_solver++_order3_5"
    assert stem("ode", None) == "ode" and re.fullmatch(r"[\w+.-]+", stem("heun:grid=../x", 3))


def test_what_is_judged_by_the_floor_are_as_many_samples_as_are_held_out(of_pictures):
    made, folder = of_pictures
    _, data, codec = pictures()
    reference = Reference(data, codec)
    assert 10 <= reference.held_out < 50 < made.n
    row = made.rows[0]
    assert set(row.matched) == {"sliced_wasserstein"}      # the energy distance has no bias
    metric = make_metrics(["sliced_wasserstein"], reference, 0, 50)["sliced_wasserstein"]
    metric.update(codec.decode(row.shown[:reference.held_out]))
    alone, matched = metric.result(), row.matched["sliced_wasserstein"]
    assert matched == alone and matched.samples == matched.floor_samples == reference.held_out
    assert row.figures["sliced_wasserstein"].samples == 70 and matched.floor == row.figures["sliced_wasserstein"].floor
    line = next(csv.DictReader((folder / "results.csv").open()))
    assert float(line["sliced_wasserstein_of_first"]) == matched.value
    assert int(line["sliced_wasserstein_of_first_samples"]) == reference.held_out
    assert f"first {reference.held_out}: " in (folder / "index.html").read_text()


def test_first_samples_are_the_same_whatever_the_batches():
    model, data, codec = pictures()
    one, many = (compare(model, data, ("auto",), (3,), codec=codec, n=70, batch_size=size, metrics=("sliced_wasserstein",),
                         bootstrap=0, likelihood=0, progress=False).rows[0].matched for size in (7, 70))
    assert one["sliced_wasserstein"].value == pytest.approx(many["sliced_wasserstein"].value, rel=1e-5)


def test_without_intervals_and_with_a_path_that_is_not_utf8_the_files_are_whole(tmp_path):
    model, data, codec = pictures()
    name = os.fsdecode(b"caf\xe9")
    made = compare(model, data, ("auto",), (3,), codec=codec, n=20, metrics=("energy",), bootstrap=0, likelihood=0,
                   progress=False, title=f"Samplers on {name}",
                   facts={"run": f"runs/{name}", "odd": [math.nan, (math.inf,)]})
    folder = made.write(tmp_path / name).parent
    assert "runs/caf\\udce9" in (folder / "index.html").read_text(encoding="utf-8")

    def refuse(word):
        raise AssertionError(f"JSON has no {word}")

    stored = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    assert stored["facts"]["odd"] == [None, [None]] and stored["rows"][0]["figures"]["energy"]["low"] is None
    line = next(csv.DictReader((folder / "results.csv").open()))
    assert line["energy_low"] == line["energy_high"] == "" and float(line["energy"]) == made.rows[0].figures["energy"].value
