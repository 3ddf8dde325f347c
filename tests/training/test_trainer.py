import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.configs import sections
from scorefield.configs.default import get_config
from scorefield.data import load_dataset, make_codec
from scorefield.numerics.devices import PRECISIONS, autocast_dtype, local_device
from scorefield.numerics.files import write_atomically
from scorefield.numerics.processes import World
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE
from scorefield.training import Batches, Interrupted, Objective, ScoreMatching, set_up
from scorefield.training.schedules import LearningRate

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def small_config(**training):
    config = get_config()
    config.data.dequantize = True
    config.model.update(width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=())
    config.training.update(steps=6, batch_size=16, warmup=2, learning_rate=1e-3, precision="fp32", log_every=2,
                           checkpoint_every=3, eval_every=3, sample_every=0)
    config.training.update(**training)
    return config


@pytest.fixture(scope="module")
def digits():
    return load_dataset(get_config().data)


def weights(run):
    return read_state(newest_checkpoint(run))


def same(a, b):
    return all(torch.equal(a[part][name], b[part][name]) for part in ("network", "ema") for name in a[part])


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, digits):
    config = small_config()
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run in (whole, halves):
        run.mkdir()
    set_up(config, digits, whole, CPU).train()
    set_up(small_config(steps=3), digits, halves, CPU).train()
    assert weights(halves)["step"] == 3
    set_up(config, digits, halves, CPU).train()
    assert weights(halves)["step"] == 6 and same(weights(whole), weights(halves))


def test_a_run_goes_on_in_another_memory_format_with_the_same_steps(tmp_path, digits):
    def train(run, steps, channels_last):
        config = small_config(steps=steps, memory_format="channels_last" if channels_last else "contiguous",
                              learning_rate=1e-2)
        config.model.dropout = 0.0      # its masks are drawn in the order of memory
        run.mkdir(exist_ok=True)
        set_up(config, digits, run, CPU).train()
        return weights(run)["network"]

    before = train(tmp_path / "False", 3, False)
    shutil.copytree(tmp_path / "False", tmp_path / "True")
    ends = [train(tmp_path / str(channels_last), 4, channels_last) for channels_last in (False, True)]
    for name in [n for n, weight in before.items() if weight.numel() > 500]:
        step = ends[0][name] - before[name]
        assert float((ends[1][name] - ends[0][name]).norm() / step.norm()) < 0.01, name


def test_a_resumed_run_takes_adams_settings_from_its_config(tmp_path, digits):
    set_up(small_config(steps=3), digits, tmp_path, CPU).train()
    group, = set_up(small_config(beta2=0.5, adam_eps=1e-6), digits, tmp_path, CPU).update.optimizer.param_groups
    assert group["betas"] == (0.9, 0.5) and group["eps"] == 1e-6


def test_lines_of_steps_that_were_never_saved_are_dropped_on_resume(tmp_path, digits):
    config = small_config(steps=4, checkpoint_every=4, eval_every=0)
    set_up(config, digits, tmp_path, CPU).train()
    with open(tmp_path / "stats.jsonl", "a") as stats:
        stats.write('{"step": 5, "loss": 0}\n{"step": 6, "lo')      # then it was killed
    set_up(small_config(steps=6, eval_every=0), digits, tmp_path, CPU).train()
    assert [json.loads(line)["step"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()] == [2, 4, 6]


def test_training_lowers_the_loss_and_the_average_follows(tmp_path, digits):
    config = small_config(steps=120, checkpoint_every=120, eval_every=60, warmup=10, learning_rate=3e-3, ema_decay=0.9)
    trainer = set_up(config, digits, tmp_path, CPU)
    before = trainer.evaluate(trainer.averaged)["held_out_loss"]
    trainer.train()
    after = trainer.evaluate(trainer.averaged)["held_out_loss"]
    assert before == pytest.approx(1, abs=0.05)       # a network that answers 0 misses eps by E[eps^2] = 1
    assert after < 0.6 * before
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 121, 2))
    assert lines[-1]["held_out_loss"] == pytest.approx(after, rel=1e-6)
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_held_out_loss_is_without_dropout_also_after_a_preview(tmp_path, digits):
    config = small_config()
    config.model.dropout = 0.5
    trainer = set_up(config, digits, tmp_path, CPU)
    make_sampler("ddim", steps=2)(trainer.averaged, torch.zeros(1, 1, 8, 8))
    for p in trainer.averaged.parameters():
        p.data.add_(0.01)
    losses = [trainer.evaluate(trainer.averaged)["held_out_loss"] for _ in range(2)]
    assert losses[0] == losses[1] and not trainer.averaged.network.training


