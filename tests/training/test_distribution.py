"""Processes of torchrun (gloo) train as one does, with whole networks and with shares, and their checkpoints move.

Sums are in another order where the work is shared, which a few steps of Adam carry on: weights agree to `CLOSE`. What
continues in the same way is equal to the bit.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.checkpoints.snapshots import snapshots_of
from scorefield.configs.default import get_config
from scorefield.data import load_dataset
from scorefield.numerics.errors import ArgumentError
from scorefield.training import set_up

pytestmark = pytest.mark.slow      # several processes of gloo for minutes; tests/training/test_trainer.py has two of DDP

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join(map(str, [ROOT, ROOT / "tests", Path(__file__).parent]))
CLOSE = {"rtol": 1e-4, "atol": 5e-6}
OF_THE_MACHINE = ("seconds", "steps_per_second", "examples_per_second", "data_wait", "memory_gib", "share_of_peak")
WHOLE, SHARES, APART = {}, {"sharding": "fsdp"}, {"sharding": "fsdp", "sharded_saves": True}
# What an update may have beside Adam and one average.
RICH = {"optimizer": "adamw", "weight_decay": 0.1, "averages": "0.9,power0.1", "accumulate": 2, "snapshots_every": 2,
        "log_groups": True, "on_nonfinite": "skip", "eval_every": 1, "log_every": 1}


def config_of(**training):
    config = get_config()
    config.data.dequantize = True
    config.model.update(width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), dropout=0.0)
    config.training.update(steps=4, batch_size=16, warmup=2, learning_rate=1e-3, precision="fp32", log_every=2,
                           checkpoint_every=2, eval_every=2, sample_every=2, sample_steps=2, keep=9)
    config.training.update(**training)
    return config


def picture(model, dataset, codec):
    """A preview that evaluates the network, as those of samples do."""
    x = model.x0(torch.zeros(1, 1, 8, 8), 0.5)
    return (x[0].clamp(0, 1) * 255).to(torch.uint8).expand(3, 8, 8)


def trainer_of(run, settings):
    run.mkdir(exist_ok=True)
    config = config_of(**settings)
    return set_up(config, load_dataset(config.data), run, torch.device("cpu"), picture)


def train(run, settings):
    return trainer_of(run, settings).train()


def torchrun(processes, *words, restarts=0):
    """What a script prints under torchrun; RuntimeError with its errors if it fails. No process outlives a timeout."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone",
         f"--max-restarts={restarts}", *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PLACES})
    try:
        out, errors = launcher.communicate(timeout=300 * processes)
    except subprocess.TimeoutExpired:
        launcher.terminate()      # torchrun then ends its processes
        raise RuntimeError(launcher.communicate()[1]) from None
    if launcher.returncode:
        raise RuntimeError(errors)
    return out


def train_together(processes, folder, jobs):
    """Train runs in the folder, one after the other, by processes of torchrun: jobs are (name, settings)."""
    script = folder / "train.py"
    script.write_text("import json, sys; from pathlib import Path; from test_distribution import train\n"
                      "for name, settings in json.loads(sys.argv[1]): train(Path(sys.argv[2], name), settings)\n")
    torchrun(processes, script, json.dumps(jobs), folder)


def state(run, step=4):
    """The state in the newest checkpoint, which is at that step."""
    found = read_state(newest_checkpoint(run))
    assert found["step"] == step
    return found


def tensors(state):
    moments = {f"{i}.{name}": moment for i, entry in state["optimizer"]["state"].items() for name, moment in entry.items()}
    averages = {f"{name}.{key}": p for name, average in state["averages"].items() for key, p in average["weights"].items()}
    return {**state["network"], **{f"ema.{name}": p for name, p in state["ema"].items()}, **moments, **averages}


