"""Rows of a table, in a JSON file as they come: what a run that was cut has left is not made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scorefield.numerics.files import write_json

RESULTS = Path(__file__).parent / "results"


class Rows:
    """Rows by name, in benchmarks/results/NAME.json.

        rows = Rows("restoring", {"particles": 1024})
        rows("tmpd, 100 steps", lambda: {"ratio": 2.7})

    settings  that all rows have in common, plain values; a file of others is begun anew
    """

    def __init__(self, name: str, settings: Mapping[str, Any]):
        self.path, self.settings = RESULTS / f"{name}.json", json.loads(json.dumps(settings))
        self.rows: dict[str, Any] = {}
        try:
            content = json.loads(self.path.read_text())
            if content["settings"] == self.settings:
                self.rows = content["rows"]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """The row of that name; made and written if it is not there."""
        if name not in self.rows:
            self.rows[name] = make()
            RESULTS.mkdir(exist_ok=True)
            write_json(self.path, {"settings": self.settings, "rows": self.rows})
        return self.rows[name]
