"""Mode evaluate, as a user meets it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import made_once, train_briefly
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scorefield.data import load_dataset
from scorefield.evaluation import evaluate as evaluate_run
from scorefield.samplers import make_sampler

ROOT = Path(__file__).parents[2]
EVALUATE = ["--mode", "evaluate", "--steps", 3, "--batch_size", 16, "--num_samples", 60, "--bootstrap", 50]
NAME = "auto_steps3_batch_size16_num_samples60_bootstrap50"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One folder of statistics for all tests, and a likelihood of few evaluations."""
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path_factory.getbasetemp() / "statistics_of_tests"))
    monkeypatch.setitem(sys.modules["scorefield.evaluation.evaluate"].LIKELIHOOD, "steps", 8)


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run")


def results(run, name=NAME):
    return json.loads((run / f"evaluation/{name}.json").read_text())["results"]


def figures(run, name=NAME):
    """The results without what differs from run to run: seconds and folders."""
    return {step: {"metrics": row["metrics"], "num_samples": row["num_samples"], "nfe": row["nfe"],
                   "bits": row.get("likelihood", {}).get("bits_per_dim")} for step, row in results(run, name).items()}


def refuse_to_draw(monkeypatch):
    def draw_batch(*_, **__):
        raise AssertionError("drew samples")

    monkeypatch.setattr(sys.modules["scorefield.evaluation.generate"], "draw_batch", draw_batch)