def assert_close(a, b):
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys() and a["ema_updates"] == b["ema_updates"]
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def assert_equal(a, b):
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of four steps: of one process, of two, and those that changed their ways after two steps."""
    folder = tmp_path_factory.mktemp("distribution")
    train(folder / "one", WHOLE)
    train(folder / "one then shares", WHOLE | {"steps": 2})
    train(folder / "rich one", RICH)
    train_together(2, folder, [
        ("whole", WHOLE), ("shares", SHARES), ("apart", APART), ("recomputed", SHARES | {"activation_checkpointing": True}),
        ("whole then shares", WHOLE | {"steps": 2}), ("whole then shares", SHARES),
        ("shares then whole", SHARES | {"steps": 2}), ("shares then whole", WHOLE),
        ("apart then apart", APART | {"steps": 2}), ("apart then apart", APART),
        ("apart then one", APART | {"steps": 2}), ("one then shares", SHARES),
        ("rich shares", RICH | SHARES), ("rich apart", RICH | APART | {"steps": 2}), ("rich apart", RICH | APART)])
    train(folder / "apart then one", WHOLE)
    return folder


@pytest.mark.parametrize("name", ["whole", "shares", "apart", "recomputed"])
def test_two_processes_train_as_one(runs, name):
    assert_close(state(runs / name), state(runs / "one"))


@pytest.mark.parametrize("name", ["whole then shares", "shares then whole", "apart then one", "one then shares"])
def test_a_run_goes_on_with_other_processes_and_shares(runs, name):
    assert_close(state(runs / name), state(runs / "one"))


def test_a_run_in_shares_goes_on_as_if_it_had_not_stopped(runs):
    assert_equal(state(runs / "apart then apart"), state(runs / "apart"))
    assert_equal(state(runs / "apart"), state(runs / "shares"))      # however they are saved


def test_training_goes_on_while_shares_are_written_and_changes_nothing_of_them(runs):
    """Step 2 of a run of four steps, against the end of one of two."""
    for name, other in (("apart", "apart then apart"), ("shares", "shares then whole")):
        first = next(path for path in (runs / name / "checkpoints").iterdir() if path.stem == "step_00000002")
        second = next(path for path in (runs / other / "checkpoints").iterdir() if path.stem == "step_00000002")
        assert_equal(read_state(first), read_state(second))


def test_held_out_figures_and_previews_are_those_of_one_process(runs):
    lines = {name: json.loads((runs / name / "stats.jsonl").read_text().splitlines()[-1]) for name in ("one", "shares")}
    assert lines["shares"]["held_out_loss"] == pytest.approx(lines["one"]["held_out_loss"], rel=1e-4)
    assert lines["shares"]["loss"] == pytest.approx(lines["one"]["loss"], rel=1e-4)


def test_a_checkpoint_in_shares_is_a_folder_with_nothing_beside_it(runs):
    folder = newest_checkpoint(runs / "apart")
    assert folder.is_dir() and {path.name for path in folder.iterdir()} == {
        ".metadata", "__0_0.distcp", "__1_0.distcp", "digest.json", "state.pt"}
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parametrize("name", ["rich shares", "rich apart"])
def test_every_part_of_an_update_works_in_shares(runs, name):
    ours, theirs = state(runs / name), state(runs / "rich one")
    assert_close(ours, theirs)
    assert {key: (of["updates"], of["since"]) for key, of in ours["averages"].items()} == {"0.9": (4, 0), "power0.1": (4, 0)}
    for (step, ours), (other, theirs) in zip(snapshots_of(runs / name), snapshots_of(runs / "rich one"), strict=True):
        assert step == other
        theirs = read_state(theirs)["averages"]["power0.1"]["weights"]
        for key, weight in read_state(ours)["averages"]["power0.1"]["weights"].items():
            torch.testing.assert_close(weight, theirs[key], **CLOSE)


@pytest.mark.parametrize("name", ["rich shares", "rich apart"])
def test_every_figure_of_shares_is_that_of_one_process(runs, name):
    """At each step: a network in shares that is evaluated must not go on with weights that it has gathered before."""
    ours, theirs = ([json.loads(line) for line in (runs / run / "stats.jsonl").read_text().splitlines()]
                    for run in (name, "rich one"))
    assert len(ours) == 4
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = ({key: of[key] for key in of if key not in OF_THE_MACHINE} for of in (mine, other))
        assert mine == pytest.approx(other, rel=1e-4)


FAULTS = """
import json, os, sys
from pathlib import Path
import test_distribution as of
from scorefield.training import saving
from scorefield.training.log import Log
first, folder, write, steps = os.environ["RANK"] == "0", Path(sys.argv[1]), Log.write, saving.Saver._written

