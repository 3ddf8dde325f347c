"""Saves in the background: what is written is the state as it was, one at a time, and the writer's errors are told."""

import threading

import pytest
import torch

from scorefield.checkpoints.formats.run import read_state
from scorefield.numerics.processes import World
from scorefield.training import saving
from scorefield.training.saving import Saver


def held_back(monkeypatch):
    """Writing waits for the event."""
    event, write = threading.Event(), saving.write_checkpoint
    monkeypatch.setattr(saving, "write_checkpoint", lambda *arguments: (event.wait(30), write(*arguments))[1])
    return event


def test_training_goes_on_while_the_state_of_then_is_written(tmp_path, monkeypatch):
    event, weight = held_back(monkeypatch), torch.ones(3)
    with Saver(tmp_path, World()) as saver:
        saver.save(1, {"step": 1, "network": {"weight": weight}})
        weight.zero_()      # the next update
        assert not list(tmp_path.rglob("*.pt"))
        event.set()
    assert read_state(saver.newest)["network"]["weight"].tolist() == [1, 1, 1]


def test_a_save_waits_for_the_one_before_it(tmp_path, monkeypatch):
    event = held_back(monkeypatch)
    saver = Saver(tmp_path, World())
    saver.save(1, {"step": 1})
    threading.Timer(0.2, event.set).start()
    saver.save(2, {"step": 2})
    assert saver.newest.name == "step_00000001.pt" and event.is_set()
    assert saver.wait().name == "step_00000002.pt" and saver.step == 2


def fail(*arguments):
    raise OSError(28, "No space left on device", "step_00000001.pt")


def test_the_writers_error_is_raised_by_the_next_save_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "write_checkpoint", fail)
    saver = Saver(tmp_path, World())
    saver.save(1, {"step": 1})
    with pytest.raises(OSError, match="No space left"):
        saver.save(2, {"step": 2})
    with pytest.raises(OSError, match="No space left"), Saver(tmp_path, World()) as saver:
        saver.save(1, {"step": 1})


def test_the_writers_error_does_not_hide_the_one_that_ended_training(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "write_checkpoint", fail)
    with pytest.raises(ArithmeticError) as ended, Saver(tmp_path, World()) as saver:
        saver.save(1, {"step": 1})
        raise ArithmeticError("the loss is not finite")
    assert "besides, the checkpoint was not written: [Errno 28] No space left" in ended.value.__notes__[0]


def test_other_processes_write_nothing(tmp_path):
    with Saver(tmp_path, World(1, 2)) as saver:
        saver.save(1, {"step": 1})
    assert saver.newest is None and not list(tmp_path.iterdir())
