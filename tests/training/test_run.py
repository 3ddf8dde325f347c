"""train() in Python: what the command line calls."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefield.checkpoints import load_denoiser
from scorefield.configs import vp_digits, vp_swiss_roll
from scorefield.configs.loading import load_config
from scorefield.data import from_arrays
from scorefield.evaluation import Preview
from scorefield.samplers import make_sampler, prior_sample
from scorefield.training import train

ROOT = Path(__file__).parents[2]
FEW = {"training.steps": 3, "training.batch_size": 8, "training.log_every": 1, "training.checkpoint_every": 3,
       "training.sample_every": 0, "training.precision": "fp32"}
POINTS = FEW | {"model.width": 8, "model.layers": 1}
PICTURES = FEW | {"model.width": 8}


def points(n=40):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def quick(config=vp_swiss_roll, workdir=None, overrides=None, **more):
    return train(config, workdir=workdir, device="cpu", overrides=POINTS if overrides is None else overrides, progress=False,
                 **more)


def test_a_run_is_a_folder_that_loads_and_samples(tmp_path):
    run = quick(workdir=tmp_path / "roll")
    assert run == tmp_path / "roll" and json.loads((run / "config.json").read_text())["config"] == "vp_swiss_roll"
    model = load_denoiser(run)
    x = make_sampler("ddim", steps=2)(model, prior_sample(model.sde, (2,), range(4))).x
    assert x.shape == (4, 2) and bool(x.isfinite().all())


def test_a_path_a_module_and_an_object_are_the_same_config(tmp_path):
    path = ROOT / "configs/vp_swiss_roll.py"
    for name, config in (("path", path), ("text", str(path)), ("module", vp_swiss_roll), ("object", load_config(str(path)))):
        quick(config, tmp_path / name)
    weights = [load_denoiser(tmp_path / name).state_dict() for name in ("path", "text", "module", "object")]
    assert all(torch.equal(weights[0][key], other[key]) for other in weights[1:] for key in other)


def test_the_callers_config_is_left_as_it_was(tmp_path):
    config = vp_swiss_roll.get_config()
    before = config.to_dict()
    quick(config, tmp_path / "run", dataset=points())
    assert config.to_dict() == before


@pytest.mark.parametrize("make", [points, lambda: points().numpy(), lambda: from_arrays(points())])
def test_own_points_can_be_a_tensor_an_array_or_a_data_set(make, tmp_path):
    run = quick(workdir=tmp_path / "mine", dataset=make())
    stored = json.loads((run / "config.json").read_text())
    assert stored["data"]["dataset"] == "arrays" and stored["shape"] == [2] and stored["levels"] is None
    assert load_denoiser(run)(torch.zeros(1, 2), 0.5).shape == (1, 2)


def test_own_pictures_are_trained_on_in_the_interval_of_the_config(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    run = quick(vp_digits, tmp_path / "mine", PICTURES | {"data.low": 0.0}, dataset=pictures)
    stored = json.loads((run / "config.json").read_text())
    assert stored["data"] == {"dataset": "arrays", "low": 0.0, "high": 1.0, "dequantize": True, "degradation": "",
                              "low_res_noise": 0.0, "reduce": 1, "autoencoder": ""}
    assert (stored["shape"], stored["levels"]) == ([3, 8, 8], 256)


def test_training_again_goes_on_and_a_finished_run_stays_as_it_is(tmp_path):
    run = quick(workdir=tmp_path / "run")
    quick(workdir=run, overrides=POINTS | {"training.steps": 5})
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    before = (run / "config.json").read_bytes()
    quick(workdir=run, overrides=POINTS | {"training.steps": 5})
    assert (run / "config.json").read_bytes() == before
    with pytest.raises(ValueError, match="at step 5 already.*training.steps, which is 3"):
        quick(workdir=run)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    run = quick(workdir=tmp_path / "run")
    with pytest.raises(ValueError, match="another experiment: model.width is 8 there and 16 here"):
        quick(workdir=run, overrides=POINTS | {"model.width": 16})
    with pytest.raises(ValueError, match="another experiment: data.dataset is 'swiss_roll' there and 'arrays' here"):
        quick(workdir=run, dataset=points())
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("...")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        quick(workdir=tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]


@pytest.mark.parametrize("arguments, match", [
    ({"config": 3}, "config must be a path, a module"), ({"config": vp_swiss_roll.get_config()}, "say where"),
    ({"overrides": {"training.step": 3}}, "training.step"), ({"overrides": {"training.batch_size": 0}}, "above 0"),
    ({"dataset": torch.zeros(3)}, "x_train must be"), ({"dataset": np.array([["a"]])}, "array of numbers"),
])
def test_a_mistake_is_named_before_anything_is_written(arguments, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match) as caught:
        train(arguments.pop("config", vp_swiss_roll), device="cpu", **arguments)
    assert caught.value.arguments and not list(tmp_path.iterdir())


def test_a_preview_is_drawn_for_tensorboard(tmp_path):
    seen = []

    def preview(model, dataset, codec):
        seen.append((dataset.shape, codec.levels))
        return Preview(2)(model, dataset, codec)

    quick(workdir=tmp_path / "run", overrides=POINTS | {"training.sample_every": 3}, preview=preview)
    assert seen == [((2,), None)]


def test_it_trains_on_a_thread_and_says_nothing_without_progress(tmp_path, capfd):
    thread = threading.Thread(target=quick, kwargs={"workdir": tmp_path / "thread"})
    thread.start()
    thread.join()
    quick(workdir=tmp_path / "main")
    assert not capfd.readouterr().out
    there, here = (load_denoiser(tmp_path / name).state_dict() for name in ("thread", "main"))
    assert all(torch.equal(there[key], here[key]) for key in here)


def test_objectives_are_imported_without_the_trainer():
    code = ("import sys, scorefield.training.objectives; "
            "sys.exit(bool({'scorefield.training.trainer', 'tensorboard', 'scorefield.configs'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
