"""Snapshots in the folder of a run, and the averages of other widths that are made from them."""

import json
import shutil

import pytest
import torch

from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.checkpoints.formats import run as run_format
from scorefield.checkpoints.formats.run import read_state
from scorefield.checkpoints.snapshots import snapshots_of, write_snapshot
from scorefield.numerics.errors import ArgumentError
from scorefield.training import train

SETTINGS = {"model.width": 8, "model.layers": 1, "training.steps": 60, "training.batch_size": 8, "training.warmup": 0,
            "training.learning_rate": 1e-2, "training.decay": "constant", "training.eval_every": 0,
            "training.sample_every": 0, "training.checkpoint_every": 30, "training.precision": "fp32",
            "training.memory_format": "contiguous",
            "training.averages": "0.9,power0.05,power0.1,power0.15", "training.snapshots_every": 5}
pytestmark = pytest.mark.one_machine


def trained(folder, **more):
    return train("configs/vp_swiss_roll.py", workdir=folder, device="cpu", progress=False,
                 overrides=SETTINGS | {f"training.{name}": value for name, value in more.items()})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("snapshots") / "vp_swiss_roll")


def without(run, name, path):
    """A run whose checkpoint and snapshots do not hold the average `name`."""
    shutil.copytree(run, path)
    newest = run_format.newest_checkpoint(path)
    state = read_state(newest)
    del state["averages"][name]
    run_format.write_checkpoint(path, state["step"], state)
    for step, file in snapshots_of(path):
        averages = read_state(file)["averages"]
        del averages[name]
        write_snapshot(path, step, averages)
    return path


def apart(a, b):
    return sum(float((a[name] - b[name]).double().square().sum()) for name in a) ** 0.5


def test_a_run_keeps_snapshots_of_its_power_averages(run):
    assert [step for step, _ in snapshots_of(run)] == list(range(5, 61, 5))
    state = read_state(snapshots_of(run)[3][1])
    assert state["step"] == 20 and list(state["averages"]) == ["power0.05", "power0.1", "power0.15"]
    assert {(a["updates"], a["since"]) for a in state["averages"].values()} == {(20, 0)}


def test_a_tracked_average_is_loaded_by_its_name(run):
    state = read_state(run_format.newest_checkpoint(run))
    for name in ("0.9", "power0.1"):
        loaded = load_denoiser(run, ema=name).network.state_dict()
        assert all(torch.equal(loaded[key], weight) for key, weight in state["averages"][name]["weights"].items())
    same = [load_denoiser(run, ema=name).network.last.weight for name in ("power0.1", "power0.10")]
    assert torch.equal(*same)


def test_an_average_made_from_snapshots_is_the_one_that_training_tracked(run, tmp_path):
    """The error is relative to the distance of the average from the last weights."""
    checkpoint = read_checkpoint(run)
    tracked, raw = checkpoint.weights("power0.15"), checkpoint.weights(False)
    made = read_checkpoint(without(run, "power0.15", tmp_path / "run")).weights("power0.15")
    assert apart(made, tracked) < 5e-3 * apart(tracked, raw)
    frequencies = [key for key, weight in tracked.items() if torch.equal(weight, raw[key])]
    assert all(torch.equal(made[key], raw[key]) for key in frequencies)


def test_snapshots_in_fp16_give_nearly_the_same_in_half_of_the_space(run, tmp_path):
    small = without(run, "power0.15", tmp_path / "run")
    made = read_checkpoint(small).weights("power0.15")
    for step, file in snapshots_of(small):
        write_snapshot(small, step, read_state(file)["averages"], "fp16")
    again = read_checkpoint(small).weights("power0.15")
    assert all(weight.dtype == torch.float32 for weight in again.values())
    assert 0 < apart(made, again) < 1e-3 * sum(float(w.square().sum()) for w in made.values()) ** 0.5
    sizes = [write_snapshot(tmp_path, 1, {"power0.1": {"weights": {"a": torch.randn(50_000)}}}, precision).stat().st_size
             for precision in ("fp32", "fp16")]
    assert 1.9 < sizes[0] / sizes[1] < 2.1