def ill(trainer):
    batches = trainer.batches
    def batch(step):
        found = batches(step)
        if step == 2 and not first:
            found[0].x[3] = float("nan")
        return found
    trainer.batches = batch

def silent(trainer):
    def fail(self, line, picture):
        if line["step"] == 4:
            raise OSError("lost output")
        return write(self, line, picture)
    Log.write = fail

def full(trainer):
    def fail(self, step, write, after):
        write() if self.apart and not first else None
        raise OSError("full disk")
    if first:
        saving.Saver._written = fail

for name, settings in json.loads(sys.argv[2]):
    for fault in (ill, silent, full):
        run = folder / f"{name} {fault.__name__}"
        trainer = of.trainer_of(run, settings)
        fault(trainer)
        try:
            trainer.train()
        except Exception as error:
            (run / f"{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")
        Log.write, saving.Saver._written = write, steps
"""


def test_what_breaks_in_one_process_ends_all_and_the_state_before_it_is_saved(tmp_path):
    """A number that is not finite in a batch, output that is lost in the last step, a disk that is full."""
    script = tmp_path / "faults.py"
    script.write_text(FAULTS)
    ways = {"whole": WHOLE, "shares": SHARES, "apart": APART}
    torchrun(2, script, tmp_path, json.dumps(list(ways.items())))
    for way in ways:
        said = {fault: [(tmp_path / f"{way} {fault}/{rank}.txt").read_text() for rank in (0, 1)]
                for fault in ("ill", "silent", "full")}
        assert "ArithmeticError: step 3 broke: the gradient" in said["ill"][0]
        assert "ValueError: step 3 broke: the training examples" in said["ill"][1]
        assert said["silent"][0] == "OSError: lost output" and said["full"][0] == "OSError: full disk"
        for fault in ("silent", "full"):
            assert "another process failed" in said[fault][1]
        state(tmp_path / f"{way} ill", 2)
        state(tmp_path / f"{way} silent", 4)
        assert newest_checkpoint(tmp_path / f"{way} full") is None


MODES = """
import sys
from scorefield.cli.main import main
words = ["--workdir", sys.argv[1]]
main([*words, "--config", "configs/vp_digits.py", "--mode", "train", "--config.training.sharding=fsdp",
      "--config.training.sharded_saves=true", "--config.training.precision=fp32", *sys.argv[2:]])
few = ["--sampler", "ddim", "--steps", "2", "--num_samples", "16", "--batch_size", "4"]
main([*words, "--mode", "sample", *few])
main([*words, "--mode", "likelihood", "--method", "exponential", "--steps", "8", "--num_images", "8", "--batch_size", "4"])
main([*words, "--mode", "evaluate", "--metrics", "mmd", "--bootstrap", "0", *few,
      "--checkpoints", "all"])
