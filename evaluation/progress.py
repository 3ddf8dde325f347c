"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LOG_EVERY = 30      # seconds between the lines in a log


class Progress:
    """A bar of `total` units of work, which a log shows as lines such as "640 of 50000 samples".

    shown  whether to show anything; what and of, the words and the number of the lines
    """

    def __init__(self, total: int, unit: str, shown: bool, what: str, of: int):
        self.shown, self.what, self.of, self.last = shown, what, of, time.monotonic()
        self.bar = tqdm(total=total, unit=unit, disable=None if shown else True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.close()

    def step(self, *ignored: Any) -> None:
        """One unit more; fit as a sampler's callback."""
        self.bar.update()

    def at(self, done: int) -> None:
        """So many units are done, if that is more than before."""
        self.bar.update(max(done - self.bar.n, 0))

    def show(self, done: Callable[[], int]) -> None:
        """Say in a log, now and then, how many of the things are done."""
        if self.shown and self.bar.disable and time.monotonic() - self.last > LOG_EVERY:
            print(f"{done()} of {self.of} {self.what}", flush=True)
            self.last = time.monotonic()
