"""The lock of a folder: one holder at a time, which dies with its process, also where hosts share the folder."""

import json
import os
import resource
import subprocess
import sys
import time

import pytest

from scorefield.numerics import locks
from scorefield.numerics.files import remove_leftovers, temporary_beside, write_atomically
from scorefield.numerics.locks import LOCK, SILENCE, Locked, locked


def no_locks(descriptor):
    """flock on a file system that has no locks."""
    return False


def left_by(folder, machine, seconds_ago, pid=1):
    """The lock's file of a process that wrote it and was last seen some seconds ago."""
    path = folder / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": pid, "machine": machine, "since": "2026-01-01 00:00:00"}))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_a_lock_excludes_others_of_the_same_process_and_is_gone_afterwards(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder):
        with pytest.raises(Locked, match=f"process {os.getpid()} on "), locked(folder):
            pass
        assert (folder / LOCK).exists()
    assert not (tmp_path / "a").exists()      # it was made for the lock alone
    folder.mkdir(parents=True)
    with locked(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_forked_child_does_not_hold_the_lock_of_its_dead_parent(tmp_path):
    code = ("import os, sys, time\nfrom pathlib import Path\nfrom scorefield.numerics.locks import locked\n"
            "held = locked(Path(sys.argv[1]))\nheld.__enter__()\n"
            "if os.fork() == 0:\n    print('child', flush=True)\n    time.sleep(20)\nos.kill(os.getpid(), 9)\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "child\n"
    assert process.wait(timeout=20) == -9
    said = []
    with locked(tmp_path, said.append):
        assert f"process {process.pid} on" in said[0] and "dead" in said[0]
    process.stdout.close()


@pytest.mark.parametrize("shared", [True, False])
def test_the_lock_of_another_host_is_refused_while_it_gives_signs_of_life_and_then_taken(tmp_path, monkeypatch, shared):
    if not shared:
        monkeypatch.setattr(locks, "_flock", no_locks)
    path = left_by(tmp_path, "another machine", SILENCE - 30)
    with pytest.raises(Locked, match=rf"process 1 on elsewhere .* (89|90|91) s old.*delete {path}"), locked(tmp_path):
        pass
    left_by(tmp_path, "another machine", SILENCE + 1)
    said = []
    with locked(tmp_path, said.append):
        assert json.loads(path.read_text())["pid"] == os.getpid() and len(said) == 1


def test_without_locks_of_the_file_system_a_process_of_this_machine_is_refused_by_its_signs_of_life(tmp_path, monkeypatch):
    left_by(tmp_path, locks.machine(), 1)
    with locked(tmp_path, lambda line: None):      # flock says that nobody holds it
        pass
    left_by(tmp_path, locks.machine(), 1)
    monkeypatch.setattr(locks, "_flock", no_locks)
    with pytest.raises(Locked), locked(tmp_path):
        pass


def test_the_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime < 1e9:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_who_has_lost_the_lock_leaves_that_of_the_new_holder(tmp_path):
    with locked(tmp_path):
        path = left_by(tmp_path, "another machine", 0)      # which shares the folder and not its locks
    assert json.loads(path.read_text())["host"] == "elsewhere"


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_and_nothing_that_may_be_in_use(tmp_path):
    run, dead, tag = tmp_path / "run", dead_process(), temporary_beside(tmp_path / "x").name.split("-")[1].split(".")[0]
    (run / "samples").mkdir(parents=True)
    samples, other = run / "samples", "0" * 8
    gone = [run / f".config.json.{dead}.tmp", run / f".config.json.1-{other}.tmp", samples / f".a.npz.{dead}-{tag}.tmp",
            tmp_path / f".run.{dead}-{tag}.tmp", samples / f".old.npz.1-{other}.tmp"]
    kept = [samples / f".a.npz.{os.getppid()}-{tag}.tmp", samples / f".a.npz.{dead}-{other}.tmp", run / "config.json",
            tmp_path / f".runs.{dead}-{tag}.tmp", run / ".hidden.tmp", tmp_path / f".x.{dead}-{tag}.tmp"]
    for path in gone + kept:
        path.write_bytes(b"12")
    os.utime(gone[-1], (0, 0))      # of another machine, a day ago
    pictures = run / "samples" / f".pictures.{dead}-{tag}.old"
    pictures.mkdir()
    (pictures / "0.png").touch()
    (folder := run / f".compare.{dead}-{tag}.tmp").mkdir()
    (folder / "page").write_bytes(b"1234")
    assert remove_leftovers(run, r"config\.json") == (len(gone) + 1, 2 * len(gone) + 4)
    assert not any(path.exists() for path in [*gone, folder, pictures]) and all(path.exists() for path in kept)
    assert (run / "samples" / "pictures" / "0.png").exists()      # it had been moved aside for others that never came


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError])
def test_whatever_a_library_raises_when_the_disk_refuses_the_systems_reason_is_told(tmp_path, kind):
    def write(file):
        try:
            file.write(b"x" * 10)
            file.flush()
        except OSError:
            raise kind("inline_container.cc: something") from None

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "x").write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        with pytest.raises(OSError, match=f"too large: '{tmp_path / 'x'}'"):
            write_atomically(tmp_path / "x", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(kind, match="mine"):      # an error of its own stays what it is
        write_atomically(tmp_path / "x", lambda file: (_ for _ in ()).throw(kind("mine")))
