"""Saves that do not stop training: a copy of the state on the host, which a thread writes while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from scorefield.checkpoints.formats import sharded as folders
from scorefield.checkpoints.formats.run import prune, read_state, write_checkpoint
from scorefield.numerics.processes import World
from scorefield.training.sharding import gathered, like, shared_out


class Saver:
    """Writes the checkpoints of a run, one at a time, in a thread.

    keep     how many of the newest stay
    sharded  whether the states are in shares, so that all processes must save together
    apart    whether each process then writes its share, into a folder; else the first one writes whole tensors to a file

    The writer's errors are raised by the next `save` or `wait`. Leaving `with` waits, too, so that no process ends before
    its checkpoint is there; it then raises the writer's error, unless another one is on its way, to which it adds a note.
    """

    def __init__(self, run: Path, world: World, keep: int, sharded: bool = False, apart: bool = False):
        self.run, self.world, self.keep, self.apart = run, world, keep, sharded and apart
        self.newest: Path | None = None      # that was written whole
        self._pool = ThreadPoolExecutor(1, "save")
        self._pending: Future[Path | None] | None = None
        self._group = dist.new_group(backend="gloo") if self.apart else None      # for the thread alone

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy the state to the host and begin to write it, after what is being written is done."""
        self.wait()
        if self.apart:
            self._begin(partial(self._finish, folders.begin(self.run, step, state, self.world, self._group)))
        else:
            copied = gathered(state, self.world.first)
            if self.world.first:
                self._begin(partial(write_checkpoint, self.run, step, copied, self.keep))

    def _begin(self, write: Callable[[], Path | None]) -> None:
        self._pending = self._pool.submit(write)

    def _finish(self, finish: Callable[[], Path | None]) -> Path | None:
        path = finish()
        if path is not None:
            prune(self.run, self.keep)
        return path

    def wait(self) -> Path | None:
        """Until nothing is being written; the newest checkpoint."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self.newest = pending.result() or self.newest
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


def read_shares(checkpoint: Path, network: nn.Module, world: World) -> dict[str, Any]:
    """The state in a checkpoint of either format, of which this process takes its share as the network does.

    Raises ValueError as `read_state`; the first process alone compares a folder with its checksums.
    """
    if checkpoint.is_dir():
        return folders.read(checkpoint, like(network), verify=world.first)
    return shared_out(read_state(checkpoint), network)
