"""A user's array by the command line alone: trained on, sampled, scored, exported, in the units of the data."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefield.checkpoints import load_denoiser
from scorefield.data import Points, codec_of
from scorefield.evaluation.draw import draw
from scorefield.samplers import make_sampler

ROOT = Path(__file__).parents[2]
TRAIN = ["--config.training.steps=2", "--config.training.warmup=0", "--config.training.batch_size=16",
         "--config.training.sample_every=1", "--config.training.sample_steps=2", "--config.training.precision=fp32"]
TABLE = np.random.default_rng(0).normal(size=(60, 3)) * [1.0, 50.0, 0.01] + [0.0, 1000.0, -2.0]
UNET = ["--config.model.width=8", "--config.model.num_blocks=1", "--config.model.multipliers=(1,2)"]


@pytest.fixture
def trained(command, tmp_path):
    """Trains on an array for two steps; returns a function that runs other modes on that run."""
    def call(content, *flags, config="vp_table", name="x.csv"):
        file = tmp_path / name
        file.write_text(content) if isinstance(content, str) else np.save(file, content)
        code, out, err = command("--config", f"configs/{config}.py", "--mode", "train", "--workdir", tmp_path / "run",
                                 f"--config.data.path={file}", *TRAIN, *flags)
        assert code == 0, err
        return out, lambda *more: command("--workdir", tmp_path / "run", *more)

    return call


def text(table, names):
    return names + "\n" + "\n".join(",".join(map(repr, map(float, row))) for row in table) + "\n"


def summary(run, name="summary"):
    return json.loads((run / f"likelihood/{name}.json").read_text())


def test_a_table_is_sampled_and_scored_in_its_units_without_its_file(trained, tmp_path):
    out, mode = trained(text(TABLE, "a,b,c"), "--config.model.width=8")
    assert "x.csv: 54 + 6 rows of 3 columns (a, b, c), standardised by column" in out
    stored = json.loads((tmp_path / "run/config.json").read_text())
    train = TABLE[np.arange(60) % 10 != 0]
    assert stored["standard"]["columns"] == ["a", "b", "c"]
    np.testing.assert_allclose(stored["standard"]["mean"], train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stored["standard"]["std"], train.std(0), rtol=1e-12)
    assert mode("--mode", "likelihood", "--divergence", "exact")[0] == 0
    bits = json.loads(next((tmp_path / "run/likelihood").glob("*.json")).read_text())["bits_per_dim"]

    np.save(tmp_path / "held_out.npy", TABLE[::10])      # the same examples from another file, and none of the data's
    (tmp_path / "x.csv").unlink()
    code, out, err = mode("--mode", "likelihood", "--divergence", "exact", "--images", tmp_path / "held_out.npy")
    assert code == 0, err
    (path,) = [p for p in (tmp_path / "run/likelihood").glob("*.json") if "held_out" in p.name]
    assert json.loads(path.read_text())["bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    rows = path.with_suffix(".csv").read_text().splitlines()
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert float(first["log_prob_nats"]) == pytest.approx(-float(first["bits_per_dim"]) * 3 * math.log(2))
    code, out, err = mode("--mode", "sample", "--num_samples", 50, "--steps", 3)
    assert code == 0 and "does not exist" in out, err
    (path,) = (tmp_path / "run/samples").glob("*.npz")
    drawn = draw(load_denoiser(tmp_path / "run"), make_sampler("auto", steps=3), (3,), 50, seed=0, batch_size=128)
    x = codec_of(stored["data"], stored).decode(drawn.x)
    np.testing.assert_allclose(np.load(path)["x"], x, rtol=1e-6)
    assert x.dtype == torch.float32
    np.testing.assert_allclose((x - train.mean(0)) / train.std(0), drawn.x, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_standardisation_goes_with_an_exported_model(trained, command, tmp_path):
    _, mode = trained(text(TABLE, "a,b,c"), "--config.model.width=8")
    code, _, err = mode("--mode", "convert", "--format", "scorefield", "--output", tmp_path / "model.safetensors")
    assert code == 0, err
    code, _, err = command("--checkpoint", tmp_path / "model.safetensors", "--workdir", tmp_path / "other", "--mode",
                           "sample", "--num_samples", 50, "--steps", 3)
    assert code == 0, err
    assert mode("--mode", "sample", "--num_samples", 50, "--steps", 3)[0] == 0
    first, second = (np.load(next((tmp_path / run / "samples").glob("*.npz")))["x"] for run in ("run", "other"))
    np.testing.assert_array_equal(first, second)
    stored = json.loads((tmp_path / "other/config.json").read_text())
    assert stored["data"]["path"] == "" and Points.from_stored(stored["standard"]).columns == ("a", "b", "c")


@pytest.mark.slow
def test_a_run_goes_on_in_its_own_units_and_says_when_the_data_have_others(trained, command, tmp_path):
    _, mode = trained(text(TABLE, "a,b,c"), "--config.model.width=8")
    before = json.loads((tmp_path / "run/config.json").read_text())["standard"]
    shutil.move(tmp_path / "x.csv", tmp_path / "moved.csv")
    code, out, err = mode("--mode", "train", f"--config.data.path={tmp_path / 'moved.csv'}", "--config.training.steps=3")
    assert code == 0 and "the run keeps" not in out, err
    (tmp_path / "moved.csv").write_text(text(2 * TABLE, "a,b,c"))
    again = ["--mode", "train", f"--config.data.path={tmp_path / 'moved.csv'}", "--config.training.steps=4"]
    code, _, err = mode(*again)
    assert code == 1 and "the data have changed" in err and "--other_data" in err
    code, out, err = mode(*again, "--other_data")
    assert code == 0 and "the run keeps the mean and the standard deviation" in out and "now they are" in out, err
    assert json.loads((tmp_path / "run/config.json").read_text())["standard"] == before


def documented():
    """The command lines of docs/data.md on arrays."""
    text = (ROOT / "docs/data.md").read_text().partition("## Your own arrays")[2].replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    python main\.py (.*)$", text, re.MULTILINE)]


@pytest.mark.slow
def test_every_command_on_arrays_in_the_documentation_runs_as_shown(command, tmp_path, monkeypatch):
    """With small networks and few steps: a table with labels through every mode, series, pictures, a file to hold out."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{a},{b},{'setosa versicolor virginica'.split()[i % 3]}" for i, (a, b, _) in enumerate(TABLE.tolist())]
    (tmp_path / "iris.csv").write_text("\n".join(["length,width,species", *rows, ""]))
    (tmp_path / "others.csv").write_text("width,length\n3,1\n4,2\n")
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(text(TABLE, "a,b,c"))
    np.save("ecg.npy", np.random.default_rng(0).normal(size=(40, 2, 16)))
    np.save("maps.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 4), np.uint8))
    for words in documented():
        table = "vp_table" in words[1]
        small = {"train": [*TRAIN, *(["--config.model.width=8"] if table else [*UNET, "--config.data.dequantize=false"])],
                 "sample": ["--steps", 2], "likelihood": ["--num_images", 2, "--rtol", 0.1, "--atol", 0.1]}
        code, out, err = command(*words, *small.get(words[words.index("--mode") + 1], []))
        assert code == 0, (words, out, err)
    stored = json.loads((tmp_path / "runs/iris/config.json").read_text())
    assert stored["class_names"] == ["setosa", "versicolor", "virginica"]
    assert stored["standard"]["columns"] == ["length", "width"]
    assert {run.name for run in (tmp_path / "runs").iterdir()} == {"iris", "ecg", "maps", "vp_table"}
    assert json.loads((tmp_path / "runs/ecg/config.json").read_text())["shape"] == [2, 16]


@pytest.mark.costly
@pytest.mark.parametrize("array, config, flags", [
    (np.random.default_rng(0).normal(5, 2, (40, 2, 16)), "vp_series", []),
    (np.random.default_rng(0).normal(5, 2, (40, 3, 8, 6)), "vp_digits", ["--config.data.dataset=array",
                                                                         "--config.data.dequantize=false"]),
    (np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3)).astype(np.uint8), "ve_cifar10_ncsnpp",
     ["--config.data.dataset=array", "--config.training.activation_checkpointing=false"]),
], ids=["series", "floats", "ncsnpp"])
def test_series_and_pictures_of_any_sides_work_in_every_mode(array, config, flags, trained, tmp_path):
    _, mode = trained(array, *flags, *UNET, config=config, name="x.npy")
    model, stored = load_denoiser(tmp_path / "run"), json.loads((tmp_path / "run/config.json").read_text())
    shape = (3, 6, 8) if array.shape[-1] == 3 else array.shape[1:]
    assert tuple(stored["shape"]) == shape and model.eps(torch.zeros(2, *shape), 0.5).shape == (2, *shape)
    code, _, err = mode("--mode", "sample", "--num_samples", 5, "--steps", 2)
    assert code == 0, err
    x = np.load(next((tmp_path / "run/samples").glob("*.npz")))["x"]
    assert x.shape == (5, *shape) and (x.dtype == np.uint8) == (array.dtype == np.uint8)
    np.savez(tmp_path / "again.npz", x=x)
    for flags in ([], ["--images", tmp_path / "again.npz"]):
        code, _, err = mode("--mode", "likelihood", "--num_images", 2, "--rtol", 0.1, "--atol", 0.1, *flags)
        assert code == 0, err
    assert codec_of(stored["data"], stored).levels == (256 if array.dtype == np.uint8 else None)
    assert mode("--mode", "report")[0] == 0


@pytest.mark.parametrize("content, name, flags, parts", [
    (np.zeros((40, 2, 6)), "x.npy", ["--config.data.kind=series"], ["channel 0 is 0"]),
    (np.random.default_rng(0).random((40, 2, 30)), "x.npy", ["--config.data.kind=series", "--config.model.network=unet"],
     ["divisible by 8", "got 30", "24 or 32"]),
    (TABLE, "x.npy", ["--config.model.network=unet"], ["--config.model.network", "mlp"]),
    (TABLE, "x.npy", ["--config.data.dequantize=true"], ["--config.data.dequantize"]),
    (TABLE, "x.npy", ["--config.data.columns=a"], ["--config.data.columns"]),
])
def test_what_does_not_fit_is_refused_before_anything_is_written(content, name, flags, parts, command, tmp_path):
    np.save(tmp_path / name, content)
    code, _, err = command("--config", "configs/vp_table.py", "--mode", "train", "--workdir", tmp_path / "run",
                           f"--config.data.path={tmp_path / name}", *flags)
    assert code != 0 and all(part in err for part in parts) and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()