@pytest.mark.costly
@pytest.mark.parametrize("sde", ["vp", "cosine", "sigmoid", "subvp", "ve", "flow", "ddpm", "smld"])
@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "score", "flow"])
def test_every_sde_and_parametrisation_trains(sde, parametrization, tmp_path, digits):
    config = small_config(steps=2, checkpoint_every=2, weighting="likelihood", importance=True)
    config.sde, config.model.parametrization = sections.sde(sde), parametrization
    if sde in ("ddpm", "smld"):
        config.sde.steps, config.model.time_input = 50, "index"
    set_up(config, digits, tmp_path, CPU).train()
    start, end = set_up(config, digits, tmp_path / "none", CPU), weights(tmp_path)
    assert end["step"] == 2
    assert any(not torch.equal(p, end["network"][name]) for name, p in start.network.state_dict().items())


def batches_of(dataset, world=None, **settings):
    codec = make_codec(17, dequantize=True)
    return Batches(dataset, codec, ScoreMatching(VPSDE(), **settings), batch_size=16, seed=0, device=CPU, world=world)


def tensors(pair):
    batch, draw = pair
    return [batch.x, batch.condition["label"], draw.t, draw.weight, draw.eps]


def test_the_batch_of_a_step_depends_on_the_seed_and_the_step_alone(digits):
    batches, again = batches_of(digits), batches_of(digits)
    in_order = [tensors(batches(step)) for step in range(4)]
    for step in (2, 0, 3):
        assert all(torch.equal(a, b) for a, b in zip(in_order[step], tensors(again(step)), strict=True))
    assert not torch.equal(in_order[0][-1], in_order[1][-1])


def test_processes_share_the_batch_of_a_single_one(digits):
    whole = tensors(batches_of(digits)(5))
    shares = [tensors(batches_of(digits, World(rank, 4))(5)) for rank in range(4)]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(one, torch.stack(parts, 1).flatten(0, 1))


def test_an_example_comes_with_its_own_label(digits):
    batch, _ = Batches(digits, make_codec(17), ScoreMatching(VPSDE()), 32, 0, CPU)(3)
    stored, condition = digits.train[torch.arange(len(digits.train))]
    for x, label in zip(make_codec(17).decode(batch.x), batch.condition["label"], strict=True):
        assert int(condition["label"][(stored == x).flatten(1).all(1)][0]) == int(label)


def test_random_flips_are_those_of_the_data_set():
    x0 = {}
    for flip in (False, True):
        x0[flip] = batches_of(load_dataset({"dataset": "digits", "flip": flip}))(0)[0].x
    mirrored = (x0[True] != x0[False]).flatten(1).any(1)
    assert 0 < int(mirrored.sum()) < len(mirrored)
    assert torch.equal(x0[True][mirrored], x0[False][mirrored].flip(-1))


def test_an_objective_sees_the_shape_of_a_batch_before_its_values(digits):
    seen = []

    class Watching(Objective):
        def draw(self, batch, draws):
            seen.append(batch)
            return draws.normal(batch.x.shape[1:])

    batch, draw = Batches(digits, make_codec(17), Watching(), 4, 0, CPU)(0)
    assert seen[0].x.shape == batch.x.shape == draw.shape and seen[0].x.is_meta and not batch.x.is_meta


