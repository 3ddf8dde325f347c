"""Speed and memory of the U-Net beside diffusers' UNet2DModel: `python -m benchmarks.unet [eager]`, part of `make bench`.

DDPM's CIFAR-10 network (google/ddpm-cifar10-32) with the same weights in both, batch 8, one thread or one GPU, in
alternating rounds of one run; ratios are medians over the rounds. diffusers as shipped: float32, eager, torch.optim.Adam,
its EMAModel. Ours: the same in float32, then as `--mode train` and `--mode sample --precision auto` choose, and compiled
(which takes some minutes at first; "eager" leaves that out). A training step is forward, backward, clipping, Adam and EMA.

Multiplications are counted once, for the network as written; the machine's peak is that of the faster of a large product of
matrices and a large convolution, in the same run. Memory of a step, all in float32: what the forward pass keeps for the
backward pass, and the peak of a process of its own from before the network is built. Writes benchmarks/results/unet.json.
"""

import copy
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scorefield.checkpoints.formats.diffusers import read
from scorefield.models.ema import EMA
from scorefield.models.layers import recompute_activations
from scorefield.models.networks.unet import UNet
from scorefield.numerics.devices import autocast_dtype, local_device, prepare_sampling
from scorefield.numerics.processes import World
from scorefield.training.machine import Machine

