"""Signals that ask this process to stop: what they raise, the exit code, and how long work can note them instead.

    with noting() as noted:             # SIGINT, SIGTERM, SIGHUP and SIGUSR1 are noted, not raised
        while not noted:
            work()

A program calls `install` before its heavy imports. From then on a signal leaves no traceback at any moment. While the
program starts or ends, it ends at once. In between, `Stopped` is raised in the main thread, and what is at work says what it
keeps. The second signal ends the program at once. A signal less than a second after another is the same request: torchrun
and srun pass on what the terminal has sent to every process already.

This module loads nothing but what Python has loaded when it starts, and little more.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
SAME = 1.0      # seconds in which further signals are the same request


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; `number` is the signal's. The text, if there is one, says what is kept."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(*([kept] if kept else []))
        self.number = number


def exit_code(number: int) -> int:
    """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, 138 for SIGUSR1: as a shell reports a program that a signal ended."""
    return 128 + number


def name_of(number: int) -> str:
    return signal.Signals(number).name


def number_of(error: KeyboardInterrupt) -> int:
    """The signal behind an interruption; Python's own KeyboardInterrupt is one of SIGINT."""
    return getattr(error, "number", int(signal.SIGINT))


def saying(error: KeyboardInterrupt, kept: str) -> KeyboardInterrupt:
    """The interruption with what is kept as its text."""
    return Stopped(number_of(error), kept)


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """An interruption of this context gets kept() as its text, unless it has one or that is ""."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args or not (text := kept()):
            raise
        raise saying(error, text) from None


class _Process:
    """What is known of this process's signals; there is one, since signals are a process's."""

    def __init__(self) -> None:
        self.phase = "library"                        # starting, working, leaving; or a library in a user's program
        self.last, self.raised = float("-inf"), 0     # when a signal was taken; the one that was raised

    def repeated(self) -> bool:
        now = time.monotonic()
        if now - self.last < SAME:
            return True
        self.last = now
        return False

    def handle(self, number: int, frame: Any) -> None:
        if self.phase == "working" and self.repeated():
            return
        if self.phase != "working" or self.raised:
            if self.phase != "leaving":
                _say(f"\ninterrupted by {name_of(number)}: " + (
                    "stopped at once" if self.raised else "nothing was begun; the same command starts again"))
            os._exit(exit_code(self.raised or number))
        self.raised = number
        raise Stopped(number)


_process = _Process()


def _say(text: str) -> None:
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:      # nobody listens
        pass


def install() -> None:
    """Handle signals from now on, as a program that starts. SIGHUP stays ignored where it is (nohup)."""
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _process.handle)
    _process.phase = "starting"
    atexit.register(_ignore)      # runs last of what is registered; afterwards Python would leave signals to the system
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        """A signal that was raised where Python drops exceptions, as in __del__, comes again a moment later."""
        if not isinstance(unraisable.exc_value, Stopped):
            if not _process.raised:
                before(unraisable)
            return
        number, _process.raised, _process.last = unraisable.exc_value.number, 0, float("-inf")
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def _ignore() -> None:
    """Take no signals any more: Python is ending, and its exit code is settled."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def working() -> None:
    """The program has begun what may have to be kept: a signal now raises Stopped."""
    if _process.phase == "starting":
        _process.phase = "working"


def leaving() -> None:
    """The program has done its work: a signal now ends it at once, without a word."""
    if _process.phase != "library":
        _process.phase = "leaving"


def raised() -> int:
    """The signal that has been raised in this process, or 0. What fails afterwards may fail because of it."""
    return _process.raised


class Noted:
    """Signals that were noted instead of raised. True once there is one; `number` is the first."""

    def __init__(self) -> None:
        self.number, self._raising = 0, False

    def __bool__(self) -> bool:
        return bool(self.number)

    def handle(self, number: int, frame: Any) -> None:
        if _process.repeated():
            return
        if self.number:
            raise Stopped(number)
        self.number = number
        if self._raising:
            raise Stopped(number)

    def unless_stopped(self, work: Callable[[], T]) -> T | None:
        """The result of work that changes nothing and may take long; None if a signal has come before its end."""
        try:
            self._raising = True
            result = None if self.number else work()
            self._raising = False
            return result
        except Stopped:
            return None
        finally:
            self._raising = False


@contextmanager
def noting() -> Iterator[Noted]:
    """In this context the first signal is noted, and a second one, a second or more later, raises Stopped.

    Python takes signals only on its main thread. On another thread nothing is ever noted.
    """
    noted = Noted()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    _process.last = float("-inf")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items()      # None: a handler that is not Python's
             if handler is not None and (number == signal.SIGINT or handler != signal.SIG_IGN)]
    for number in taken:
        signal.signal(number, noted.handle)
    try:
        yield noted
    finally:
        for number in taken:
            signal.signal(number, before[number])
