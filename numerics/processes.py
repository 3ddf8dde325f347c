"""Data-parallel work under torchrun: the rank of this process, and how the processes agree. Without torchrun, one."""

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from scorefield.numerics.errors import ArgumentError


@dataclass(frozen=True)
class World:
    """This process, number `rank` of `size`; only the first one writes files."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        total = torch.tensor(float(flag), device=device)
        dist.all_reduce(total)
        return bool(total > 0)

    def agree(self, text: str, device: torch.device) -> bool:
        """Whether the text is the same in all processes."""
        if self.size == 1:
            return True
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        ends = torch.tensor([number, -number], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return int(ends[0]) == -int(ends[1])

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def interleaved(self, share: torch.Tensor) -> torch.Tensor:
        """The rows of all processes in the order of a batch of which this one has rows rank, rank + size, ..."""
        if self.size == 1:
            return share
        parts = [torch.empty_like(share) for _ in range(self.size)]
        dist.all_gather(parts, share.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None,
                                                   gradient_as_bucket_view=True)      # else every gradient lies there twice

    def leave(self) -> None:
        """Wait for the other processes, then end the group."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()


class Agreement:
    """The largest of the numbers that the processes of a world give, the same in all of them.

    A group of its own on the host passes them on: nobody waits for a device, only for the other processes to have come as
    far. So it can be asked before every step of a training.
    """

    def __init__(self, world: World):
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1)) if world.size > 1 else None

    def __call__(self, number: int) -> int:
        if self._group is None:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return int(largest)


def is_share(tensor: torch.Tensor) -> bool:
    """Whether a tensor is this process's share of one that several hold (a DTensor, of FSDP)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or the whole one of a share, which all processes must ask for together."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor that several hold; any other tensor itself."""
    return tensor.to_local() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def meet(world: World, folders: Sequence[Path], device: torch.device, key: str = "") -> None:
    """Under torchrun, make the folders, and wait until every process has read what is in them, before any adds to it.

    Raises ArgumentError if the processes see different folders, or their keys, which say what each is about to do, differ:
    one would wait for ever for what the other does not do. The group is left at once, because one process may work far
    longer than another, and a group stops waiting after minutes.
    """
    if world.size == 1:
        return
    group = connect(device)
    if group.first:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    group.any(False, device)
    apart = group.any(not all(folder.is_dir() for folder in folders), device) or not group.agree(key, device)
    group.leave()
    if apart:
        raise ArgumentError("the processes of torchrun must share the run's folder and see the same newest checkpoint",
                            "workdir")


def launched() -> World:
    """This process among those that torchrun started, without joining their group; without torchrun, a world of one."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def connect(device: torch.device) -> World:
    """Join the processes that torchrun started (nccl on GPUs, else gloo); without torchrun, a world of one."""
    if launched().size == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=_own_store(), rank=launched().rank,
                                world_size=launched().size)
    return World(dist.get_rank(), dist.get_world_size())


def _own_store(timeout: float = 300.0) -> dist.Store:
    """A part of torchrun's store of keys that no group before this one has used.

    The store outlives groups and restarted processes, so that a new group would find the addresses of dead ones there
    (PyTorch 2.5 to 2.13). The first process draws a name for this group. The others ask for it with a number that is used
    once, and what they find under that number is not old. Raises TimeoutError if a process does not come.
    """
    store, rank, size = next(iter(dist.rendezvous("env://")))
    if rank:
        once = uuid.uuid4().hex
        store.set(f"asks/{rank}", once)
        name = store.get(f"name/{once}").decode()
        store.set(f"knows/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    name, missing, end = uuid.uuid4().hex, set(range(1, size)), time.monotonic() + timeout
    while missing:
        for other in [*missing]:
            if store.check([f"asks/{other}"]):      # maybe one that is dead: asked again until the living one knows
                store.set(f"name/{store.get(f'asks/{other}').decode()}", name)
            if store.check([f"knows/{name}/{other}"]):
                missing.remove(other)
        if time.monotonic() > end:
            raise TimeoutError(f"process {min(missing)} of {size} did not come within {timeout:.0f} s")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)
