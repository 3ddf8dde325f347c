"""stats.jsonl of a run: a line of JSON with the figures of each report. Training never depends on it.

A line that cannot be read, such as one that a kill cut short, is dropped and said. A file that cannot be written is said
once, and training goes on without it.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scorefield.numerics.files import write_atomically

NAME = "stats.jsonl"


def read_stats(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a run's figures in their order, and how many others there are; none if there is no file."""
    kept, damaged = _lines(run / NAME)
    return [line for line, _ in kept], damaged


def _lines(path: Path) -> tuple[list[tuple[dict[str, Any], bytes]], int]:
    """Each whole line of a file with its bytes, and how many others there are."""
    content = path.read_bytes() if path.is_file() else b""
    kept, damaged = [], 0
    for text in content.split(b"\n")[:-1]:
        try:
            line = json.loads(text)
        except (RecursionError, ValueError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            kept.append((line, text + b"\n"))
        else:
            damaged += 1
    return kept, damaged + (not content.endswith(b"\n") and bool(content))


class Stats:
    """The figures of a run, to be added to: without the lines of steps after `step`, which a killed run did not save.

    say  takes a line when the file is mended, or cannot be written
    """

    def __init__(self, run: Path, step: int, say: Callable[[str], None] = warnings.warn):
        self.path, self.say, self._file = run / NAME, say, None
        try:
            lines, damaged = _lines(self.path)
            kept = b"".join(text for line, text in lines if line["step"] <= step)
            if damaged:
                say(f"{self.path} was damaged; it is written anew without {damaged} line{'s'[:damaged > 1]} that no "
                    "program can read")
            if self.path.exists() and (damaged or len(kept) != self.path.stat().st_size):
                write_atomically(self.path, lambda file: file.write(kept))
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            self._give_up(error)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line, at once."""
        if self._file is not None:
            try:
                self._file.write((json.dumps(line) + "\n").encode())
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _give_up(self, error: OSError) -> None:
        self.close()
        self._file = None
        self.say(f"{self.path} cannot be written ({error.strerror or error}); training goes on without its figures")