def test_every_checkpoint_has_its_figures_in_json_tensorboard_and_the_report(command, run, monkeypatch):
    code, out, err = command("--workdir", run, *EVALUATE, "--metrics", "fid,energy", "--checkpoints", "all", "--likelihood")
    assert code == 0, err
    assert "step 2: 60 samples, 3 evaluations each" in out and "step 4: " in out and out.count("bits/dim") == 2
    rows = results(run)
    assert list(rows) == ["2", "4"] and set(rows["2"]["metrics"]) == {"fid", "energy"}
    assert rows["2"]["metrics"]["fid"]["value"] != rows["4"]["metrics"]["fid"]["value"]
    assert rows["4"]["metrics"]["fid"]["floor"] > 0 and rows["4"]["likelihood"]["num_images"] == 360
    told = EventAccumulator(str(run / "tensorboard")).Reload()
    for step in (2, 4):
        logged = {scalar.step: scalar.value for scalar in told.Scalars(f"evaluation/fid/{NAME}")}
        assert logged[step] == pytest.approx(rows[str(step)]["metrics"]["fid"]["value"])
        assert step in {scalar.step for scalar in told.Scalars(f"evaluation/bits_per_dim/{NAME}")}
    table = command("--workdir", run, "--mode", "report")[1]
    assert table.count("fid ") == 2 and table.count("60 samples, step 4") == 3
    assert table.count("samples/auto_steps3_batch_size16") == 2      # the samples themselves, which have no picture
    refuse_to_draw(monkeypatch)
    code, out, err = command("--workdir", run, *EVALUATE, "--metrics", "mmd", "--checkpoints", "2,4")      # one figure more
    assert code == 0 and out.count("mmd") == 2, err
    assert set(results(run)["2"]["metrics"]) == {"fid", "energy", "mmd"} and "likelihood" in results(run)["2"]
    assert {path.name for path in (run / "samples").iterdir()} == {
        f"auto_steps3_batch_size16{step}{suffix}" for step in ("", "_step00000002") for suffix in (".json", ".npz")}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(command, run, tmp_path):
    """The same samples to the bit, and so the same figures. A run of 10,000 samples is described in docs/evaluation.md."""
    shutil.copytree(run, tmp_path / "two")
    words = [*map(str, EVALUATE), "--checkpoints", "all"]
    for folder, launcher in ((run, []), (tmp_path / "two", ["-m", "torch.distributed.run", "--nproc_per_node=2",
                                                            "--standalone"])):
        subprocess.run([sys.executable, *launcher, "main.py", "--workdir", str(folder), *words], check=True, cwd=ROOT,
                       capture_output=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert figures(run) == figures(tmp_path / "two") and len(figures(run)) == 2
    assert not list((tmp_path / "two/samples").glob("*.parts"))


def test_the_function_finds_what_the_command_finds(command, run):
    assert command("--workdir", run, *EVALUATE)[0] == 0
    found = evaluate_run(run, n=60, sampler=make_sampler("auto", steps=3), batch_size=16, bootstrap=50, progress=False)
    row = results(run)["4"]["metrics"]
    assert {name: figure.value for name, figure in found.figures.items()} == pytest.approx(
        {name: figure["value"] for name, figure in row.items()}, rel=1e-2)      # convolutions in another memory format


def test_a_killed_evaluation_goes_on(command, run, monkeypatch):
    module = sys.modules["scorefield.evaluation.evaluate"]
    measure, done = module.measure, []

    def kill(samples, metrics, codec):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return measure(samples, metrics, codec)

    monkeypatch.setattr(module, "measure", kill)
    words = ["--workdir", run, *EVALUATE, "--metrics", "energy", "--checkpoints", "all"]
    assert command(*words)[0] == 130 and list(results(run)) == ["2"]
    monkeypatch.setattr(module, "measure", measure)
    refuse_to_draw(monkeypatch)
    code, _, err = command(*words)
    assert code == 0 and list(results(run)) == ["2", "4"], err


def test_samples_in_a_file_get_the_figures_of_drawn_ones(command, run):
    assert command("--workdir", run, *EVALUATE, "--metrics", "energy,fid")[0] == 0
    code, out, err = command("--workdir", run, "--mode", "evaluate", "--images",
                             run / "samples/auto_steps3_batch_size16.npz", "--metrics", "energy,fid", "--bootstrap", 50)
    assert code == 0 and "nan" not in out, err
    name = next((run / "evaluation").glob("images_auto_steps3_batch_size16_*.json")).stem
    assert results(run, name)["images"]["metrics"] == results(run)["4"]["metrics"]
    assert "examples of" in command("--workdir", run, "--mode", "report")[1]


def test_another_number_of_samples_goes_on_and_has_results_of_its_own(command, run):
    assert command("--workdir", run, *EVALUATE, "--metrics", "energy")[0] == 0
    code, out, err = command("--workdir", run, *EVALUATE, "--metrics", "energy", "--num_samples", 70)
    assert code == 0 and "continuing: 48 of 70" in out, err
    with np.load(run / "samples/auto_steps3_batch_size16.npz") as arrays:
        assert len(arrays["x"]) == 70
    assert results(run, NAME.replace("60", "70"))["4"]["num_samples"] == 70 and results(run)["4"]["num_samples"] == 60


@pytest.mark.parametrize("words, parts", [
    (["--num_samples", 5], ["fid needs at least 50 samples, got 5", "--num_samples"]),
    (["--metrics", "fid,fud"], ["'fud'", "did you mean 'fid'", "--metrics"]),
    (["--features", "inception", "--inception_weights", "/nope"], ["'/nope'", "--inception_weights"]),
    (["--inception_weights", "/nope"], ["so give features 'inception', too", "--inception_weights"]),
    (["--features", "/nope.pt"], ["/nope.pt", "--features"]),
    (["--features", "fashion_mnist"], ["(1, 28, 28)", "--features"]),
    (["--checkpoints", "3"], ["no checkpoint of step 3; it has those of 2, 4", "--config.training.keep", "--checkpoints"]),
    (["--checkpoints", "some"], ["newest, all, or steps", "--checkpoints"]),
    (["--images", "x.npz", "--steps", 3], ["leave out", "steps", "--images"]),
    (["--images", "/nope.npz"], ["'/nope.npz'", "--images"]), (["--reference_samples", 1], ["--reference_samples"]),
    (["--label", 3], ["takes no label"]), (["--likelyhood"], ["likelihood"]),
])
def test_a_mistake_is_one_line_and_writes_nothing(words, parts, command, digits_run):
    before = sorted(digits_run.rglob("*"))
    code, _, err = command("--workdir", digits_run, "--mode", "evaluate", *words)
    assert code not in (0, None) and len(err.strip().splitlines()) == 1 and all(part in err for part in parts), err
    assert sorted(digits_run.rglob("*")) == before


def jobs():
    """Every command of docs/evaluation.md, but for the one that downloads Inception's weights."""
    text = (ROOT / "docs/evaluation.md").read_text()
    lines = re.findall(r"(?:python|torchrun --nproc_per_node=4) main\.py (--workdir [^`\n]+)", text)
    assert len(lines) >= 15
    wanted = [line for line in lines if not line.endswith("--features inception --num_samples 50000")]
    pages = [line for line in wanted if "--mode compare" in line]
    quick = [wanted[0], pages[0]]
    return [line if line in quick else pytest.param(line, marks=pytest.mark.slow) for line in wanted]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return made_once(tmp_path_factory, "jobs", lambda folder: train_briefly("vp_digits_labels", folder / "run")) / "run"


@pytest.mark.one_machine
@pytest.mark.parametrize("line", jobs())
@pytest.mark.slow
def test_a_job_of_the_page_runs(line, command, labelled, tmp_path, monkeypatch):
    """On a small run and few samples; the TorchScript of a mean stands for Inception's weights."""
    monkeypatch.chdir(tmp_path)
    script = torch.jit.trace(Blocks(), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    torch.jit.save(script, "weights.pth")
    np.savez("other.npz", np.random.default_rng(0).integers(0, 17, (60, 1, 8, 8), dtype=np.uint8))
    words = shlex.split(re.sub(r"--workdir \S+", f"--workdir {labelled}", line.replace("10000,20000", "2,4")))
    few = [] if "--measurement" in words else ["--num_samples", 60] + (["--bootstrap", 10] if "evaluate" in words else [])
    few += [] if "--images" in words else ["--budgets", 10] if "compare" in words else ["--steps", 3]
    code, out, err = command(*words, *few)
    assert code == 0 and "wrote" in out, err


class Blocks(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x.float(), 2).flatten(1)


def test_classes_are_compared_with_their_own_examples_and_a_guided_model_has_no_likelihood(command, labelled, tmp_path):
    run = shutil.copytree(labelled, tmp_path / "run")
    words = ["--workdir", run, *EVALUATE, "--metrics", "energy", "--likelihood"]
    assert command(*words, "--label", "0,3")[0] == 0
    told = json.loads(next((run / "evaluation").glob("*_label_0-3_*.json")).read_text())
    row, data = told["results"]["4"], load_dataset({"dataset": "digits"})
    own = [sum(int(y) in (0, 3) for y in split.condition["label"]) for split in (data.train, data.test)]
    assert told["classes"] == ["0", "3"] and row["metrics"]["energy"]["reference"] == own[0]
    assert row["likelihood"]["num_images"] == own[1]
    code, _, err = command(*words, "--label", "all", "--guidance", 2)
    assert code == 1 and "score of no known density" in err and "--guidance" in err and "--likelihood" in err


class Wide(torch.nn.Module):
    def forward(self, x):
        return x.float().flatten(1) @ torch.ones(7, 3)


def test_a_feature_network_that_does_not_fit_is_found_before_anything_is_drawn(command, run, tmp_path, monkeypatch):
    refuse_to_draw(monkeypatch)
    torch.jit.save(torch.jit.script(Wide()), tmp_path / "wide.pt")
    code, _, err = command("--workdir", run, *EVALUATE, "--features", tmp_path / "wide.pt")
    assert code == 1 and len(err.strip().splitlines()) == 1, err
    assert all(part in err for part in ("pictures of shape (1, 8, 8)", "(RuntimeError: mat1 and mat2", "--features"))


def test_a_record_holds_figures_of_one_setting_and_data_alone(command, run):
    words = ["--workdir", run, *EVALUATE, "--metrics", "energy"]
    assert command(*words, "--checkpoints", "2,4")[0] == 0
    path = run / f"evaluation/{NAME}.json"
    told = json.loads(path.read_text())
    assert told["data"]["name"] == "digits" and told["data"]["train"] == 1437 and len(told["results"]) == 2
    code, out, _ = command(*words, "--checkpoints", "2")
    assert code == 0 and "held figures" not in out and len(results(run)) == 2
    path.write_text(json.dumps(told | {"identity": "of other data"}))
    code, out, err = command(*words)
    assert code == 0 and "held figures of other settings or against other data" in out, err
    assert list(results(run)) == ["4"] and json.loads(path.read_text())["data"] == told["data"]


def test_further_metrics_of_images_are_added_and_other_images_begin_anew(command, run, tmp_path):
    array = tmp_path / "further.npz"
    words = ["--workdir", run, "--mode", "evaluate", "--images", array, "--bootstrap", 20]
    np.savez(array, pictures := np.random.default_rng(0).integers(0, 17, (60, 1, 8, 8), dtype=np.uint8))
    assert command(*words, "--metrics", "energy")[0] == 0
    code, out, err = command(*words, "--metrics", "mmd", "--num_samples", 100)
    assert code == 0 and "holds 60 examples, fewer than num_samples 100" in out, err
    code, out, err = command(*words, "--metrics", "mmd")
    found = (run / "evaluation").glob("images_further_*_bootstrap20.json")
    name = next(file.stem for file in found if "num_samples" not in file.stem)
    assert code == 0 and set(results(run, name)["images"]["metrics"]) == {"energy", "mmd"} and out.count("energy") == 1, err
    np.savez(array, pictures[::-1])
    assert command(*words, "--metrics", "mmd")[0] == 0 and set(results(run, name)["images"]["metrics"]) == {"mmd"}
    np.savez(array, pictures[:5])
    code, _, err = command(*words, "--metrics", "fid")
    assert code == 1 and "at least 50 samples, got 5" in err and "--images" in err and "--num_samples" not in err
