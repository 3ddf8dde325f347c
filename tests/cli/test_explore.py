"""Mode explore, as a user meets it."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import made_once
from PIL import Image

from scorefield.cli import explore_pictures
from scorefield.cli.explore import PICTURES
from scorefield.cli.main import main
from scorefield.evaluation.explore.langevin import published

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.one_machine
FEW = ["--steps", 4, "--num_samples", 3]


def explore(command, run, *words):
    code, out, err = command("--workdir", run, "--mode", "explore", *words)
    assert code == 0, err
    return out


def small(name, *more):
    """A run of one step by an MLP."""
    def make(folder):
        main(["--config", str(ROOT / "configs" / f"{name}.py"), "--mode", "train", "--workdir", str(folder / name),
              "--config.training.steps=1", "--config.training.eval_every=1", "--config.training.sample_every=0",
              "--config.model.width=8", *more])
    return make


@pytest.fixture(scope="module")
def points_run(tmp_path_factory):
    return made_once(tmp_path_factory, "explored_points", small("vp_swiss_roll", "--config.data.size=400")) / "vp_swiss_roll"


@pytest.fixture(scope="module")
def series_run(tmp_path_factory):
    def make(folder):
        np.save(folder / "waves.npy", np.sin(np.linspace(0, 9, 32) + np.arange(60)[:, None, None]).astype(np.float32))
        small("vp_series", f"--config.data.path={folder / 'waves.npy'}")(folder)
    return made_once(tmp_path_factory, "explored_series", make) / "vp_series"


EVERY = {
    "progressive": [*FEW, "--frames", 3], "interpolate": ["--steps", 4, "--times", "0,0.5,1", "--frames", 3],
    "shared_latents": [*FEW, "--times", "0.5,1"], "slerp": [*FEW, "--frames", 3],
    "inversion": ["--step_counts", "2,4", "--examples", "0,1"],
    "rate_distortion": ["--steps", 4, "--num_samples", 3], "forward": ["--frames", 3, "--examples", "0,1"], "schedule": [],
    "langevin": ["--steps", 2, "--corrector_steps", 1, "--num_samples", 3],
    "swiss_roll": [*FEW, "--frames", 3]}
FILMS = {"progressive", "slerp", "forward", "swiss_roll"}


@pytest.fixture
def quick(monkeypatch):
    """The published experiment of Langevin dynamics with few points and steps; another test holds it to its numbers."""
    model, sampler = published()
    monkeypatch.setattr(explore_pictures, "TOY", 8)
    monkeypatch.setattr(explore_pictures, "published", lambda: (model, replace(sampler, corrector_steps=2)))


@pytest.mark.costly
@pytest.mark.parametrize("kind, what", [*(("points", what) for what in EVERY), *(
    ("series", what) for what in ("progressive", "interpolate", "inversion", "langevin", "swiss_roll"))])
def test_every_picture_is_drawn_of_runs_of_every_kind(kind, what, command, request, quick):
    run = request.getfixturevalue(f"{kind}_run")
    if what == "swiss_roll" and kind != "points":
        code, _, err = command("--workdir", run, "--mode", "explore", "--what", what)
        assert code == 1 and "points in the plane" in err and "--what" in err and len(err.strip().splitlines()) == 1
        return
    out = explore(command, run, "--what", what, *EVERY[what])
    files = sorted((run / "explore").glob(f"{what}*"))
    assert [file.suffix for file in files] == [*([".gif"] if what in FILMS else []), ".json", ".png"]
    assert f"{what}: " in out and f"wrote {files[0].with_suffix('')}" in out
    record = json.loads(files[-2].read_text())
    assert record["what"] == what and record["seconds"] >= 0
    picture = np.asarray(Image.open(files[-1]))
    assert picture.ndim == 3 and min(picture.shape[:2]) > 50 and picture.std() > 1
    if what in FILMS:
        assert Image.open(files[0]).n_frames in (2, 3)      # equal neighbours are one


PAGE = (ROOT / "docs/explore.md").read_text()
SHOWN = re.findall(r"^    python main.py (--workdir .*--mode explore .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", SHOWN, ids=lambda line: line.partition("--what ")[2].split()[0])
@pytest.mark.slow
def test_the_commands_of_the_page_run_as_shown(line, command, request, quick):
    """On small runs of the same kind."""
    words = shlex.split(line)
    run = request.getfixturevalue("points_run" if "vp_swiss_roll" in line else "digits_run")
    code, out, err = command("--workdir", run, *words[2:])
    assert code == 0, err
    what = words[words.index("--what") + 1]
    files = sorted((run / "explore").glob(f"{what}*"))
    assert {".json", ".png"} <= {file.suffix for file in files} and f"{what}: " in out
    assert np.asarray(Image.open(files[-1])).std() > 1


def test_the_page_shows_every_picture():
    assert {line.partition("--what ")[2].split()[0] for line in SHOWN} == {*PICTURES} == {*explore_pictures.DRAW}


def test_the_record_holds_the_numbers(digits_run, command, quick):
    run = digits_run
    explore(command, run, "--what", "rate_distortion,inversion", "--steps", 5)
    curve = json.loads((run / "explore/rate_distortion_steps5.json").read_text())
    assert len(curve["rate"]) == len(curve["distortion"]) == len(curve["times"]) == 5
    assert abs(curve["rate"][0] + curve["rest"] - curve["total"]) < 1e-9 and curve["examples_scored"] == 16
    rounds = json.loads((run / "explore/inversion_ddim_steps5.json").read_text())["rounds"]
    assert list(rounds) == ["5 steps"] and rounds["5 steps"]["nfe"] == 10 and rounds["5 steps"]["mse"] > 0
    explore(command, run, "--what", "langevin", *EVERY["langevin"])
    share = json.loads((run / "explore/langevin_steps2_corrector_steps1_num_samples3.json").read_text())
    assert set(share["published_mixture"]["share_near_the_larger_mode"]) == {"exact", "naive", "annealed"}


def test_the_bound_of_the_curve_is_that_of_mode_likelihood(digits_run, command):
    explore(command, digits_run, "--what", "rate_distortion", "--steps", 5, "--noclip_x0", "--num_samples", 4)
    code, _, err = command("--workdir", digits_run, "--mode", "likelihood", "--estimator", "chain_elbo", "--steps", 5,
                           "--num_images", 4, "--float64")
    assert code == 0, err
    ours = json.loads((digits_run / "explore/rate_distortion_steps5_num_samples4_noclip_x0.json").read_text())["total"]
    theirs = json.loads(next((digits_run / "likelihood").glob("chain_elbo_test*steps5*.json")).read_text())["bits_per_dim"]
    assert abs(ours - theirs) < 1e-6


def test_no_two_settings_share_a_name_and_one_has_the_same_pictures_again(digits_run, command):
    what = ["--what", "slerp", *FEW, "--frames", 2]
    for more in ([], ["--seed", 1], ["--noema"], ["--sampler", "heun"], ["--grid", "quadratic"]):
        explore(command, digits_run, *what, *more)
    files = sorted((digits_run / "explore").glob("slerp_*samples3_frames2*.png"))
    assert len(files) == 5
    first = (digits_run / "explore/slerp_ddim_steps4_num_samples3_frames2.png")
    before = first.read_bytes()
    explore(command, digits_run, *what)
    assert first.read_bytes() == before
    assert not list((digits_run / "explore").glob(".*"))


def test_own_examples_and_splits(digits_run, command, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", pictures)
    explore(command, digits_run, "--what", "forward", "--images", tmp_path / "own.npz", "--frames", 2, "--examples", "2,0")
    explore(command, digits_run, "--what", "forward", "--split", "train", "--frames", 2, "--examples", "2,0")
    found = {file.name: np.asarray(Image.open(file)) for file in (digits_run / "explore").glob("forward*examples_2-0*.png")}
    assert len(found) == 2 and not np.array_equal(*found.values())


@pytest.mark.parametrize("words, parts", [
    ([], ["no picture is named", "progressive", "--what"]), (["--what", ""], ["words with commas", "--what"]),
    (["--what", "slrp"], ["unknown picture 'slrp'", "did you mean 'slerp'", "--what"]),
    (["--what", "forward", "--num_samples", 3], ["takes no num_samples", "progressive", "--num_samples"]),
    (["--what", "schedule", "--steps", 3], ["takes no steps", "--steps"]),
    (["--what", "schedule", "--noema"], ["takes no ema", "--ema"]),
    (["--what", "progressive", "--variance", "beta"], ["takes no variance", "auto takes", "--variance"]),
    (["--what", "progressive", "--sampler", "dim"], ["did you mean 'ddim'", "--sampler"]),
    (["--what", "progressive", "--frames", 1], ["frames must lie in 2 ..", "--frames"]),
    (["--what", "progressive", "--label", 3], ["takes no label", "--label"]),
    (["--what", "shared_latents", "--sampler", "auto"], ["draws none", "--sampler"]),
    (["--what", "shared_latents", "--times", "0"], ["above 0", "--times"]),
    (["--what", "interpolate", "--times", "1.5"], ["0 .. 1", "--times"]),
    (["--what", "interpolate", "--times", "0.0001"], ["above 0.001", "--times"]),
    (["--what", "interpolate", "--times", ""], ["at least one time", "--times"]),
    (["--what", "interpolate", "--examples", "1"], ["takes 2 examples, got 1", "--examples"]),
    (["--what", "forward", "--examples", "1,99999"], ["0 .. 359", "99999", "--examples"]),
    (["--what", "forward", "--examples", "0.5"], ["whole numbers", "--examples"]),
    (["--what", "forward", "--images", "x.npz", "--split", "test"], ["leave out split", "--split"]),
    (["--what", "forward", "--images", "/nowhere.npz"], ["/nowhere.npz", "--images"]),
    (["--what", "slerp", "--eta", 1], ["draws noise", "--sampler"]),
    (["--what", "inversion", "--sampler", "unipc"], ["can be taken backwards", "--sampler"]),
    (["--what", "inversion", "--sampler", "ode", "--step_counts", 3], ["leave out step_counts", "--step_counts"]),
    (["--what", "inversion", "--steps", 3, "--step_counts", 3], ["leave out steps", "--steps"]),
    (["--what", "inversion", "--step_counts", 0], ["whole numbers from 1", "--step_counts"]),
    (["--what", "rate_distortion", "--steps", 1], ["at least 2", "--steps"]),
    (["--what", "rate_distortion", "--sampler", "ddim"], ["takes no sampler", "--sampler"]),
    (["--what", "rate_distortion", "--variance", "analytic"], ["analytic", "--variance"]),
    (["--what", "langevin", "--sampler", "ddim"], ["takes no sampler", "--sampler"]),
])
def test_what_does_not_fit_is_one_line(digits_run, command, words, parts):
    before = sorted((digits_run / "explore").glob("*")) if (digits_run / "explore").exists() else []
    code, _, err = command("--workdir", digits_run, "--mode", "explore", *words)
    assert code == 1 and len(err.strip().splitlines()) == 1, err
    assert all(part in err for part in parts), err
    assert sorted((digits_run / "explore").glob("*")) == before


def test_a_missing_data_set_is_one_line_where_it_is_needed(points_run, series_run, command, tmp_path):
    run = shutil.copytree(series_run, tmp_path / "run")
    words = ["--workdir", run, "--mode", "explore", f"--config.data.path={tmp_path / 'gone.npy'}", "--what"]
    code, _, err = command(*words, "interpolate")
    assert code == 1 and "gone.npy" in err and "give images" in err and len(err.strip().splitlines()) == 1
    code, out, err = command(*words, "progressive", *FEW, "--frames", 2)
    assert code == 0 and "wrote" in out, err


def test_ctrl_c_says_which_pictures_are_kept(digits_run, command, monkeypatch):
    def stop(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(explore_pictures, "DRAW", {**explore_pictures.DRAW, "slerp": stop})
    code, _, err = command("--workdir", digits_run, "--mode", "explore", "--what", "schedule,slerp,forward", "--frames", 4)
    assert code == 130 and "1 of 3 pictures are done and kept" in err and "explore/schedule.png" in err
    assert "--what slerp,forward" in err
    code, _, err = command("--workdir", digits_run, "--mode", "explore", "--what", "slerp")
    assert code == 130 and "this command has kept nothing new" in err


def test_labels_and_guidance_are_those_of_mode_sample(command, tmp_path):
    from helpers import train_briefly

    run = train_briefly("vp_digits_labels", tmp_path / "vp_digits_labels")
    explore(command, run, "--what", "progressive", "--label", "3,5", "--guidance", 2, *FEW, "--frames", 2)
    record = json.loads(next((run / "explore").glob("progressive*label_3-5_guidance_2*.json")).read_text())
    assert record["label"] == ["3", "5"] and record["guidance"] == 2 and record["nfe"] == 8
    explore(command, run, "--what", "rate_distortion", "--label", 3, "--steps", 3, "--num_samples", 2)
    code, _, err = command("--workdir", run, "--mode", "explore", "--what", "slerp", "--label", "3,5")
    assert code == 1 and "one label for all" in err and "--label" in err


def test_a_sheet_shows_every_pixel_and_level():
    from scorefield.data import make_codec
    from scorefield.evaluation.explore.sheets import Looks, sheet

    cell = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    picture = sheet([[cell, None], [cell, cell]], Looks.of(make_codec(16), (1, 4, 4), cell[None]), ["a", "b"], ["1", "2"])
    block = np.kron(np.arange(16).reshape(4, 4) * 17, np.ones((12, 12))).astype(np.uint8)
    grey = picture[0].numpy()
    places = np.argwhere(np.all(np.lib.stride_tricks.sliding_window_view(grey, (48, 48)) == block, axis=(2, 3)))
    assert len(places) == 3 and np.array_equal(places[1] - places[0], [51, 0])
