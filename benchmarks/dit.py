"""The transformer beside diffusers' DiT, and beside the U-Net of as many parameters.

    python -m benchmarks.dit speed [eager]     a step and a forward pass beside diffusers' DiTTransformer2DModel
    python -m benchmarks.dit quality [CONFIG]  trains the runs that are not there, and makes the table

speed: DiT-S/2 for latents of 32 x 32 x 4 and 1000 classes, with the same weights in both, batch 8, one thread or one GPU, in
alternating rounds of one run; ratios are medians over the rounds. diffusers as shipped: float32, eager, torch.optim.Adam,
its EMAModel; its blocks have an embedding of time and label each, which ours share. Ours: the same in float32 by the same
optimiser, then as `--mode train` computes, then compiled ("eager" leaves that out, which takes some minutes at first). A
step is forward, backward, clipping, Adam and average. Writes benchmarks/results/dit.json.

quality: for each of the configs vp_digits, dit_digits, vp_fashion_mnist_small and dit_fashion the parameters, a step's
milliseconds, bits/dim of held-out examples and the Frechet distance with its 95 % interval, each run in runs/<config>. With
a config, that one alone. Writes benchmarks/results/dit_quality.json.
"""

import copy
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from benchmarks.unet import DEVICE, RESULTS, Way, in_turn
from scorefield.checkpoints.formats.diffusers import read
from scorefield.evaluation import evaluate, score
from scorefield.evaluation.evaluate import LIKELIHOOD, of_run
from scorefield.models.ema import EMA
from scorefield.models.layers import recompute_activations
from scorefield.numerics.devices import autocast_dtype

ROOT = Path(__file__).parents[1]
BATCH, CLASSES = 8, 1000
DIFFUSERS, EQUAL = "diffusers, float32", "ours, float32"
# For each config, the samples that are drawn and the held-out examples that are scored.
COUNTS = {"vp_digits": (10_000, 360), "dit_digits": (10_000, 360), "vp_fashion_mnist_small": (2_000, 128),
          "dit_fashion": (2_000, 128)}


# ---- speed -------------------------------------------------------------------------------------------------------


def networks() -> tuple[Any, Any]:
    """Theirs and ours, of the same weights: those of a converted checkpoint, whose blocks embed alike."""
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64, num_layers=12, num_embeds_ada_norm=CLASSES)
    with torch.no_grad():
        for block in theirs.transformer_blocks:
            block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        DDPMScheduler().save_pretrained(folder)
        ours = read(Path(folder)).denoiser().network
    return theirs.to(DEVICE), ours.requires_grad_(True).to(DEVICE)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, indices of the chain, labels and noise."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, BATCH, 4, 32, 32, generator=generator).to(DEVICE)
    index, label = (torch.randint(0, 1000, (BATCH,), generator=generator).to(DEVICE) for _ in range(2))
    return x, index, label, noise


def forward_ways(compiled: bool) -> dict[str, Way]:
    x, index, label, _ = batch()
    theirs, ours = (network.eval() for network in networks())
    ways: dict[str, Way] = {DIFFUSERS: lambda: theirs(x, index, class_labels=label).sample,
                            EQUAL: lambda: ours(x, index, {"label": label})}
    for suffix, dtype in _others(compiled):
        ways[f"ours{suffix}"] = _forward(copy.deepcopy(ours), dtype, "compiled" in suffix)
    return ways


def _others(compiled: bool) -> list[tuple[str, torch.dtype | None]]:
    """What else is measured: the words for it, and the dtype of the arithmetic."""
    dtype = autocast_dtype("auto", DEVICE)
    ways: list[tuple[str, torch.dtype | None]] = [(", bf16", dtype)] if dtype is not None else []
    return ways + ([(f", {'bf16' if dtype is not None else 'float32'}, compiled", dtype)] if compiled else [])


def _forward(network: Any, dtype: torch.dtype | None, compiled: bool) -> Way:
    x, index, label, _ = batch()
    if compiled:
        network.compile()

    def way() -> Tensor:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            return network(x, index, {"label": label})

    return way


def step_ways(compiled: bool) -> dict[str, Way]:
    theirs, ours = networks()
    ways = {DIFFUSERS: their_step(theirs), EQUAL: our_step(copy.deepcopy(ours), None, fused=False)}
    for suffix, dtype in [*_others(False), (", activation checkpointing", autocast_dtype("auto", DEVICE)),
                          *_others(compiled)[len(_others(False)):]]:
        ways[f"ours{suffix}"] = our_step(copy.deepcopy(ours), dtype, None, "check" in suffix, "compiled" in suffix)
    return ways


