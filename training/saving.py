"""Saves that do not stop training: a copy of the state on the host, which a thread writes while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scorefield.checkpoints.formats import sharded as shares
from scorefield.checkpoints.formats.run import only_one, with_config, write_checkpoint
from scorefield.numerics.processes import World
from scorefield.training.sharding import gathered


class Saver:
    """Writes the checkpoints of a run, one at a time, in a thread.

    config   what the run's config.json holds; each checkpoint holds it, too
    sharded  whether the states are in shares, so that all processes must save together
    apart    whether each process then writes its share, into a folder; else the first one writes whole tensors to a file

    newest   (attribute) the checkpoint that was written last, and `step`, its step; to be read after `wait`

    The writer's errors are raised by the next `wait`, and by `save` if nobody has waited before. Leaving `with` waits, too,
    so that no process ends before its checkpoint is there; it then raises the writer's error, unless another one is on its
    way, to which it adds a note.
    """

    def __init__(self, run: Path, world: World, config: Mapping[str, Any] | None = None, sharded: bool = False,
                 apart: bool = False):
        self.run, self.world, self.config, self.sharded, self.apart = run, world, config, sharded, sharded and apart
        self.newest: Path | None = None
        self.step = -1
        self._pool = ThreadPoolExecutor(1, "save")
        self._pending: Future[None] | None = None
        self._group = dist.new_group(backend="gloo") if self.apart else None      # for the thread alone

    def save(self, step: int, state: Mapping[str, Any], after: Callable[[], Any] = lambda: None) -> None:
        """Copy the state to the host and begin to write it, after what is being written is done.

        after  called in the thread of the first process once the checkpoint is there
        """
        self.wait()
        write: Callable[[], Path | None]
        if self.apart:
            folder = self.run / "checkpoints" / f"step_{step:08d}"
            finish = shares.begin(folder, with_config(state, self.config), self.world, self._group)
            write = partial(self._sealed, folder, finish)
        else:
            copied = gathered(state, self.world.first)
            if not self.world.first:
                return
            write = partial(write_checkpoint, self.run, step, copied, self.config)
        self._pending = self._pool.submit(self._written, step, write, after)

    def _sealed(self, folder: Path, finish: Callable[[], Path | None]) -> Path | None:
        if not self.world.first:
            return finish()
        with only_one(self.run, folder):
            return finish()

    def _written(self, step: int, write: Callable[[], Path | None], after: Callable[[], Any]) -> None:
        path = write()
        if path is not None:
            self.newest, self.step = path, step
            after()

    @property
    def done(self) -> bool:
        """Whether something was being written, and is there or has failed: `wait` returns at once and says which."""
        return self._pending is not None and self._pending.done()

    def wait(self) -> Path | None:
        """Until nothing is being written; the newest checkpoint of this saver."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        return self.newest

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"besides, the checkpoint was not written: {failed}")