def test_a_weight_that_overflows_in_fp16_stays_in_fp32(tmp_path):
    write_snapshot(tmp_path, 1, {"power0.1": {"weights": {"a": torch.tensor([1e6]), "b": torch.tensor([1.0])}}}, "fp16")
    weights = read_state(snapshots_of(tmp_path)[0][1])["averages"]["power0.1"]["weights"]
    assert (weights["a"].dtype, weights["b"].dtype) == (torch.float32, torch.float16)


def test_a_resumed_run_has_the_averages_and_snapshots_of_one_that_never_stopped(run, tmp_path):
    trained(tmp_path / "run", steps=30)
    write_snapshot(tmp_path / "run", 35, {})      # of a run that was killed before it saved
    again = trained(tmp_path / "run")
    for (step, a), (its_step, b) in zip(snapshots_of(run), snapshots_of(again), strict=True):
        assert step == its_step and a.read_bytes() == b.read_bytes()
    a, b = (read_state(run_format.newest_checkpoint(folder))["averages"] for folder in (run, again))
    assert all(torch.equal(weight, b[name]["weights"][key]) for name in a for key, weight in a[name]["weights"].items())


@pytest.mark.parametrize(("name", "match"), [
    ("power0.002", r"power0.002 cannot be made of the 36 averages .* % away \(10 % are allowed\); take a width nearer"),
    ("0.95", "holds no average 0.95; it holds ema, raw, 0.9, power0.05, power0.1, power0.15"),
    ("power0.9", "must lie in 0.001 .. 0.28"), ("mean", "an average must be a decay such as 0.999"),
])
def test_an_average_that_cannot_be_made_is_refused(run, name, match):
    with pytest.raises(ArgumentError, match=match):
        load_denoiser(run, ema=name)


def test_a_run_without_power_averages_says_what_is_needed(tmp_path):
    plain = trained(tmp_path / "run", steps=1, averages="", snapshots_every=0)
    with pytest.raises(ArgumentError, match=r"no averages with a power function.*training.averages=power0.05,power0.1"):
        load_denoiser(plain, ema="power0.1")


def test_a_damaged_snapshot_is_refused_by_its_name(run, tmp_path):
    broken = without(run, "power0.15", tmp_path / "run")
    path = snapshots_of(broken)[-2][1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is (damaged|truncated)"):
        read_checkpoint(broken).weights("power0.15")


def test_a_run_that_is_converted_to_a_run_keeps_what_training_needs(run, tmp_path):
    run_format.write(read_checkpoint(run), tmp_path / "copy")
    a, b = (read_state(run_format.newest_checkpoint(folder)) for folder in (run, tmp_path / "copy"))
    assert (a["schedule"], a["skipped"]) == (b["schedule"], b["skipped"]) and list(a["averages"]) == list(b["averages"])


def test_the_command_line_takes_any_average(run, command):
    draw = ("--workdir", run, "--device", "cpu", "--mode", "sample", "--sampler", "ddim", "--steps", 2, "--num_samples", 4)
    code, out, err = command(*draw, "--average", "power0.12")
    assert code == 0, err
    assert (run / "samples" / "ddim_steps2_power0.12.npz").is_file()
    assert json.loads((run / "samples" / "ddim_steps2_power0.12.json").read_text())["ema"] == "power0.12"
    assert command(*draw, "--average", "raw")[0] == 0 and (run / "samples" / "ddim_steps2_raw.npz").is_file()
    assert "power0.12 weights" in command("--workdir", run, "--mode", "report")[1]
    for words, expected in ((["--average", "raw", "--noema"], "leave out ema"), (["--average", "7"], "must lie in [0, 1)")):
        code, _, err = command(*draw, *words)
        assert code == 1 and expected in err and "--average" in err
    target = run.parent / "wide.safetensors"
    code, out, err = command("--workdir", run, "--mode", "convert", "--output", target, "--average", "power0.12")
    assert code == 0 and "power0.12 weights" in out
    expected = load_denoiser(run, "power0.12").network.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in load_denoiser(target).network.state_dict().items())
