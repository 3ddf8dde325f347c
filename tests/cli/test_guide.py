"""Labels and guidance on the command line, as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import made_once, train_briefly
from PIL import Image

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import read_config
from scorefield.data import codec_of
from scorefield.evaluation.names import name_of_place
from scorefield.guidance import guided
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample, sample_seeds

ROOT = Path(__file__).parents[2]
QUICK = ["--config.training.learning_rate=1e-2", "--config.training.warmup=0", "--config.training.precision=fp32"]
UNSHOWN = ["--config.training.sample_every=0"]
FEW = ["--num_samples", 6, "--steps", 3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A model with label dropout, one with labels only, one without labels, and a classifier."""
    wanted = {"free": ("vp_digits_labels",), "plain": ("vp_digits",), "classifier": ("digits_classifier", *UNSHOWN),
              "only": ("vp_digits_labels", "--config.training.label_dropout=0")}

    def train(folder):
        for name, (config, *more) in wanted.items():
            train_briefly(config, folder / name, *QUICK, *more)

    folder = made_once(tmp_path_factory, "labelled", train)
    return {name: folder / name for name in wanted}


def sampled(command, run, *words, name="auto_steps3"):
    code, out, err = command("--workdir", run, "--mode", "sample", *FEW, *words)
    assert code == 0, err
    with np.load(run / f"samples/{name}.npz") as arrays:
        return dict(arrays), json.loads((run / f"samples/{name}.json").read_text()), out


def refused(result, *parts):
    code, out, err = result
    assert code not in (0, None) and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err, err


@pytest.mark.costly
@pytest.mark.machine
def test_labels_are_numbers_or_names_in_turn_and_the_picture_has_a_row_for_each(runs, command):
    arrays, told, _ = sampled(command, runs["free"], "--label", "3,1", name="auto_steps3_label_3-1")
    assert arrays["label"].tolist() == [3, 1, 3, 1, 3, 1] and told["label"] == ["3", "1"] and told["nfe"] == 3
    assert Image.open(runs["free"] / "samples/auto_steps3_label_3-1.png").size == (3 * 42 + 2, 2 * 42 + 2)
    every, told, _ = sampled(command, runs["free"], "--label", "all", "--num_samples", 20, name="auto_steps3_label_all")
    assert every["label"].tolist() == [*range(10)] * 2 and len(told["label"]) == 10
    assert Image.open(runs["free"] / "samples/auto_steps3_label_all.png").size == (2 * 42 + 2, 10 * 42 + 2)


@pytest.mark.machine
def test_a_sample_depends_on_its_number_its_seed_and_its_label_alone(runs, command):
    model = load_denoiser(runs["free"])
    for batch_size in (6, 4):
        arrays, _, _ = sampled(command, runs["free"], "--label", "3,1", "--guidance", 2, "--batch_size", batch_size,
                               name=f"auto_steps3_label_3-1_guidance_2_batch_size{batch_size}")
        for i, label in ((0, 3), (5, 1)):
            seeds = sample_seeds(0, i, i + 1)
            alone = make_sampler("auto", steps=3)(guided(model, label=label, scale=2.0),
                                                  prior_sample(model.sde, (1, 8, 8), seeds), seeds).x
            levels = codec_of(read_config(runs["free"])["data"], read_config(runs["free"])).decode(alone)
            np.testing.assert_allclose(arrays["x"][i:i + 1].astype(int), levels, atol=1)      # one on the edge of two
            assert np.mean(arrays["x"][i:i + 1] == levels.numpy()) > 0.9


@pytest.mark.machine
def test_guidance_reaches_the_samples_and_counts_its_evaluations(runs, command):
    drawn = {}
    for words, name, nfe in (((), "", 3), (("--guidance", "1"), "_guidance_1", 3), (("--guidance", "0"), "_guidance_0", 3),
                             (("--guidance", "60.5"), "_guidance_60.5", 6),
                             (("--guidance", "60.5", "--guidance_interval", "0,0.5"),
                              "_guidance_60.5_guidance_interval_0-0.5", None)):
        arrays, told, out = sampled(command, runs["free"], "--label", 7, *words, name=f"auto_steps3_label_7{name}")
        drawn[name] = arrays["x"].astype(int)
        assert nfe is None and 3 < told["nfe"] < 6 or told["nfe"] == nfe
        assert f"auto_steps3_label_7{name}{{" in out
    assert np.array_equal(drawn[""], drawn["_guidance_1"])
    unlabelled, _, _ = sampled(command, runs["free"])
    np.testing.assert_allclose(drawn["_guidance_0"], unlabelled["x"], atol=1)      # a level on the edge of two
    different = [x for name, x in drawn.items() if name != "_guidance_1"]
    assert all(np.abs(a - b).max() > 0 for i, a in enumerate(different) for b in different[:i])


