"""Saves in the background: what is written is the state as it was, one at a time, and the writer's errors are told."""

import threading

import pytest
import torch

from scorefield.checkpoints.formats.run import checkpoints_of, newest_sound, read_state, strangers, write_checkpoint
from scorefield.numerics.processes import World
from scorefield.training import saving
from scorefield.training.folder import opened
from scorefield.training.keeping import Keeping, go_back
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


def in_shares(run, *steps, sealed=True):
    """Folders as several processes write them, but for their content."""
    for step in steps:
        folder = run / f"checkpoints/step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / ("digest.json" if sealed else "state.pt")).write_text("{}")


def steps_of(run):
    return [(step, path.is_dir()) for step, path in checkpoints_of(run)]


def test_checkpoints_in_shares_are_counted_and_removed_as_files_are(tmp_path):
    in_shares(tmp_path, 1, 2, 4, 5)
    write_checkpoint(tmp_path, 3, {"step": 3})
    Keeping(tmp_path, keep=4).saved(5, {"loss": 1.0})
    assert steps_of(tmp_path) == [(2, True), (3, False), (4, True), (5, True)]
    go_back(tmp_path, 3)
    assert steps_of(tmp_path) == [(2, True), (3, False)]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_00000002", "step_00000003.pt"}


def test_a_step_has_one_checkpoint(tmp_path):
    in_shares(tmp_path, 3)
    write_checkpoint(tmp_path, 3, {"step": 3})
    assert steps_of(tmp_path) == [(3, False)]


def test_a_damaged_checkpoint_in_shares_is_passed_over(tmp_path):
    write_checkpoint(tmp_path, 3, {"step": 3})
    in_shares(tmp_path, 4)
    found = newest_sound(tmp_path)
    assert found.step == 3 and "step_00000004 is damaged: it lacks .metadata, state.pt" in found.passed_over[0]


def test_a_folder_without_its_seal_is_named(tmp_path):
    in_shares(tmp_path, 4, sealed=False)
    assert checkpoints_of(tmp_path) == [] and "step_00000004 is ignored" in strangers(tmp_path)[0]


def test_shares_that_killed_processes_left_are_removed_when_training_opens_the_folder(tmp_path):
    place = tmp_path / "checkpoints/.step_00000004.0.tmp"
    place.mkdir(parents=True)
    (place / "__0_0.distcp").write_bytes(bytes(10))
    said = []
    with opened(tmp_path, said.append):
        assert not place.exists() and "removed 1 unfinished file" in said[-1]
