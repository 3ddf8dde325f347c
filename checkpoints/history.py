"""What happened to a run: history.jsonl in its folder, a line for each event.

    {"date": "2026-11-27T18:00:00+00:00", "step": 5000, "event": "first checkpoint"}
    {"date": ..., "step": 9000, "event": "changed", "field": "training.learning_rate", "before": 0.0002, "after": 0.001,
     "equal": false}

Nothing is trained or read differently because of it, but for one thing: a run that has saved and has no checkpoint has lost
it. A damaged line is passed over.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorefield.numerics.files import known_to_json, write_atomically

FIRST, CHANGED, RESTARTED = "first checkpoint", "changed", "restarted"      # events


def read_history(run: Path) -> list[dict[str, Any]]:
    """The events of a run in their order; none if the file is missing. Damaged lines are left out."""
    path = run / "history.jsonl"
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except (RecursionError, ValueError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


def add_history(run: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Add events, with the date of now. What is there stays, byte for byte."""
    path, now = run / "history.jsonl", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before = path.read_bytes() if path.exists() else b""
    lines = "".join(json.dumps(known_to_json({"date": now, **event})) + "\n" for event in events).encode()
    glue = b"\n" if before and not before.endswith(b"\n") else b""      # after a damaged end
    write_atomically(path, lambda file: file.write(before + glue + lines))


def has_saved(run: Path) -> bool | None:
    """Whether the run has saved a checkpoint since it began; None where its history does not say, as in older runs."""
    events = [event["event"] for event in read_history(run)]
    if RESTARTED in events:
        events = events[len(events) - 1 - events[::-1].index(RESTARTED):]
    return FIRST in events if events else None
