"""What is measured on a machine once and kept: the faster memory format of a network, and the peak of its arithmetic.

A run keeps them in machine.json, so that it goes on as it began; and the machine keeps them by what they depend on, so that
all runs of a network on it are alike, to the bit, and none measures again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.data.datasets import cache_folder
from scorefield.numerics.devices import set_memory_format
from scorefield.numerics.files import json_digest, read_json, write_json
from scorefield.numerics.processes import World
from scorefield.numerics.timing import faster, machine_of, peak_operations, seconds

FORMATS = ("contiguous", "channels_last")
ROUNDS, MARGIN = 5, 0.02      # of a measurement; channels_last must be faster by this share
LONGEST = 0.25                # seconds that one measured step may take, unless a step of one example takes longer
FILE = "machine.json"


class Machine:
    """What was measured on this machine, for the run in a folder.

    run     its folder, in which nothing is written before `keep`
    device  the one that computes
    """

    def __init__(self, run: Path, device: torch.device):
        self.run, self.device = run, device
        self.known = _read(run / FILE)

    def value(self, name: str, of: Any, measure: Callable[[], Any]) -> Any:
        """What was measured under this name for `of` on this machine; `measure` is called if it has not been.

        of  what it depends on beside the machine, as plain values
        """
        key = json_digest([machine_of(self.device), of])
        entry = self.known.get(name)
        if not (isinstance(entry, Mapping) and entry.get("key") == key and "value" in entry):
            entry = _of_all_runs(key, name, measure)
            self.known[name] = {**entry, "machine": machine_of(self.device)}
        return entry["value"]

    def keep(self) -> None:
        """Write what is known to the run's folder."""
        if self.known and self.known != _read(self.run / FILE):
            write_json(self.run / FILE, self.known)

    def peak(self, dtype: torch.dtype) -> float:
        """Operations a second of a large product of matrices."""
        return float(self.value("peak", str(dtype), partial(peak_operations, self.device, dtype)))

    def memory_format(self, model: Any, asked: str, loss: Callable[[int], Tensor], batch_size: int, world: World) -> str:
        """The memory format in which a step of the model's network is faster, unless one is asked for; the network is left
        in it. Without convolutions of pictures there is nothing to choose.

        loss        the mean loss of a batch of that many examples
        batch_size  of this process's share of a step
        """
        network = model.network
        chosen = asked
        if asked == "auto" and (self.device.type == "mps" or not _has_pictures(network)):
            chosen = "contiguous"
        if chosen == "auto":
            of = [repr(network), str(model.autocast), batch_size, world.size]
            measure = partial(_faster_format, network, loss, batch_size, self.device)
            first = self.value("memory_format", of, measure) if world.first else FORMATS[0]
            chosen = FORMATS[world.any(first == FORMATS[1], self.device)]      # one for all
        set_memory_format(network, chosen)
        return chosen


def _has_pictures(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in network.modules())


def _faster_format(network: nn.Module, loss: Callable[[int], Tensor], batch_size: int, device: torch.device) -> str:
    """By steps forward and backward in both, in turn, on a share of a batch that does not take long."""
    def step(examples: int, memory_format: str) -> None:
        loss(examples).backward()

    training = network.training
    network.train()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):      # dropout draws
        seconds(partial(step, 1, FORMATS[0]), device)
        one = seconds(partial(step, 1, FORMATS[0]), device)
        examples = max(1, min(batch_size, int(LONGEST / one)))
        ways = [partial(_in_format, network, name, partial(step, examples, name)) for name in FORMATS]
        found = FORMATS[faster(ways, device, ROUNDS, MARGIN)]
    network.train(training)
    for parameter in network.parameters():
        parameter.grad = None
    return found


def _in_format(network: nn.Module, memory_format: str, work: Callable[[], None]) -> None:
    """Work in a memory format. The gradients go before: they have the layout of the weights that they are of."""
    for parameter in network.parameters():
        parameter.grad = None
    set_memory_format(network, memory_format)
    work()


def _of_all_runs(key: str, name: str, measure: Callable[[], Any]) -> dict[str, Any]:
    """The entry that this machine keeps for a key. Of several processes that measure at once, the first one's holds."""
    file = cache_folder() / "machine" / f"{name}_{key[:32]}.json"
    entry = _read(file)
    if "value" not in entry:
        entry = {"key": key, "value": measure()}
        with contextlib.suppress(OSError):      # a home that cannot be written to: the run keeps it all the same
            file.parent.mkdir(parents=True, exist_ok=True)
            mine = file.with_name(f".{file.name}.{os.getpid()}")
            write_json(mine, entry)
            with contextlib.suppress(FileExistsError):
                os.link(mine, file)
            mine.unlink()
            entry = _read(file) or entry
    return {"key": key, "value": entry["value"]}


def _read(file: Path) -> dict[str, Any]:
    """What a file holds; nothing if it is not there or damaged: then it is measured again."""
    try:
        return read_json(file) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