"""


@pytest.mark.one_machine
def test_a_run_in_shares_is_sampled_scored_and_evaluated_under_torchrun(command, tmp_path):
    """Each mode gives what one process finds in the same checkpoint, to the bit where it draws."""
    (tmp_path / "modes.py").write_text(MODES)
    run = tmp_path / "run"
    torchrun(2, tmp_path / "modes.py", run, *SMALL, "--config.training.keep=3")
    assert [path.is_dir() for path in sorted((run / "checkpoints").iterdir())] == [True, True]
    steps = json.loads((run / "evaluation" / os.listdir(run / "evaluation")[0]).read_text())
    assert "mmd" in str(steps)
    drawn = np.load(run / "samples/ddim_steps2_batch_size4.npz")["x"]
    shutil.rmtree(run / "samples")
    code, _, err = command("--workdir", run, "--mode", "sample", "--sampler", "ddim", "--steps", 2, "--num_samples", 16,
                           "--batch_size", 4)
    assert code == 0, err
    assert np.array_equal(drawn, np.load(run / "samples/ddim_steps2_batch_size4.npz")["x"])
    assert list((run / "likelihood").glob("summary*.json"))


def damaged(runs, tmp_path, change):
    folder = shutil.copytree(newest_checkpoint(runs / "apart"), tmp_path / "checkpoints" / "step_00000004")
    change(folder)
    return folder


@pytest.mark.parametrize("name", [".metadata", "__1_0.distcp", "state.pt"])
def test_a_damaged_share_is_named(runs, tmp_path, name):
    def flip(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} is damaged: it does not match its checksum"):
        read_state(damaged(runs, tmp_path, flip))
    with pytest.raises(ValueError, match=f"it lacks {name}"):
        read_state(damaged(runs, tmp_path / "lost", lambda folder: (folder / name).unlink()))


class Hostile:
    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["HOSTILE"])),))


def test_a_hostile_description_runs_no_code(runs, tmp_path, monkeypatch):
    import pickle

    from scorefield.checkpoints.formats import sharded

    monkeypatch.setenv("HOSTILE", str(tmp_path / "ran"))
    folder = damaged(runs, tmp_path, lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(Hostile())))
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        sharded.read(folder, verify=False)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_its_seal_is_not_a_checkpoint(runs, tmp_path):
    folder = damaged(runs, tmp_path, lambda folder: (folder / "digest.json").unlink())
    assert newest_checkpoint(folder.parents[1]) is None


def test_shares_need_shares():
    from scorefield.configs.training import Training

    with pytest.raises(ArgumentError, match="sharded_saves needs sharding fsdp"):
        Training(sharded_saves=True)
    with pytest.raises(ArgumentError, match="unknown sharding 'zero'; choose from none, fsdp"):
        Training(sharding="zero")


DIES = """
import os, sys
from pathlib import Path
import test_distribution
from scorefield.training.update import Update
folder, update = Path(sys.argv[1]), Update.__call__
def once(self, batch, draw, step):
    mark = folder / "died"
    if step == 3 and os.environ["RANK"] == "1" and not mark.exists():
        mark.write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])
        os._exit(1)
    return update(self, batch, draw, step)
Update.__call__ = once
test_distribution.train(folder / "run", {"sharding": sys.argv[2], "checkpoint_every": 1})
print("restarts", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
"""


@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.slow), "fsdp"])
def test_torchrun_restarts_after_a_process_died_and_the_run_goes_on(runs, tmp_path, sharding):
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = torchrun(2, script, tmp_path, sharding, restarts=1)
    assert (tmp_path / "died").read_text() == "0" and "restarts 1" in done
    assert_equal(state(tmp_path / "run"), state(runs / ("whole" if sharding == "none" else "shares")))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 4


@pytest.mark.slow
def test_checkpoints_move_between_one_two_and_four_processes(runs, tmp_path):
    ways = {"whole": WHOLE, "shares": SHARES, "apart": APART}
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    halves = [(f"4 {name}", settings | {"steps": 2}) for name, settings in ways.items()]
    train_together(4, tmp_path, [*((f"four {name}", settings) for name, settings in ways.items()), *halves])
    for name, _ in halves:
        shutil.copytree(tmp_path / name, tmp_path / f"{name} to 1")
        train(tmp_path / f"{name} to 1", WHOLE)
    pairs = [(f"{name} to {other}", settings) for name, _ in halves for other, settings in ways.items()]
    for name, _ in pairs:
        shutil.copytree(tmp_path / name.partition(" to ")[0], tmp_path / name)
    train_together(2, tmp_path, pairs)
    back = [(f"2 to 4 {other}", settings) for other, settings in ways.items()]
    train_together(2, tmp_path, [(name, APART | {"steps": 2}) for name, _ in back])
    train_together(4, tmp_path, back)
    for name in [*(f"four {name}" for name in ways), *(f"{name} to 1" for name, _ in halves), *(name for name, _ in pairs),
                 *(name for name, _ in back)]:
        assert_close(state(tmp_path / name), state(runs / "one"))