def test_a_set_that_is_decoded_on_access_gives_the_same_batches(digits):
    class OnAccess:
        def __len__(self):
            return len(digits.train)

        def __getitem__(self, index):
            return digits.train[index]

    lazy = dataclasses.replace(digits, train=OnAccess())
    for step in (0, 1, 2, 5):
        pairs = zip(tensors(batches_of(digits)(step)), tensors(batches_of(lazy)(step)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_learning_rate_warms_up_and_then_stays_or_falls_to_zero():
    constant = small_config(steps=100, warmup=10, learning_rate=2.0).training
    assert [LearningRate(constant)(step) for step in (0, 4, 9, 10, 99)] == [0.2, 1.0, 2.0, 2.0, 2.0]
    cosine = small_config(steps=110, warmup=10, learning_rate=2.0, decay="cosine").training
    assert LearningRate(cosine)(60) == pytest.approx(1.0) and LearningRate(cosine)(110) == pytest.approx(0.0)


def test_a_loss_that_is_not_finite_stops_training_and_saves_nothing(tmp_path, digits):
    config = small_config(learning_rate=1e20, grad_clip=1e20, warmup=0, steps=50, log_every=1)
    with pytest.raises(ArithmeticError, match="not finite"):
        set_up(config, digits, tmp_path, CPU).train()
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is None or all(bool(p.isfinite().all()) for p in read_state(checkpoint)["network"].values())


def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_from_there(tmp_path, digits):
    config = small_config(steps=8)
    trainer = set_up(config, digits, tmp_path / "stopped", CPU)
    batches = trainer.batches

    def interrupt(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batches(step)

    trainer.batches = interrupt
    (tmp_path / "stopped").mkdir(), (tmp_path / "whole").mkdir()
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.step == weights(tmp_path / "stopped")["step"] == 3
    assert stopped.value.number == signal.SIGINT
    set_up(config, digits, tmp_path / "stopped", CPU).train()
    set_up(config, digits, tmp_path / "whole", CPU).train()
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_training_on_another_thread_gives_the_same_run_and_leaves_signals_alone(tmp_path, digits):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    set_up(small_config(), digits, tmp_path / "main", CPU).train()
    thread = threading.Thread(target=lambda: set_up(small_config(), digits, tmp_path / "thread", CPU).train())
    thread.start()
    thread.join()
    assert same(weights(tmp_path / "main"), weights(tmp_path / "thread"))
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_the_newest_checkpoints_are_kept(tmp_path, digits):
    set_up(small_config(steps=5, checkpoint_every=1, eval_every=0, keep=2, keep_best="none"), digits, tmp_path, CPU).train()
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000004.pt", "step_00000005.pt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_processes_train_as_one(tmp_path):
    """Under torchrun with gloo and activation checkpointing: a single process's weights, up to the order of summation."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_trainer import small_config\n"
        "import torch; from pathlib import Path\n"
        "from scorefield.data import load_dataset; from scorefield.training import set_up\n"
        "shared = sys.argv[1].endswith('two')\n"
        "config = small_config(steps=4, checkpoint_every=4, activation_checkpointing=shared)\n"
        "config.model.dropout = 0.0\n"
        "run = Path(sys.argv[1]); run.mkdir(exist_ok=True)\n"
        "set_up(config, load_dataset(config.data), run, torch.device('cpu')).train()\n")
    paths = [str(ROOT), str(Path(__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    one = [sys.executable, str(script), str(tmp_path / "one"), *paths]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script),
           str(tmp_path / "two"), *paths]
    for command in (one, two):
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    single, shared = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, p in single["network"].items():
        torch.testing.assert_close(shared["network"][name], p, rtol=1e-3, atol=2e-5)


@pytest.mark.machine
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains(precision, tmp_path, digits):
    set_up(small_config(steps=2, checkpoint_every=2, precision=precision), digits, tmp_path, CPU).train()
    assert all(p.dtype == torch.float32 for p in weights(tmp_path)["network"].values())


def test_activation_checkpointing_trains_the_same_network(tmp_path, digits):
    runs = {}
    for on in (False, True):
        config = small_config(activation_checkpointing=on)
        config.model.dropout = 0.5
        run = tmp_path / str(on)
        run.mkdir()
        set_up(config, digits, run, CPU).train()
        runs[on] = weights(run)
    for part in ("network", "ema"):
        for name, p in runs[False][part].items():
            torch.testing.assert_close(runs[True][part][name], p, rtol=2e-6, atol=2e-6)


def test_unknown_precision_and_absent_devices_are_refused():
    with pytest.raises(ValueError, match="auto, fp32, bf16"):
        autocast_dtype("fp8", CPU)
    with pytest.raises(ValueError, match="auto, cuda, mps, cpu"):
        local_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not available here"):
            local_device("cuda")
    assert local_device("cpu") == CPU
