"""A run's folder under faults: two trainers, kills, damaged and lost files, full disks.

Every command runs in this process, and, as a slow test, in a real main.py process of its own.
"""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import without_config

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import checkpoints_of, read_state
from scorefield.cli import main
from scorefield.numerics.locks import LOCK

ROOT = Path(__file__).parents[2]
POINTS = ["--device=cpu", "--config=configs/vp_swiss_roll.py"]
SHORT = ["--config.training.steps=4", "--config.training.batch_size=16", "--config.training.log_every=1",
         "--config.training.eval_every=0", "--config.training.sample_every=0", "--config.training.checkpoint_every=2",
         "--config.model.width=16", "--config.model.layers=1", "--config.training.decay=constant"]


def start(*words, limit=None):
    """A process of main.py."""
    before = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen([sys.executable, "main.py", *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, preexec_fn=before, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.slow)])
def call(request, monkeypatch):
    """A function that runs a command: its exit code and all that it printed, which holds no traceback."""
    def there(*words, limit=None):
        process = start(*words, limit=limit)
        printed = process.communicate(timeout=120)[0]
        assert "Traceback" not in printed, printed
        return process.returncode, printed

    def here(*words, limit=None):
        monkeypatch.chdir(ROOT)
        return called(words, limit)

    return there if request.param == "process" else here


def called(words, limit=None):
    printed, code, argv, before = io.StringIO(), 0, sys.argv, resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        sys.argv = ["main.py", *map(str, words)]
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, before if limit is None else (limit, before[1]))
            main.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print("" if isinstance(end.code, int) else end.code)
        finally:
            sys.argv = argv
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return code, printed.getvalue()


@pytest.fixture
def train(call):
    return lambda run, *words, **settings: call(*POINTS, "--mode=train", f"--workdir={run}", *SHORT, *words, **settings)


def endless(run):
    """A trainer that has written its first checkpoint and goes on."""
    process = start(*POINTS, "--mode=train", f"--workdir={run}", *SHORT, "--config.training.steps=1000000")
    until(lambda: checkpoints_of(run))
    return process


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    code, printed = called([*POINTS, "--mode=train", f"--workdir={run}", *SHORT])
    assert code == 0, printed
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


# One writer


def test_a_second_trainer_of_a_folder_is_refused_in_one_line_that_names_the_first(tmp_path, train):
    first = endless(tmp_path / "run")
    try:
        code, printed = train(tmp_path / "run")
        assert code == 1 and re.fullmatch(rf"error: .* is being trained by process {first.pid} on .*--workdir.*\n", printed)
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    # The lock has died with the first one, whose unfinished files are removed.
    assert (tmp_path / "run" / LOCK).exists()
    (tmp_path / "run" / "checkpoints" / f".step_00000009.pt.{first.pid}.tmp").write_bytes(b"half")
    code, printed = train(tmp_path / "run", "--config.training.steps=1")
    assert f"process {first.pid}" in printed and "which is dead" in printed and "removed" in printed, printed
    assert not list((tmp_path / "run").rglob(".*.tmp"))


@pytest.mark.slow
def test_of_two_trainers_started_at_once_one_trains_and_the_other_is_refused(tmp_path):
    for i in range(4):
        words = [*POINTS, "--mode=train", f"--workdir={tmp_path / str(i)}", *SHORT, "--config.training.steps=400"]
        both = [start(*words), start(*words)]
        printed = [process.communicate(timeout=120)[0] for process in both]
        codes = sorted(process.returncode for process in both)
        # One that comes after the other has ended finds a finished run, or says that the folder has changed.
        assert codes == [0, 1] or (codes == [0, 0] and "already" in "".join(printed)), printed
        assert len(json.loads((tmp_path / str(i) / "stats.jsonl").read_text().splitlines()[-1])) > 3
        assert [step for step, _ in checkpoints_of(tmp_path / str(i))][-2:] == [398, 400]      # maybe after a sound one
        assert not (tmp_path / str(i) / LOCK).exists()


def test_a_trainer_that_is_refused_leaves_no_folder_behind(tmp_path, train):
    code, printed = train(tmp_path / "a" / "run", "--config.data.dataset=array", "--config.data.path=/nowhere")
    assert code == 1 and "/nowhere" in printed and not (tmp_path / "a").exists()


# The config


@pytest.mark.parametrize(("section", "field", "value"), [
    ("sde", "beta_max", 10.0), ("model", "parametrization", "v"), ("model", "width", 32), ("data", "size", 7)])
