"""A folder that one process writes at a time: a lock that names its holder and dies with it.

The file LOCK in the folder is locked by flock(2), which the system releases when the process ends, however it ends. Where
hosts share a folder and their locks (NFS 4, Lustre with -o flock, GPFS), that is all there is to it. Some file systems have
no locks, or let each host see its own alone. So the file also names the holder's host, and the holder touches it every BEAT
seconds. A process on another host that finds it untouched for SILENCE seconds takes it over, and one that finds it touched
does not. The file system's own clock measures this.

What is not had: without shared locks, two processes that start within the same fraction of a second both get the lock; and
one that was suspended for longer than SILENCE seconds has lost it without noticing.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

LOCK = "lock"
BEAT, SILENCE = 15.0, 120.0      # seconds
_BUSY = (BlockingIOError, PermissionError)      # what flock answers when another process has the lock

# Forked children, such as workers that read data, would hold the lock for as long as they outlive a killed parent.
_HELD: set[int] = set()


def _release_in_child() -> None:
    for descriptor in _HELD:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


class Locked(Exception):
    """Another process has the lock, or seems to. Its text says who, and since when."""


@cache
def machine() -> str:
    """A word for this machine since it was started; two machines of one name have two."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be. Afterwards the lock's file is gone, and so are the folders that
    were made for it if they are empty.

    say  takes a line when the lock of a dead process is taken over

    Raises Locked if another process holds it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, end = folder / LOCK, threading.Event()
    descriptor = -1
    try:
        descriptor = _acquire(path, say)
        _HELD.add(descriptor)
        beat = threading.Thread(target=_beat, args=(descriptor, end), daemon=True)
        beat.start()
        try:
            yield
        finally:
            end.set()
            beat.join()
            _HELD.discard(descriptor)
            with contextlib.suppress(OSError):
                if _is_ours(descriptor):
                    path.unlink()
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()


def _acquire(path: Path, say: Callable[[str], None]) -> int:
    """An open descriptor of the lock's file, locked, after naming this process in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            kept = _flock(descriptor)
            if not _is_at(descriptor, path):      # the holder removed it when it was done
                os.close(descriptor)
                continue
            _require_free(descriptor, path, kept, say)
            content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "machine": machine(),
                                  "since": time.strftime("%Y-%m-%d %H:%M:%S")})
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (content + "\n").encode(), 0)
            return descriptor
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, error.strerror, str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise


def _flock(descriptor: int) -> bool:
    """Lock a file. False if the file system has no locks; Locked if another process has it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        raise Locked(_words(_holder(descriptor))) from None
    except (ImportError, OSError):
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(descriptor, 10_000, 0))
    except (RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_ours(descriptor: int) -> bool:
    """Whether the lock's file still names this process: one that was suspended may have lost it."""
    holder = _holder(descriptor)
    return (holder.get("machine"), holder.get("pid")) == (machine(), os.getpid())


def _words(holder: dict[str, object]) -> str:
    if not holder:
        return "another process, which has just started"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _require_free(descriptor: int, path: Path, kept: bool, say: Callable[[str], None]) -> None:
    """Locked if a process that flock does not show is at work; a line if a dead one has left its name."""
    holder = _holder(descriptor)
    if not holder:
        return
    silent = max(0.0, _now(path.parent) - os.fstat(descriptor).st_mtime)
    if not (kept and holder.get("machine") == machine()) and silent < SILENCE:
        raise Locked(f"{_words(holder)}, whose last sign of life is {silent:.0f} s old; if it is dead, wait until that is "
                     f"{SILENCE:.0f} s, or delete {path}")
    say(f"{path} was left by {_words(holder)}, which is dead; it is taken over")


def _now(folder: Path) -> float:
    """The time that the file system of a folder says."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _beat(descriptor: int, end: threading.Event) -> None:
    while not end.wait(BEAT):
        with contextlib.suppress(OSError):
            if _is_ours(descriptor):
                os.utime(descriptor)
