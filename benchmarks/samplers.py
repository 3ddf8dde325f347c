"""Cost of a step beyond the network: `python -m benchmarks.samplers`; accuracy for each evaluation is in accuracy.py.

One thread, (64, 3, 32, 32) float32, a network that is x * 0.1, side by side with diffusers in one run; then 20 steps of auto
at batch 1, with coefficients kept from the run before and without. Writes benchmarks/results/overhead.json.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.problems import RESULTS
from scorefield.models import Denoiser
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE


class Tenth(nn.Module):
    """The cheapest network."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x * 0.1


def overhead(rounds: int = 15, steps: int = 20) -> None:
    import diffusers

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network, model = Tenth(), Denoiser(Tenth(), VPSDE())
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    common = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    multistep = diffusers.DPMSolverMultistepScheduler
    pairs = {
        "DDIM": (("ddim", {}), diffusers.DDIMScheduler(**common, clip_sample=False)),
        "DPM-Solver++ 2M": (("dpm_solver++", {"order": 2}), multistep(**common, solver_order=2)),
        "DPM-Solver++ 3M": (("dpm_solver++", {"order": 3}), multistep(**common, solver_order=3)),
        "UniPC-2": (("unipc", {"order": 2}), diffusers.UniPCMultistepScheduler(**common, solver_order=2)),
        "auto": (("auto", {}), None),
    }

    def theirs(scheduler: Any) -> Callable[[], None]:
        def loop() -> None:
            scheduler.set_timesteps(steps)
            sample = x
            for t in scheduler.timesteps:
                sample = scheduler.step(network(sample, t), t, sample).prev_sample

        return loop

    def ours(name: str, options: dict[str, Any]) -> Callable[[], None]:
        sampler = make_sampler(name, steps=steps, **options)
        return lambda: None if sampler(model, x).x is not None else None

    def bare() -> None:
        for _ in range(steps):
            network(x, x)

    def milliseconds(loop: Callable[[], None]) -> float:
        start = time.perf_counter()
        loop()
        return 1e3 * (time.perf_counter() - start) / steps

    rows = []
    with torch.no_grad():
        for label, ((name, options), scheduler) in pairs.items():
            loops = [bare, ours(name, options)] + ([theirs(scheduler)] if scheduler is not None else [])
            for loop in loops:
                loop()
            times = np.array([[milliseconds(loop) for loop in loops] for _ in range(rounds)])
            costs = np.median(times[:, 1:] - times[:, :1], axis=0)
            rows.append({"sampler": label, "ours_ms": costs[0], "diffusers_ms": costs[1] if len(costs) > 1 else None,
                         "ratio": costs[0] / costs[1] if len(costs) > 1 else None})
    torch.set_num_threads(threads)
    print("\n| cost of a step beyond the network, ms | ours | diffusers | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['sampler']} | {row['ours_ms']:.3f} | " + (
            f"{row['diffusers_ms']:.3f} | {row['ratio']:.2f} |" if row["ratio"] else "- | - |"))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps({"rows": rows, "threads": 1}, indent=2) + "\n")


class Forgetful(VPSDE):
    """A process of which nothing is kept from one run to the next."""

    content = None


def kept(rounds: int = 100, steps: int = 20) -> None:
    """Milliseconds of 20 steps of auto at batch 1, with and without what is kept of a grid, in alternation."""
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    print(f"\n| {steps} steps of auto at batch 1, ms | coefficients made anew | kept | ratio |\n|---|---|---|---|")
    rows = []
    for predicts in ("eps", "v"):
        models = [Denoiser(Tenth(), sde, predicts) for sde in (Forgetful(), VPSDE())]
        sampler = make_sampler("auto", steps=steps)
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for model, spent in zip(models, seconds, strict=True):
                begin = time.perf_counter()
                sampler(model, x)
                spent.append(time.perf_counter() - begin)
        anew, again = (1e3 * statistics.median(spent[5:]) for spent in seconds)
        rows.append({"predicts": predicts, "anew_ms": anew, "kept_ms": again, "ratio": again / anew})
        print(f"| network of {predicts} | {anew:.2f} | {again:.2f} | {again / anew:.2f} |")
    (RESULTS / "kept.json").write_text(json.dumps({"rows": rows, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    overhead()
    kept()