def test_an_edit_of_config_json_is_an_error_that_names_the_field_in_every_mode(run, tmp_path, section, field, value, call):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config[section][field] = value
    path.write_text(json.dumps(config))
    modes = [["--mode=sample", "--num_samples=2"], ["--mode=convert", f"--output={tmp_path / 'x.safetensors'}"],
             ["--mode=train", "--config.training.steps=6"]]
    for words in modes if field == "beta_max" else modes[:1]:
        code, printed = call("--device=cpu", f"--workdir={run}", *words)
        assert code == 1 and f"{section}.{field} is {value!r}, but was" in printed and printed.count("\n") == 1, printed
    with pytest.raises(ValueError, match=rf"{section}\.{field}"):
        load_denoiser(run)
    assert not (run / "samples").exists() and not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("words", [["--mode=sample", "--num_samples=2", "--steps=2"],
                                   ["--mode=train", "--config.training.steps=6"]], ids=["sample", "train"])
def test_a_lost_config_json_is_written_anew_from_the_checkpoint(words, run, call):
    before = (run / "config.json").read_text()
    (run / "config.json").unlink()
    code, printed = call("--device=cpu", f"--workdir={run}", *words)
    assert code == 0 and "had lost its config.json; it is written anew from step_00000004.pt" in printed, printed
    if "--mode=sample" in words:
        assert json.loads((run / "config.json").read_text()) == json.loads(before)
    else:
        assert read_state(checkpoints_of(run)[-1][1])["step"] == 6


def test_a_checkpoint_of_before_the_config_was_in_it_still_trains_and_samples(run, train):
    without_config(run)
    load_denoiser(run)
    code, printed = train(run, "--config.training.steps=6")
    assert code == 0 and "continues from" in printed and read_state(checkpoints_of(run)[-1][1])["config"]["sde"]


def test_an_import_is_trained_on_other_data_and_its_checkpoint_then_says_so(run, tmp_path, call):
    file, new = tmp_path / "x.safetensors", tmp_path / "new"
    assert call("--mode=convert", f"--workdir={run}", f"--output={file}")[0] == 0
    sample = ["--device=cpu", f"--workdir={new}", "--mode=sample", "--num_samples=2", "--steps=2"]
    assert call(*sample, f"--checkpoint={file}")[0] == 0
    words = ["--device=cpu", f"--workdir={new}", "--mode=train"]
    code, printed = call(*words, "--config.data.dataset=gaussians8", "--config.training.steps=5")
    assert code == 0 and "continues from" in printed, printed
    assert [read_state(path)["config"]["data"]["dataset"] for _, path in checkpoints_of(new)] == ["gaussians8"] * 2
    (new / "checkpoints" / "step_00000005.pt").unlink()      # as if it had been killed before its first save
    assert call(*sample)[0] == 0
    assert call(*words, "--config.training.steps=6")[0] == 0
    code, printed = call(*words, "--config.data.dataset=gaussians25", "--config.training.steps=8")
    assert code == 1 and "holds another experiment: data.dataset is 'gaussians8'" in printed


# Checkpoints


def test_names_that_are_no_steps_are_ignored_with_a_word_and_steps_are_numbers(run, train):
    folder = run / "checkpoints"
    shutil.copy(folder / "step_00000002.pt", folder / "step_backup.pt")
    shutil.copy(folder / "step_00000002.pt", folder / "step_00000060.pt")
    code, printed = train(run, "--config.training.steps=6")
    assert code == 0 and "step_backup.pt is ignored" in printed and "holds step 2; step_00000004.pt is used" in printed
    assert [step for step, _ in checkpoints_of(run)] == [4, 6, 60]
    for name in ("step_99999999.pt", "step_100000000.pt", "step_0100000001.pt", "step_5.pt"):
        (folder / name).touch()
    assert [step for step, _ in checkpoints_of(run)][-2:] == [99_999_999, 100_000_000]


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_it_used(run, train, call):
    newest = run / "checkpoints" / "step_00000004.pt"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:len(whole) // 2])
    for words in (["--mode=sample", "--num_samples=2", "--steps=2"], ["--mode=train"]):
        code, printed = call("--device=cpu", f"--workdir={run}", *words, "--strict")
        assert code == 1 and str(newest) in printed and printed.count("\n") == 1, printed
    with pytest.warns(UserWarning, match="step_00000002.pt is used instead"):
        load_denoiser(run)
    with pytest.raises(ValueError, match="leave out strict"):
        load_denoiser(run, strict=True)
    code, printed = call("--device=cpu", f"--workdir={run}", "--mode=sample", "--num_samples=2", "--steps=2")
    assert code == 0 and "step_00000002.pt is used instead" in printed
    code, printed = train(run)
    assert code == 0 and "step_00000002.pt is used instead" in printed
    assert torch.equal(read_state(newest)["ema"]["last.weight"],      # trained again, to the bit
                       torch.load(_written(newest, whole), weights_only=True)["ema"]["last.weight"])


def _written(path, content):
    copy = path.with_name("copy")
    copy.write_bytes(content)
    return copy