RESULTS = Path(__file__).parent / "results"
DEVICE = local_device("auto")
BF16 = autocast_dtype("auto", DEVICE) is not None      # whether the machine has instructions for it; else bf16 is left out
BATCH = 8
DIFFUSERS, EQUAL, CHECKPOINTED = "diffusers, float32", "ours, float32", "ours, float32, activation checkpointing"
SETTINGS: dict[str, Any] = {      # of google/ddpm-cifar10-32
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
Way = Callable[[], Any]


def networks() -> tuple[nn.Module, nn.Module]:
    """Theirs and ours, of the same weights."""
    torch.manual_seed(0)
    theirs = UNet2DModel(**SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = read(Path(folder), {"sde": {"name": "ddpm"}}).denoiser().network
    return theirs.to(DEVICE), ours.requires_grad_(True).to(DEVICE)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, indices of the chain, and noise."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, BATCH, 3, 32, 32, generator=generator).to(DEVICE)
    return x, torch.randint(0, 1000, (BATCH,), generator=generator).to(DEVICE), noise


def default(network: nn.Module) -> torch.dtype | None:
    """Change the network to what `--mode train` trains; the dtype of its arithmetic, None for float32."""
    model, (x, t, _) = SimpleNamespace(network=network, autocast=autocast_dtype("auto", DEVICE)), batch()

    def loss(n: int) -> Tensor:
        with torch.autocast(DEVICE.type, model.autocast, enabled=model.autocast is not None):
            output = network(x[:n], t[:n])
        return output.float().square().mean()

    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():      # it is measured by steps of training
        chosen = Machine(Path(folder), DEVICE).memory_format(model, "auto", loss, BATCH, World())
    print(f"the default memory format here is {chosen}", flush=True)
    return model.autocast


def forward_ways(compiled: bool) -> dict[str, Way]:
    x, t, _ = batch()
    theirs, ours = (network.eval() for network in networks())
    ways: dict[str, Way] = {DIFFUSERS: lambda: theirs(x, t).sample, EQUAL: lambda: ours(x, t)}

    def add(name: str, network: nn.Module, dtype: torch.dtype | None) -> None:
        y = x.to(next(network.parameters()).dtype)

        def way() -> Tensor:
            with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
                return network(y, t)

        ways[name] = way

    for suffix in ("", ", compiled")[:1 + compiled]:
        network, sampling = copy.deepcopy(ours), copy.deepcopy(ours)
        dtype = default(network)
        prepare_sampling(sampling, "auto", DEVICE)
        if suffix:
            network.compile()
            sampling.compile()
        add(f"ours, default{suffix}", network, dtype)
        if BF16:
            add(f"ours, weights held in bf16{suffix}", sampling, None)
    return ways


def step_ways(compiled: bool) -> dict[str, Way]:
    theirs, ours = networks()
    ways = {DIFFUSERS: their_step(theirs), EQUAL: our_step(copy.deepcopy(ours), None, fused=False)}
    for suffix in ("", ", activation checkpointing", ", compiled")[:2 + compiled]:
        network = copy.deepcopy(ours)
        dtype = default(network)
        ways[f"ours, default{suffix}"] = our_step(network, dtype, recompute="check" in suffix, compiled="comp" in suffix)
    return ways


def their_step(network: nn.Module) -> Way:
    x, t, noise = batch()
    parameters = list(network.train().parameters())
    optimizer, ema = torch.optim.Adam(parameters, lr=1e-4), EMAModel(parameters, decay=0.9999)

    def step() -> None:
        (network(x, t).sample - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)

    return step


def our_step(network: nn.Module, dtype: torch.dtype | None, fused: bool | None = DEVICE.type != "mps",
             recompute: bool = False, compiled: bool = False) -> Way:
    x, t, noise = batch()
    parameters = list(network.train().parameters())
    optimizer, ema = torch.optim.Adam(parameters, lr=1e-4, fused=fused), EMA(network, 0.9999)
    if recompute:
        recompute_activations(network)
    if compiled:
        network.compile()

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            output = network(x, t)
        (output.float() - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(network)

    return step


# ---- what the machine can do, and what the network asks ----------------------------------------------------------


def seconds(way: Way) -> float:
    start = time.perf_counter()
    way()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """The seconds of each way in each of alternating rounds, after a call that does not count."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    return times


def peak(dtype: torch.dtype) -> float:
    """Floating-point operations a second of the faster of a product of matrices and a 3x3 convolution of 256 channels."""
    n = 8192 if DEVICE.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=DEVICE).to(dtype)
    x = torch.randn(n // 32, 256, 32, 32, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 256, 3, padding=1, device=DEVICE).to(dtype).to(memory_format=torch.channels_last)
    best = 0.0
    with torch.no_grad():
        for way, work in ((lambda: a @ b, 2 * n**3), (lambda: conv(x), 2 * x.numel() * 9 * 256)):
            seconds(way)
            best = max(best, work / min(seconds(way) for _ in range(5)))
    return best


def work() -> tuple[int, int]:
    """Floating-point operations of a forward pass, and of forward and backward pass."""
    (x, t, _), (theirs, _) = batch(), networks()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:      # only there attention is counted
        output = theirs(x, t).sample
        forward = counter.get_total_flops()
        output.sum().backward()
    return forward, counter.get_total_flops()


# ---- speed -------------------------------------------------------------------------------------------------------


def compare(ways: dict[str, Way], operations: int, peaks: dict[str, float], rounds: int) -> list[dict[str, Any]]:
    """A row for each way; the first is what the others are compared with."""
    first = {name: seconds(way) for name, way in ways.items()}
    times = in_turn(ways, rounds)
    rows = []
    for name, taken in times.items():
        median, ratios = statistics.median(taken), [a / b for a, b in zip(times[DIFFUSERS], taken, strict=True)]
        kind = "float32" if "float32" in name or autocast_dtype("auto", DEVICE) is None else "bf16"
        rows.append({"way": name, "ms": 1e3 * median, "ratio": statistics.median(ratios), "ratios": ratios,
                     "share_of_peak": operations / median / peaks[kind], "peak": kind, "first_call_s": first[name]})
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n| {title} | ms | times diffusers | share of the peak in its arithmetic |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['way']} | {row['ms']:.0f} | {row['ratio']:.2f} | {row['share_of_peak']:.0%} of {row['peak']} |")


def error(output: Tensor, exact: Tensor) -> float:
    return float((output.float() - exact).norm() / exact.norm())


# ---- memory ------------------------------------------------------------------------------------------------------


def kept_bytes(network: nn.Module) -> int:
    """What a forward pass in training keeps for the backward pass, besides the weights."""
    x, t, _ = batch()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network.train()(x, t)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_bytes(way: str) -> int:
    """Highest use of memory, in this process, by three steps: weights, gradients, Adam, EMA and activations."""
    def used() -> int:
        if DEVICE.type == "cuda":
            return torch.cuda.max_memory_allocated()
        if sys.platform == "darwin":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status = Path("/proc/self/status").read_text()      # ru_maxrss would begin at that of the parent process
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    before = used()
    if way == DIFFUSERS:
        step = their_step(UNet2DModel(**SETTINGS).to(DEVICE))
    else:
        step = our_step(UNet(dropout=0.0).to(DEVICE), None, fused=False, recompute=way == CHECKPOINTED)
    for _ in range(3):
        step()
    return used() - before


def memory() -> list[dict[str, Any]]:
    theirs, ours = networks()
    kept = {DIFFUSERS: kept_bytes(theirs), EQUAL: kept_bytes(ours)}
    recompute_activations(ours)
    kept[CHECKPOINTED] = kept_bytes(ours)
    rows = []
    for way, count in kept.items():
        command = [sys.executable, "-m", "benchmarks.unet", "peak", way]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
        rows.append({"way": way, "kept_mib": count / 2**20, "peak_mib": peak / 2**20})
    print("\n| memory of a step | kept for the backward pass, MiB | peak, MiB |\n|---|---|---|")
    for row in rows:
        print(f"| {row['way']} | {row['kept_mib']:.0f} | {row['peak_mib']:.0f} |")
    return rows


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        print(peak_bytes(sys.argv[2]))
        return
    compiled = "eager" not in sys.argv[1:] and (DEVICE.type == "cuda" or shutil.which("g++") is not None)
    peaks = {"float32": peak(torch.float32)} | ({"bf16": peak(torch.bfloat16)} if BF16 else {})
    forward, both = work()
    if not BF16:
        print("this machine has no instructions for bf16, so what computes in it is left out")
    print(f"{DEVICE}: {', '.join(f'{name} {rate / 1e9:.0f}' for name, rate in peaks.items())} GFLOP/s; batch {BATCH}: "
          f"{forward / 2e9:.1f} billion multiplications forward, {both / 2e9:.1f} with backward")
    with torch.no_grad():
        ways = forward_ways(compiled)
        rows = compare(ways, forward, peaks, rounds=15)
        exact = ways[DIFFUSERS]()
        for row in rows:
            row["error"] = error(ways[row["way"]](), exact)
    show("forward", rows)
    del ways
    steps = compare(step_ways(compiled), both, peaks, rounds=9)
    show("training step", steps)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "unet.json").write_text(json.dumps(
        {"threads": torch.get_num_threads(), "device": str(DEVICE), "torch": torch.__version__, "batch": BATCH,
         "peaks": peaks, "operations": {"forward": forward, "forward_and_backward": both}, "forward": rows,
         "training_step": steps, "memory": memory()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
