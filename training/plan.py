"""What training takes of a GPU's memory, without a GPU and without the memory: one step on PyTorch's meta device.

    weights, gradients, moments, averages   4 bytes a number each, all of them (DDP) or 1/N of them (FSDP)
    gathered                                FSDP: what is whole for a while; see `gathered_bytes`
    activations                             the most that a forward and backward pass holds at a time, beside the above

Tensors of the meta device have shapes and no values. Every storage is followed from its making to its end, through the
network, the loss and the backward pass, so that what autograd keeps, and what lives between, is counted and not guessed.
PyTorch's autocast does not know that device; `Autocast` does what it does on a GPU, and attention keeps what fused kernels
keep.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from scorefield.models.build import build_denoiser
from scorefield.models.conditions import blank
from scorefield.models.layers import recompute_activations
from scorefield.numerics.errors import ArgumentError
from scorefield.training.sharding import blocks_of
from scorefield.training.update import Update

GIB = 2**30
RESERVED = 2 * GIB      # CUDA's context, the work space of libraries, NCCL's buffers and what lies between blocks: a guess
MOST = 2**20      # examples a GPU that are tried


class Live(TorchDispatchMode):
    """Follows the storages that operations make: `now` and `peak`, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def know(self, tensors: Any) -> None:
        """Do not count these."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = 0

    def _note(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = self._known[storage] = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


class _Fused(torch.autograd.Function):
    """Attention of a fused kernel, in what it keeps: its inputs, its output and one number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Casts(TorchFunctionMode):
    LOWER = {F.conv1d, F.conv2d, F.conv_transpose2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
    FULL = {F.group_norm, F.layer_norm, torch.softmax, F.softmax, Tensor.softmax}

    def __init__(self, dtype: torch.dtype | None, weights: dict[int, Tensor]):
        super().__init__()
        self.dtype, self.weights = dtype, weights

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _Fused.apply(*self._cast(args[:3], self.dtype))
        if function in self.LOWER:
            args, kwargs = self._cast(args, self.dtype), self._cast(kwargs, self.dtype)
        elif function in self.FULL and self.dtype is not None:
            args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        return function(*args, **kwargs)

    def _cast(self, values: Any, dtype: torch.dtype | None) -> Any:
        def cast(value: Any) -> Any:
            if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
                return value
            if not isinstance(value, nn.Parameter):
                return value.to(dtype)
            if id(value) not in self.weights:
                self.weights[id(value)] = value.to(dtype)
            return self.weights[id(value)]

        return tree_map(cast, values)


class Autocast:
    """CUDA's autocast to `dtype` (None: none): products in it, norms and softmax in float32, each weight cast once a pass.

        network.forward = Autocast(torch.bfloat16)(network.forward)
    """

    def __init__(self, dtype: torch.dtype | None):
        self.dtype, self._weights, self._depth = dtype, dict[int, Tensor](), 0

    def __call__(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def cast(*inputs: Any) -> Tensor:
            self._depth += 1
            try:
                with _Casts(self.dtype, self._weights):
                    return forward(*inputs)
            finally:
                self._depth -= 1
                if self._depth == 0:      # as autocast forgets its casts
                    self._weights.clear()

        return cast


@dataclass(frozen=True)
class Layout:
    """What one way of training takes of each GPU, in bytes.

    sharding       "none" (DDP) or "fsdp"
    checkpointing  whether activations are computed again
    largest_batch  the most examples a GPU that fit; 0: not even one
    """

    sharding: str
    checkpointing: bool
    weights: int
    gradients: int
    optimizer: int
    averages: int
    gathered: int
    activations: int
    reserved: int
    fits: bool
    largest_batch: int

    @property
    def total(self) -> int:
        return (self.weights + self.gradients + self.optimizer + self.averages + self.gathered + self.activations
                + self.reserved)


@dataclass(frozen=True)
class Plan:
    """What `plan` finds: parameters, examples a GPU, the arithmetic, and a Layout for each way of training."""

    parameters: int
    gpus: int
    gpu_memory: int
    batch: int
    precision: str
    layouts: Sequence[Layout]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"layouts": [asdict(layout) | {"total": layout.total} for layout in self.layouts]}


def plan(config: Any, shape: Sequence[int], gpus: int = 1, gpu_memory: float = 80.0) -> Plan:
    """Memory a GPU of training the config on data of `shape`, by DDP and FSDP, with and without activation checkpointing.

        plan(load_config("configs/vp_cifar10.py"), (3, 32, 32), gpus=8)

    gpu_memory  of one GPU, in GiB

    Raises ArgumentError for numbers out of range, and for a batch that the GPUs cannot share equally.
    """
    settings = config.training
    if gpus < 1 or not 0 < gpu_memory < float("inf"):
        raise ArgumentError(f"there must be at least one GPU, with memory above 0 GiB, got {gpus} and {gpu_memory}", "gpus",
                            "gpu_memory")
    if settings.batch_size % gpus:
        raise ArgumentError(f"training.batch_size={settings.batch_size} must be divisible by {gpus}, the number of GPUs",
                            "training.batch_size", "gpus")
    room, dtype = round(gpu_memory * GIB), None if settings.precision == "fp32" else torch.bfloat16
    layouts = []
    for checkpointing in (False, True):
        with torch.device("meta"):
            network = build_denoiser(config, shape).network
        if checkpointing and not blocks_of(network):
            continue
        step = _remembered(partial(_step_of(network, dtype, checkpointing), shape))
        for sharding in ("none", "fsdp") if gpus > 1 else ("none",):
            layouts.append(_layout(network, settings, sharding, checkpointing, gpus, room, step))
    parameters = sum(p.numel() for p in network.parameters())
    return Plan(parameters, gpus, room, settings.batch_size // gpus, "float32" if dtype is None else "bfloat16", layouts)


def _layout(network: nn.Module, settings: Any, sharding: str, checkpointing: bool, gpus: int, room: int,
            step: Callable[[int], int]) -> Layout:
    weights = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    moments, averages = _kept(settings)
    share = gpus if sharding == "fsdp" else 1
    sizes = {"weights": weights, "gradients": weights, "optimizer": round(weights * moments),
             "averages": round(weights * averages)}
    sizes = {name: -(-size // share) for name, size in sizes.items()}
    gathered = gathered_bytes(network) if sharding == "fsdp" else 0
    free = room - sum(sizes.values()) - gathered - RESERVED
    used = step(settings.batch_size // gpus)
    return Layout(sharding, checkpointing, **sizes, gathered=gathered, activations=used, reserved=RESERVED,
                  fits=used <= free, largest_batch=_largest(step, free))


def gathered_bytes(network: nn.Module) -> int:
    """What FSDP has whole at a time, at most: what belongs to no block, which stays until the backward pass is through; two
    blocks, that at work and the next one; and the gradient of one of these before it is cut.
    """
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_of(network)]
    rest = sum(p.nbytes for p in network.parameters()) - sum(blocks)
    return rest + sum(sorted(blocks)[-2:]) + max([rest, *blocks])


def _step_of(network: nn.Module, dtype: torch.dtype | None, checkpointing: bool) -> Callable[[Sequence[int], int], int]:
    """`activation_bytes` of a network that is computed in `dtype` (None: float32), maybe with activation checkpointing."""
    cast = Autocast(dtype)
    for module in (network, *(blocks_of(network) if checkpointing else ())):      # the backward pass enters blocks again
        module.forward = cast(module.forward)
    if checkpointing:
        recompute_activations(network)
    return partial(activation_bytes, network)


def activation_bytes(network: nn.Module, shape: Sequence[int], batch: int) -> int:
    """The most that a forward and backward pass of a network on the meta device holds beside weights and gradients."""
    network.train()
    with torch.device("meta"):
        x, time, noise = torch.empty(batch, *shape), torch.empty(batch), torch.empty(batch, *shape)
        condition = blank(network, batch, shape)
    handles = [p.register_post_accumulate_grad_hook(_drop) for p in network.parameters()]
    live = Live()
    live.know((*network.parameters(), *network.buffers()))
    try:
        with live:
            inputs = x + noise, time + 0, *([condition] if condition else [])
            output = network(*inputs).float()
            target = torch.empty_like(output)
            (output - target).square().mean().backward()
    finally:
        for handle in handles:
            handle.remove()
    return live.peak + x.nbytes + noise.nbytes


def _drop(parameter: Tensor) -> None:
    parameter.grad = None      # gradients are counted apart


def _kept(settings: Any) -> tuple[float, float]:
    """What the optimiser and the averages keep, in numbers for each weight: of a small layer, after a step."""
    layer = nn.Linear(64, 64, bias=False)
    update = Update(None, layer, None, settings, torch.device("cpu"))  # type: ignore[arg-type]
    layer.weight.grad = torch.zeros_like(layer.weight)
    update.optimizer.step()
    own = layer.weight.numel()

    def numbers(value: Any) -> float:
        return sum(t.numel() for t in tree_leaves(value) if isinstance(t, Tensor) and t.numel() > 1) / own

    state: Mapping[str, Any] = update.state()
    averages = {name: value for name, value in state.items() if name not in ("network", "optimizer")}
    return numbers(state["optimizer"]["state"]), numbers(averages)


def _remembered(step: Callable[[int], int]) -> Callable[[int], int]:
    found = dict[int, int]()

    def known(batch: int) -> int:
        if batch not in found:
            found[batch] = step(batch)
        return found[batch]

    return known


def _largest(step: Callable[[int], int], free: int) -> int:
    """The largest batch whose step fits in `free` bytes, of at most MOST: the bytes are nearly linear in the batch."""
    if step(1) > free:
        return 0
    low, high, slope = 1, MOST + 1, float(step(2) - step(1))      # low fits, high does not
    while high - low > 1:
        guess = min(max(low + int((free - step(low)) / slope), low + 1), high - 1)
        slope = max(1, (step(guess) - step(low)) / (guess - low))
        low, high = (guess, high) if step(guess) <= free else (low, guess)
    return low