@pytest.mark.machine
def test_a_classifier_guides_a_model_that_knows_no_label(runs, command):
    plain, _, _ = sampled(command, runs["plain"])
    guided_, told, _ = sampled(command, runs["plain"], "--label", "3", "--classifier", runs["classifier"],
                               "--classifier_scale", 400,
                               name=f"auto_steps3_label_3_classifier_{name_of_place(runs['classifier'])}_classifier_scale_400")
    assert (plain["x"] != guided_["x"]).any() and told["classifier"] == str(runs["classifier"])
    assert told["nfe"] == 6


@pytest.mark.machine
@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_with_a_threshold_no_pixel_leaves_the_range(runs, command, method):
    words = ["--label", "all", "--guidance", 60]
    before, _, _ = sampled(command, runs["free"], *words, name="auto_steps3_label_all_guidance_60")
    after, told, _ = sampled(command, runs["free"], *words, "--threshold", method,
                             name=f"auto_steps3_label_all_guidance_60_threshold_{method}")
    assert (before["x"] != after["x"]).any() and told["threshold"] == method
    model, label, seeds = load_denoiser(runs["free"]), torch.arange(6), sample_seeds(0, 0, 6)
    x_T = prior_sample(model.sde, (1, 8, 8), seeds)
    x = make_sampler("auto", steps=3)(guided(model, label, scale=60.0, threshold=method, low=-1.0, high=1.0), x_T, seeds).x
    levels = codec_of(read_config(runs["free"])["data"], read_config(runs["free"])).decode(x)
    assert float(x.abs().max()) <= 1 and np.mean(after["x"] == levels.numpy()) > 0.99


@pytest.mark.costly
@pytest.mark.machine
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_takes_everything_together(runs, command, sampler):
    options = ["--rtol", "1e-2", "--atol", "1e-2"] if sampler == "ode" else ["--steps", 16 if sampler == "torchsde" else 4]
    code, _, err = command("--workdir", runs["free"], "--mode", "sample", "--num_samples", 3, "--sampler", sampler, *options,
                           "--label", "0,5", "--guidance", 2, "--classifier", runs["classifier"], "--threshold", "dynamic",
                           "--quantile", 0.9)
    assert code == 0, err
    with np.load(next((runs["free"] / "samples").glob(f"{sampler}_*label_0-5*_quantile_0.9.npz"))) as arrays:
        assert arrays["x"].max() <= 16 and arrays["x"].dtype == np.uint8 and arrays["label"].tolist() == [0, 5, 0]