def their_step(network: Any) -> Way:
    x, index, label, noise = batch()
    parameters = list(network.train().parameters())
    optimizer, ema = torch.optim.Adam(parameters, lr=1e-4), EMAModel(parameters, decay=0.9999)

    def step() -> None:
        (network(x, index, class_labels=label).sample - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)

    return step


def our_step(network: nn.Module, dtype: torch.dtype | None, fused: bool | None, recompute: bool = False,
             compiled: bool = False) -> Way:
    x, index, label, noise = batch()
    parameters = list(network.train().parameters())
    optimizer, ema = torch.optim.Adam(parameters, lr=1e-4, fused=fused), EMA(network, 0.9999)
    if recompute:
        recompute_activations(network)
    if compiled:
        network.compile()

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            output = network(x, index, {"label": label})
        (output.float() - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(network)

    return step


def compare(ways: dict[str, Way], rounds: int) -> list[dict[str, Any]]:
    """A row for each way; the first is what the others are compared with."""
    for way in ways.values():
        way()
    times, rows = in_turn(ways, rounds), list[dict[str, Any]]()
    for name, taken in times.items():
        ms, ratios = 1e3 * statistics.median(taken), [a / b for a, b in zip(times[DIFFUSERS], taken, strict=True)]
        rows.append({"way": name, "ms": ms, "ratio": statistics.median(ratios), "ratios": ratios})
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n| {title} | ms | times diffusers |\n|---|---|---|")
    for row in rows:
        print(f"| {row['way']} | {row['ms']:.0f} | {row['ratio']:.2f} |", flush=True)


def speed(compiled: bool) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        ways = forward_ways(compiled)
        exact, error = ways[DIFFUSERS](), 0.0
        error = float((ways[EQUAL]() - exact).norm() / exact.norm())
        forward = compare(ways, rounds=15)
    print(f"{DEVICE}; batch {BATCH}; our output differs from theirs by {error:.1e} of its size")
    show("forward", forward)
    del ways
    steps = compare(step_ways(compiled), rounds=9)
    show("training step", steps)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dit.json").write_text(json.dumps(
        {"device": str(DEVICE), "torch": torch.__version__, "batch": BATCH, "error": error, "forward": forward,
         "training_step": steps}, indent=2) + "\n")


# ---- quality -----------------------------------------------------------------------------------------------------


def command(config: str, *words: str) -> None:
    subprocess.run([sys.executable, "main.py", "--workdir", f"runs/{config}", *words], check=True, cwd=ROOT)


def figures(config: str) -> dict[str, Any]:
    """Trains a config's run, or goes on with it, and measures it."""
    command(config, "--config", f"configs/{config}.py", "--mode", "train")
    run, samples, scored = ROOT / "runs" / config, *COUNTS[config]
    model, dataset, codec = of_run(run, None, None, DEVICE)
    fid = evaluate(run, n=samples, metrics=["fid"], device=DEVICE).figures["fid"]
    bits = score(model, dataset, codec, n=scored, device=DEVICE, **LIKELIHOOD).summary()
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    speeds = [line["steps_per_second"] for line in lines if "steps_per_second" in line]
    return {"config": config, "parameters": sum(p.numel() for p in model.parameters()), "samples": samples,
            "fid": [fid.value, fid.low, fid.high], "bits_per_dim": [bits["bits_per_dim"], bits["standard_error"]],
            "scored": scored, "step_ms": 1e3 / statistics.median(speeds)}


def quality(only: str | None) -> None:
    rows = []
    print("\n| config | parameters | a step, ms | bits/dim | Frechet distance |\n|---|---|---|---|---|")
    for config in COUNTS if only is None else [only]:
        row = figures(config)
        rows.append(row)
        (bits, error), (fid, low, high) = row["bits_per_dim"], row["fid"]
        print(f"| `{config}` | {row['parameters']:,} | {row['step_ms']:.0f} | {bits:.3f} ± {error:.3f} | {fid:.2f} "
              f"[{low:.2f}, {high:.2f}] |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dit_quality.json").write_text(json.dumps(rows, indent=2) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["speed"]:
        speed("eager" not in sys.argv and (DEVICE.type == "cuda" or shutil.which("g++") is not None))
    elif sys.argv[1:2] == ["quality"]:
        quality(sys.argv[2] if len(sys.argv) > 2 else None)
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
