"""Networks in parts: each process holds a share of every weight, gradient, moment and average (FSDP2).

    before a block works    its weights are gathered from all processes, and let go after it
    after its gradient      the mean over the processes is summed and cut, so that each keeps its share

Zhao et al. 2023, "PyTorch FSDP"; torch.distributed.fsdp.fully_shard. Shares are DTensors, cut along the first axis. What is
saved has whole tensors under the names of the network, whatever the number of processes: `gathered` makes them of shares,
and `shared_out` makes shares of them.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.layers import Block
from scorefield.numerics.processes import World, is_share, whole

Path = tuple[str | int, ...]      # the keys that lead to a tensor in a nested mapping


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together, but for the network itself, which gathers what is left."""
    return [module for module in network.modules() if isinstance(module, Block)]


def shard(network: nn.Module, device: torch.device, world: World) -> nn.Module:
    """The same network, of whose weights this process now keeps its share; its copies (`copy.deepcopy`) are shared too.

    The weights must be equal in all processes. Convolutions in channels_last stay so: FSDP keeps weights contiguous, so
    that the pictures bring the memory format.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (world.size,))
    if any(p.ndim == 4 and not p.is_contiguous() for p in network.parameters()):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        network.register_forward_pre_hook(_in_channels_last)
    return _cut(network, _outline(network), mesh)


def _cut(network: nn.Module, outline: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    type(network).__deepcopy__ = _copied  # type: ignore[attr-defined]
    vars(network)["_outline"] = partial(_same, outline)      # in a function, as a module would be a part of the network
    return network


def _outline(network: nn.Module) -> nn.Module:
    """A copy of a network without memory for its weights."""
    empty: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
                             for p in network.parameters()}
    return copy.deepcopy(network, empty)


def _copied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What copy.deepcopy makes of a shared network: another one, whose shares have the same values."""
    mesh = next(network.parameters()).device_mesh  # type: ignore[attr-defined]
    outline = network._outline()  # type: ignore[operator]
    other = copy.deepcopy(outline).train(network.training)
    other = _cut(other, outline, mesh)
    other.register_forward_hook(_let_go)
    other.to_empty(device=next(network.parameters()).device)
    with torch.no_grad():
        for of in (nn.Module.parameters, nn.Module.buffers):
            for mine, theirs in zip(of(other), of(network), strict=True):
                mine.copy_(theirs)
    return other


def _let_go(network: Any, inputs: Any, output: Any) -> None:
    """Let go what belongs to no block, which fully_shard keeps whole until a backward pass. After an evaluation none comes:
    an average that goes on would be evaluated again with the weights of then.
    """
    network.reshard()


def _same(value: Any) -> Any:
    return value


def _in_channels_last(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = inputs
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, *others)


def each_tensor(value: Any, change: Callable[[Path, Tensor], Any], path: Path = ()) -> Any:
    """A nested mapping with `change(path, tensor)` in place of each of its tensors."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, Mapping):
        return {key: each_tensor(item, change, (*path, key)) for key, item in value.items()}
    return value


def gathered(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """A copy of a state on the host, of whole tensors. All processes must call this; those that do not `keep` it get none.

    One tensor at a time is whole on the device.
    """

    def copied(path: Path, tensor: Tensor) -> Tensor | None:
        full = whole(tensor)
        return full.detach().to("cpu", copy=full is tensor) if keep else None

    return each_tensor(state, copied)


def like(network: nn.Module) -> Callable[[Path, torch.Size], Tensor | None]:
    """Which weight of the network a tensor of a state belongs to: of its path in the state, and its shape; None of none.

    Weights and averages go by the names of the network, the optimiser's moments by the number of the weight.
    """
    names, numbers = dict(network.named_parameters()), list(network.parameters())

    def weight(path: Path, shape: torch.Size) -> Tensor | None:
        if path[0] != "optimizer":
            found = names.get(str(path[-1]))
        else:
            number = path[2] if len(path) > 2 else None
            found = numbers[number] if type(number) is int and 0 <= number < len(numbers) else None
        return found if found is not None and found.shape == shape else None

    return weight


def shared_out(state: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """A state of whole tensors, equal in all processes, with this process's shares where the network has shares."""
    from torch.distributed.tensor import distribute_tensor

    weight = like(network)

    def share(path: Path, tensor: Tensor) -> Tensor:
        own = weight(path, tensor.shape)
        if own is None or not is_share(own) or is_share(tensor):
            return tensor
        placed = tensor.to(own.device).contiguous()
        return distribute_tensor(placed, own.device_mesh, own.placements, src_data_rank=None)  # type: ignore[attr-defined]

    return each_tensor(state, share)