@pytest.mark.machine
@pytest.mark.parametrize("run, words, parts", [
    ("free", ["--label", "10"], ["from 0 to 9", "got 10", "--label"]),
    ("free", ["--label", "shoe"], ["'shoe'", "--label"]),
    ("free", ["--label", "1,,2"], ["--label"]),
    ("free", ["--guidance", "2"], ["needs", "label", "--guidance"]),
    ("free", ["--label", "1", "--guidance", "nan"], ["finite", "--guidance"]),
    ("free", ["--label", "1", "--guidance", "inf"], ["finite", "--guidance"]),
    ("free", ["--label", "1", "--guidance_interval", "0,0.5"], ["--guidance_interval", "--guidance"]),
    ("free", ["--label", "1", "--guidance", "2", "--guidance_interval", "0.5"], ["LO,HI", "--guidance_interval"]),
    ("free", ["--label", "1", "--guidance", "2", "--guidance_interval", "0.5,0.2"], ["--guidance_interval"]),
    ("free", ["--label", "1", "--guidance", "1", "--guidance_interval", "0.2,0.5"], ["--guidance_interval"]),
    ("free", ["--classifier_scale", "2"], ["--classifier_scale", "--classifier"]),
    ("free", ["--threshold", "hard"], ["'hard'", "static, dynamic", "--threshold"]),
    ("free", ["--quantile", "0.9"], ["--quantile", "--threshold"]),
    ("free", ["--threshold", "static", "--quantile", "0.9"], ["--quantile"]),
    ("free", ["--threshold", "dynamic", "--quantile", "1.5"], ["1.5", "--quantile"]),
    ("plain", ["--label", "3"], ["takes no label", "--label"]),
    ("plain", ["--guidance", "3"], ["--guidance"]),
    ("plain", ["--label", "3", "--guidance", "2", "--classifier", "CLASSIFIER"], ["takes no label"]),
    ("only", [], ["needs a label", "--label"]),
    ("only", ["--label", "3", "--guidance", "2"], ["without label dropout", "--label"]),
    ("free", ["--label", "3", "--classifier", "/nowhere"], ["/nowhere", "does not exist"]),
    ("free", ["--label", "3", "--classifier", "PLAIN"], ["is no classifier", "--classifier"]),
    ("free", ["--classifier", "CLASSIFIER"], ["label", "--classifier"]),
    ("free", ["--label", "3", "--classifier", "CLASSIFIER", "--classifier_scale", "nan"], ["finite", "--classifier_scale"]),
])
def test_what_does_not_fit_together_is_one_line_and_writes_nothing(runs, command, run, words, parts):
    before = sorted(runs[run].rglob("*"))
    words = [str(runs[word.lower()]) if word in ("CLASSIFIER", "PLAIN") else word for word in words]
    refused(command("--workdir", runs[run], "--mode", "sample", *FEW, *words), *parts)
    assert before == sorted(runs[run].rglob("*"))


@pytest.mark.machine
@pytest.mark.parametrize("settings, part", [
    (["--config.sde.beta_max=10"], "their noise differs"), (["--config.data.low=0"], "data.low"),
    (["--config.data.dequantize=false"], "data.dequantize"),
])
def test_a_classifier_of_another_process_or_other_data_is_refused(runs, command, tmp_path, settings, part):
    other = train_briefly("digits_classifier", tmp_path / "other", *settings, "--config.training.steps=1",
                          "--config.training.eval_every=0", *QUICK, *UNSHOWN)
    refused(command("--workdir", runs["free"], "--mode", "sample", *FEW, "--label", "3", "--classifier", other), part,
            "--classifier")


