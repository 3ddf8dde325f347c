"""A process of the command line: its streams, which may be lost on the way, and its exit code.

| code | means |
|---|---|
| 0 | done |
| 1 | an error: one line on standard error says what to do; also a bug, with a traceback |
| 129, 130, 138, 143 | ended by SIGHUP, SIGINT (Ctrl-C), SIGUSR1, SIGTERM; one line says what is kept, and how to go on |
"""

from __future__ import annotations

import os
import sys
from typing import Any

from scorefield.cli import main
from scorefield.numerics import stopping


class Lasting:
    """A stream of text that outlives its reader: once a write fails, that is said on `other`, and no write fails again.

    So `train | head -1` trains on, and a full disk under a log costs the log alone.
    """

    def __init__(self, stream: Any, name: str, other: Any = None):
        self._stream, self._name, self._other = stream, name, other
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())      # what is still in the buffer goes there, also as Python ends
        os.close(nowhere)
        if self._other is not None:
            print(f"{self._name} is lost ({error.strerror}); the work goes on without it", file=self._other, flush=True)


def run() -> None:
    """Run the command line of this process, and end it with the exit code."""
    _open_descriptors()
    err = Lasting(sys.stderr or open(os.devnull, "w"), "standard error")
    out = Lasting(sys.stdout or open(os.devnull, "w"), "standard output", err)
    sys.stdout, sys.stderr = out, err
    code: Any = 0
    try:
        main.run()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        stopping.leaving()
        out.flush()
        err.flush()
    if isinstance(code, str):
        print(code, file=err, flush=True)
        code = 1
    if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
        code = code or 1      # whoever asked for the text has not got it; a reader who leaves has what he wants
    sys.exit(code)


def _open_descriptors() -> None:
    """Open those of standard streams that are closed: the next file would get their number, and with it stray messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)      # gets the lowest free number: this one
