"""Steps that are not finite: named exactly, never saved, and left out on demand; and other ends of the loop, which save."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.configs import vp_swiss_roll
from scorefield.data import load_dataset
from scorefield.training import set_up
from scorefield.training.update import Update
from scorefield.training.watch import CHUNK, Watch, finite

CPU = torch.device("cpu")


def config(**training):
    config = vp_swiss_roll.get_config()
    config.data.size = 200
    config.model.update(width=8, layers=1)
    config.training.update(steps=12, batch_size=8, warmup=0, precision="fp32", log_every=4, checkpoint_every=4, eval_every=4,
                           sample_every=0, keep=1, decay="constant")
    config.training.update(training)
    return config


@pytest.fixture(scope="module")
def roll():
    return load_dataset(config().data)


class Spoilt:
    """An objective whose loss has one bad example at a step; it tells steps by their draws."""

    def __init__(self, trainer, steps, value=math.nan, place=3):
        self.objective, self.value, self.place = trainer.objective, value, place
        batches = trainer.batches
        self.marks = [batches(step)[1].eps for step in steps]
        trainer.objective = trainer.update.objective = self

    def loss(self, model, batch, draw):
        loss = self.objective.loss(model, batch, draw)
        if any(torch.equal(draw.eps, mark) for mark in self.marks):
            loss = loss * torch.ones_like(loss).index_fill(0, torch.tensor(self.place), self.value)
        return loss


def lines(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def state(run):
    return read_state(newest_checkpoint(run))


def equal(one, other):
    return all(torch.equal(one[part][name], other[part][name]) for part in ("network", "ema") for name in one[part]) and all(
        torch.equal(a[key], b[key]) for a, b in zip(one["optimizer"]["state"].values(), other["optimizer"]["state"].values(),
                                                    strict=True) for key in a) and (
        one["ema_updates"] == other["ema_updates"])


def masked(trainer):
    """The trainer with its mask on the device, as on a GPU, and looked at only when something is due."""
    old = trainer.update
    trainer.update = Update(trainer.model, trainer.network, trainer.objective, trainer.settings, CPU, masked=True)
    trainer.averaged = trainer.model.with_network(trainer.update.ema.module)
    assert old.masked is False
    trainer.device = torch.device("meta")      # no place where a look costs nothing
    trainer.bad = torch.zeros(())
    return trainer


@pytest.mark.parametrize("on_device", [False, True])
def test_a_step_that_breaks_is_named_with_its_example_and_the_state_before_it_is_saved(on_device, tmp_path, roll):
    trainer = set_up(config(), roll, tmp_path / "broken", CPU)
    trainer = masked(trainer) if on_device else trainer
    Spoilt(trainer, [6])
    example = int(trainer.batches.indices(6)[3])
    with pytest.raises(ArithmeticError, match=rf"step 7 broke: the loss of examples {example} is not finite") as caught:
        trainer.train()
    assert state(tmp_path / "broken")["step"] == 6 and "step_00000006.pt holds step 6" in caught.value.__notes__[0]
    whole = set_up(config(steps=6, checkpoint_every=6), roll, tmp_path / "whole", CPU)
    (masked(whole) if on_device else whole).train()
    assert equal(state(tmp_path / "broken"), state(tmp_path / "whole"))
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "broken"))
    set_up(config(), roll, tmp_path / "broken", CPU).train()      # without the spoilt objective it goes on
    assert state(tmp_path / "broken")["step"] == 12


@pytest.mark.parametrize("on_device", [False, True])
def test_a_skipped_step_leaves_weights_moments_and_average_as_they_were_and_is_counted(on_device, tmp_path, roll):
    trainer = set_up(config(on_nonfinite="skip"), roll, tmp_path / "run", CPU)
    trainer = masked(trainer) if on_device else trainer
    Spoilt(trainer, [2, 5, 9])
    for step in range(12):
        before = {name: value.clone() for name, value in trainer.update.state()["network"].items()}
        average = {name: value.clone() for name, value in trainer.update.state()["ema"].items()}
        moments = [entry["exp_avg"].clone() for entry in trainer.update.optimizer.state.values()]
        trainer.update(*trainer.batches(step), step)
        same = [torch.equal(value, before[name]) for name, value in trainer.update.state()["network"].items()]
        assert all(same) if step in (2, 5, 9) else not all(same)
        if step in (2, 5, 9):
            assert all(torch.equal(value, average[name]) for name, value in trainer.update.state()["ema"].items())
            assert all(torch.equal(entry["exp_avg"], old) for entry, old in
                       zip(trainer.update.optimizer.state.values(), moments, strict=True))
    assert int(trainer.update.skipped) == 3


def test_skipped_steps_are_logged_and_survive_a_resume(tmp_path, roll):
    trainer = set_up(config(on_nonfinite="skip", log_every=2), roll, tmp_path, CPU)
    Spoilt(trainer, [2, 3, 6])
    trainer.train()
    found = lines(tmp_path)
    assert [line["skipped"] for line in found] == [0, 2, 2, 3, 3, 3]
    assert math.isnan(found[1]["loss"]) and all(math.isfinite(line["loss"]) for line in found if line["step"] != 4)
    assert state(tmp_path)["skipped"] == 3
    again = set_up(config(on_nonfinite="skip", steps=13), roll, tmp_path, CPU)
    assert int(again.update.skipped) == 3


def test_a_run_that_skips_everything_ends(tmp_path, roll):
    trainer = set_up(config(on_nonfinite="skip", steps=400, log_every=50), roll, tmp_path, CPU)
    Spoilt(trainer, range(10, 400))
    with pytest.raises(ArithmeticError, match="each of the last 100 steps to step 112 was skipped"):
        trainer.train()


@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_weights_that_overflow_are_never_saved_and_the_update_that_made_them_is_named(checkpoint_every, tmp_path, roll):
    trainer = set_up(config(checkpoint_every=checkpoint_every), roll, tmp_path, CPU)
    step_of, number = trainer.update.optimizer.step, []

    def overflow():
        step_of()
        number.append(1)
        if len(number) == 7:
            next(iter(trainer.network.parameters())).data.fill_(math.inf)

    trainer.update.optimizer.step = overflow
    with pytest.raises(ArithmeticError, match="step 7 broke: its update made weights that are not finite"):
        trainer.train()
    assert state(tmp_path)["step"] == {1: 6, 4: 4}[checkpoint_every] and finite(state(tmp_path))


def test_numbers_in_the_data_that_are_not_finite_are_named_by_their_example(tmp_path, roll):
    class Split:
        def __init__(self, split, bad):
            self.split, self.bad = split, bad

        def __len__(self):
            return len(self.split)

        def __getitem__(self, index):
            data, condition = self.split[index]
            return torch.where((index == self.bad)[:, None], math.nan, data), condition

    first = int(set_up(config(), roll, tmp_path, CPU).batches.indices(5)[2])
    spoilt = dataclasses.replace(roll, train=Split(roll.train, first))
    for settings, error in (({}, ValueError), ({"on_nonfinite": "skip"}, None)):
        shutil.rmtree(tmp_path, ignore_errors=True)
        trainer = set_up(config(**settings), spoilt, tmp_path, CPU)
        if error is None:
            trainer.train()
            continue
        with pytest.raises(error, match=rf"step \d+ broke: the training examples {first} hold numbers that are not finite"
                           ) as caught:
            trainer.train()
        assert "learning_rate" not in str(caught.value)
    spoilt = dataclasses.replace(roll, test=Split(roll.test, 11))
    with pytest.raises(ValueError, match="held-out"):
        set_up(config(), spoilt, tmp_path / "test", CPU).train()
    assert state(tmp_path / "test")["step"] == 4


class Gone(Exception):
    """No kind of error that the loop knows."""


@pytest.mark.costly
@pytest.mark.parametrize("place", ["batches", "update", "evaluate", "preview", "stats", "record"])
def test_the_state_is_saved_whatever_ends_the_loop(place, tmp_path, roll, monkeypatch):
    trainer = set_up(config(sample_every=4, checkpoint_every=100), roll, tmp_path / "run", CPU,
                     preview=lambda *_: torch.zeros(3, 4, 4, dtype=torch.uint8))

    def fail(*_):
        raise Gone(place)

    if place == "batches":
        batches = trainer.batches
        trainer.batches = lambda step: fail() if step == 5 else batches(step)
    elif place == "update":
        loss = trainer.objective.loss
        calls = iter(range(100))
        trainer.update.objective = type("", (), {"loss": lambda self, *a: fail() if next(calls) == 5 else loss(*a)})()
    elif place in ("evaluate", "preview"):
        setattr(trainer, place, fail)
    else:
        monkeypatch.setattr("scorefield.training.stats.Stats.write" if place == "stats" else
                            "scorefield.training.keeping.write_json", fail)
    with pytest.raises(Gone, match=place) as caught:
        trainer.train()
    step = {"batches": 5, "update": 5, "record": 12}.get(place, 4)
    assert state(tmp_path / "run")["step"] == step and f"holds step {step}" in caught.value.__notes__[-1]
    monkeypatch.undo()
    set_up(config(), roll, tmp_path / "run", CPU).train()
    set_up(config(), roll, tmp_path / "whole", CPU).train()
    assert equal(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_a_lost_tensorboard_folder_is_said_once_and_training_goes_on(tmp_path, roll, capsys):
    trainer = set_up(config(), roll, tmp_path, CPU, progress=True)
    evaluate = trainer.evaluate

    def lose(model):
        shutil.rmtree(tmp_path / "tensorboard", ignore_errors=True)
        return evaluate(model)

    trainer.evaluate = lose
    trainer.train()
    assert state(tmp_path)["step"] == 12 and len(lines(tmp_path)) == 3
    assert capsys.readouterr().err.count("TensorBoard is lost at step 4") == 1


def test_a_watch_finds_the_first_bad_step_wherever_it_lies():
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    for loss, norm in ((0, 5), (CHUNK - 1, math.inf), (math.inf, CHUNK), (3 * CHUNK + 7, 2 * CHUNK + 1)):
        watch = Watch()
        watch.restart(1000)
        for step in range(4 * CHUNK + 3):
            watch.add(bad if step >= loss else good, bad if step == norm else good)
        assert watch.first() == (1000 + loss, 1000 + norm)