@pytest.mark.machine
@pytest.mark.slow
def test_points_have_a_colour_for_each_class_and_no_threshold(tmp_path):
    from scorefield.data import from_arrays
    from scorefield.evaluation import Preview
    from scorefield.training import train

    labels = torch.arange(60) % 3
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + labels[:, None]
    data = from_arrays(points, y_train=labels, class_names=("a", "b", "c"))
    shown = []

    def preview(model, dataset, codec):
        shown.append(Preview(steps=2)(model, dataset, codec))
        return shown[-1]

    train("configs/vp_swiss_roll.py", dataset=data, workdir=tmp_path / "run", progress=False, preview=preview, device="cpu",
          overrides={"training.steps": 2, "training.sample_every": 2, "model.width": 8, "model.classes": 3})
    assert shown and float(shown[0].float().std()) > 5
    words = [sys.executable, "main.py", "--workdir", str(tmp_path / "run"), "--mode", "sample", "--num_samples", "6",
             "--steps", "2"]
    done = subprocess.run([*words, "--label", "c,a"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "run/samples/auto_steps2_label_2-0.npz") as arrays:
        assert arrays["label"].tolist() == [2, 0, 2, 0, 2, 0]
    done = subprocess.run([*words, "--threshold", "static"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "points have no range" in done.stderr and "--threshold" in done.stderr


@pytest.mark.machine
def test_a_run_is_scored_with_labels_and_classifies_by_likelihood(runs, command):
    where = ["--workdir", runs["free"], "--mode", "likelihood", "--num_images", 12, "--method", "exponential", "--steps", 8]
    for words, name in (([], "summary"), (["--label", "true"], "test_label_true"), (["--label", "7"], "test_label_7")):
        name += "_method_exponential_steps8_num_images12"
        code, out, err = command(*where, *words)
        assert code == 0, err
        assert (runs["free"] / f"likelihood/{name}.csv").exists() and f"{name}{{" in out
    few = "_method_exponential_steps8_num_images12"
    code, out, err = command(*where, "--classify", "--batch_size", 6)
    assert code == 0 and "accuracy" in out, err
    told = json.loads((runs["free"] / f"likelihood/classification{few}.json").read_text())
    own = json.loads((runs["free"] / f"likelihood/test_label_true{few}.json").read_text())
    assert told["bits_per_dim_given_label"] == pytest.approx(own["bits_per_dim"], abs=1e-4)      # the same noise
    assert sum(map(sum, told["confusion"])) == 12 and told["nfe"] == 80 and len(told["prior"]) == 10
    rows = (runs["free"] / f"likelihood/classification{few}.csv").read_text().splitlines()
    assert len(rows) == 13 and rows[0].startswith("index,label,predicted,probability,log_prob_0")
    assert Image.open(runs["free"] / f"likelihood/classification{few}.png").size[0] > 100
    code, out, _ = command("--workdir", runs["free"], "--mode", "report")
    assert "given their labels" in out and "| classification" in out
    assert not (runs["free"] / "likelihood/partial").exists()


@pytest.mark.machine
@pytest.mark.parametrize("run, words, parts", [
    ("free", ["--guidance", "2"], ["no known density", "--guidance"]),
    ("free", ["--threshold", "static"], ["no known density", "--threshold"]),
    ("free", ["--label", "10"], ["from 0 to 9", "--label"]), ("free", ["--classify", "--label", "3"], ["leave out label"]),
    ("free", ["--classify", "--compare", "train"], ["leave out label and compare"]),
    ("plain", ["--label", "true"], ["takes no label"]), ("plain", ["--classify"], ["takes no label", "--classify"]),
    ("plain", ["--label", "3"], ["takes no label"]), ("only", [], ["given a label", "--label"]),
    ("free", ["--label", "true", "--images", "IMAGES"], ["have no labels", "--label"]),
    ("free", ["--classify", "--images", "IMAGES"], ["have no labels"]),
])
def test_what_cannot_be_scored_is_one_line_and_writes_nothing(runs, command, tmp_path, run, words, parts):
    np.savez(tmp_path / "pictures.npz", x=np.zeros((3, 1, 8, 8), np.uint8))
    words = [str(tmp_path / "pictures.npz") if word == "IMAGES" else word for word in words]
    before = sorted(runs[run].rglob("*"))
    refused(command("--workdir", runs[run], "--mode", "likelihood", "--num_images", 3, *words), *parts)
    assert before == sorted(runs[run].rglob("*"))


@pytest.mark.machine
def test_autoguidance_leads_away_from_another_run_and_counts_both(runs, command):
    words = ("--autoguidance", runs["only"], "--guidance", 30)
    name = f"auto_steps3_label_3_guidance_30_autoguidance_{name_of_place(runs['only'])}"
    own, _, _ = sampled(command, runs["free"], "--label", 3, name="auto_steps3_label_3")
    arrays, told, _ = sampled(command, runs["free"], "--label", 3, *words, name=name)
    assert told["nfe"] == 6 and told["autoguidance"] == str(runs["only"]) and (arrays["x"] != own["x"]).any()
    weak, model = (load_denoiser(runs[of]) for of in ("only", "free"))
    x_T = prior_sample(model.sde, (1, 8, 8), sample_seeds(0, 0, 6))
    x = make_sampler("auto", steps=3)(guided(model, label=3, scale=30.0, autoguidance=weak), x_T).x
    levels = codec_of(read_config(runs["free"])["data"], read_config(runs["free"])).decode(x)
    np.testing.assert_allclose(arrays["x"].astype(int), levels, atol=1)
    for more, parts in ((("--autoguidance", runs["plain"]), ["needs a scale", "--autoguidance", "--guidance"]),
                        (("--autoguidance", runs["classifier"], "--guidance", 2), ["is a classifier", "--autoguidance"]),
                        (("--autoguidance", runs["only"], "--guidance", 2), ["needs a label"])):
        refused(command("--workdir", runs["free"], "--mode", "sample", *FEW, *more), *parts)