def test_a_run_that_has_lost_its_checkpoints_is_refused_and_starts_anew_if_asked(run, train):
    shutil.rmtree(run / "checkpoints")
    code, printed = train(run)
    assert code == 1 and "checkpoints are gone" in printed and "--restart" in printed and printed.count("\n") == 1
    history = (run / "history.jsonl").read_bytes()
    (run / "history.jsonl").unlink()      # of an older version: the figures say how far it came
    assert "checkpoints are gone" in train(run)[1]
    (run / "history.jsonl").write_bytes(history)
    code, printed = train(run, "--restart")
    assert code == 0 and [step for step, _ in checkpoints_of(run)] == [2, 4]
    assert train(run, "--restart", "--config.training.steps=6")[0] == 1      # which has lost nothing


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_first_checkpoint_just_starts_again(tmp_path, train):
    process = start(*POINTS, "--mode=train", f"--workdir={tmp_path / 'run'}", *SHORT, "--config.training.steps=1000000",
                    "--config.training.checkpoint_every=1000000")
    stats = tmp_path / "run" / "stats.jsonl"
    until(lambda: stats.exists() and stats.stat().st_size)
    process.kill()
    process.communicate()
    code, printed = train(tmp_path / "run")
    assert code == 0 and [step for step, _ in checkpoints_of(tmp_path / "run")] == [2, 4], printed


# Disks


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_may_not_grow_is_one_line_with_its_path_and_the_old_one_is_whole(run, share, train):
    newest = checkpoints_of(run)[-1][1]
    code, printed = train(run, "--config.training.steps=6", limit=100 + int(newest.stat().st_size * share))
    assert code == 1 and "File too large" in printed.splitlines()[-1] and str(run) in printed.splitlines()[-1], printed
    assert read_state(newest)["step"] == 4 and not list(run.rglob(".*.tmp"))
    assert train(run, "--config.training.steps=6")[0] == 0


@pytest.mark.parametrize("damage", [
    b'{"step": 3, "lo', b"\xff\xfe\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": "4"}\n', b"\0" * 40])
def test_a_damaged_stats_file_is_mended_with_a_word_and_reported(run, damage, train, call):
    with open(run / "stats.jsonl", "ab") as file:
        file.write(damage)
    code, printed = call("--mode=report", f"--workdir={run}")
    assert code == 0 and "1 damaged line left out" in printed
    code, printed = train(run, "--config.training.steps=5")
    assert code == 0 and "stats.jsonl was damaged" in printed, printed
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_training_does_not_need_the_stats_file(run, train):
    (run / "stats.jsonl").unlink()
    (run / "stats.jsonl").mkdir()
    code, printed = train(run, "--config.training.steps=5")
    assert code == 0 and "goes on without its figures" in printed, printed


# Settings and data


def test_changed_settings_are_printed_and_kept_and_those_that_matter_are_named(run, train):
    code, printed = train(run, "--config.training.steps=6", "--config.training.learning_rate=0.5",
                          "--config.training.keep=5", "--config.training.log_groups=true")
    assert code == 0 and "training.keep was 2 up to step 4 and is 5 from here on\n" in printed
    assert re.search(r"training.learning_rate was \S+ up to step 4 and is 0.5 from here on: the run is not equal", printed)
    events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert {event["field"]: event["equal"] for event in events if event["event"] == "changed"} == {
        "training.steps": True, "training.learning_rate": False, "training.keep": True,
        "training.log_groups": True}
    assert events[0]["event"] == "first checkpoint" and events[-1]["step"] == 4 and events[-1]["date"]


def test_changed_data_are_named_and_taken_only_if_asked(tmp_path, train):
    data, run = tmp_path / "data.npy", tmp_path / "run"
    rows = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    words = ["--config.data.dataset=array", f"--config.data.path={data}"]
    np.save(data, rows)
    assert train(run, *words)[0] == 0
    moved = data.rename(tmp_path / "moved.npy")
    assert train(run, words[0], f"--config.data.path={moved}", "--config.training.steps=5")[0] == 0
    np.save(data, rows[:100])
    code, printed = train(run, *words, "--config.training.steps=6")
    assert code == 1 and "train has 90 examples, not 180" in printed and "--other_data" in printed
    np.save(data, rows[::-1].copy())
    assert "other examples, or another order" in train(run, *words, "--config.training.steps=6")[1]
    assert train(run, *words, "--config.training.steps=6", "--other_data")[0] == 0
    assert '"field": "data"' in (run / "history.jsonl").read_text()
    assert train(run, *words, "--config.training.steps=8")[0] == 0      # known now


@pytest.mark.slow
def test_sigkill_at_any_time_leaves_a_run_that_goes_on(tmp_path, train):
    process = endless(tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    last = checkpoints_of(tmp_path / "run")[-1][0]
    code, printed = train(tmp_path / "run", f"--config.training.steps={last + 2}")
    assert code == 0 and "continues from" in printed
