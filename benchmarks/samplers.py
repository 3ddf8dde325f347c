"""Accuracy for each evaluation, and cost of a step beyond the network: `python -m benchmarks.samplers`.

Accuracy: RMS distance at t = 1e-3 to the tightly solved probability-flow ODE, from the same start at t = 1, on the 2-D
mixture of tests/oracles, on a 16-D mixture and, where `make demo` has left its model, on the digits in float32.
Overhead: one thread, (64, 3, 32, 32) float32, a network that is x * 0.1, side by side with diffusers in one run.
Writes benchmarks/results/accuracy.json, overhead.json and docs/images/accuracy.png.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.checkpoints import load_denoiser
from scorefield.models import Denoiser, GaussianMixture, ScoreModel
from scorefield.samplers import make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import SDE, VESDE, VPSDE, CosineVPSDE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUDGETS = (8, 10, 15, 20, 50)
T_END = 1e-3
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "auto, order 3": ("auto", {"order": 3}),
    "DPM-Solver++ 2M": ("dpm_solver++", {"order": 2, "lower_order_final": False}),
    "DPM-Solver++ 3M": ("dpm_solver++", {"order": 3, "lower_order_final": False}),
    "DPM-Solver++ 3M, published": ("dpm_solver++", {"order": 3, "published": True, "lower_order_final": False}),
    "DPM-Solver 3M": ("dpm_solver", {"order": 3, "lower_order_final": False}),
    "DPM-Solver 3S": ("dpm_solver", {"order": 3, "method": "singlestep"}),
    "UniPC-2": ("unipc", {"order": 2}),
    "UniPC-3": ("unipc", {"order": 3}),
    "UniPC-3, noise": ("unipc", {"order": 3, "prediction": "noise"}),
    "DDIM": ("ddim", {"grid": "logsnr"}),
}
REFERENCE = "DPM-Solver++ 2M"
Problem = tuple[ScoreModel, Tensor]


def mixture_2d(sde: SDE) -> Problem:
    with np.load(ROOT / "tests" / "oracles" / "gmm2_vp_linear.npz") as arrays:
        mu, var, weights, x_T = (torch.from_numpy(arrays[k]) for k in ("mu", "var", "weights", "x_T"))
    return GaussianMixture(sde, mu, var, weights), x_T * sde.prior.std


def mixture_16d(sde: SDE, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    mu, std, weights = rng.normal(size=(8, 16)), rng.uniform(0.15, 0.45, 8), rng.uniform(0.5, 1.5, 8)
    x_T = np.random.default_rng(123).normal(size=(64, 1, 4, 4)) * sde.prior.std
    return GaussianMixture(sde, *(torch.from_numpy(a) for a in (mu, std**2, weights))), torch.from_numpy(x_T)


def digits(run: Path) -> Problem:
    model = load_denoiser(run)
    return model, prior_sample(model.sde, (1, 8, 8), sample_seeds(0, 0, 256))


def errors(problem: Problem, settings: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, list[float]]:
    """RMS distance to the flow's end for each setting, one figure a budget of evaluations."""
    model, x_T = problem
    tolerance = 1e-10 if x_T.dtype == torch.float64 else 1e-6
    exact = make_sampler("ode", t_end=T_END, rtol=tolerance, atol=tolerance)(model, x_T).x
    table: dict[str, list[float]] = {}
    for label, (name, options) in settings.items():
        table[label] = []
        for n in BUDGETS:
            result = make_sampler(name, steps=n, t_end=T_END, **options)(model, x_T)
            assert result.nfe == n, (label, result.nfe)
            table[label].append(float((result.x - exact).double().square().mean().sqrt()))
    return table


def accuracy() -> None:
    problems: dict[str, Problem] = {"2-D mixture": mixture_2d(VPSDE()), "16-D mixture": mixture_16d(VPSDE())}
    run = ROOT / "runs" / "vp_digits"
    if (run / "config.json").exists():
        problems["digits"] = digits(run)
    else:
        print(f"no model in {run}: train it (configs/vp_digits.py) to have the digits in the table")
    results = {name: errors(problem, SETTINGS) for name, problem in problems.items()}
    few = {label: SETTINGS[label] for label in ("auto", REFERENCE)}
    others = {"16-D mixture, seed 1": mixture_16d(VPSDE(), 1), "16-D mixture, VE": mixture_16d(VESDE()),
              "16-D mixture, cosine": mixture_16d(CosineVPSDE())}
    results |= {name: errors(problem, few) for name, problem in others.items()}

    header = "| " + " | ".join(["RMS error at evaluations", *map(str, BUDGETS)]) + " |\n|" + "---|" * (len(BUDGETS) + 1)
    for name, table in results.items():
        print(f"\n{name}\n\n{header}")
        for label, row in table.items():
            print("| " + " | ".join([label, *(f"{value:.2g}" for value in row)]) + " |")
    ratios = [a / b for name in problems for a, b in zip(results[name]["auto"], results[name][REFERENCE], strict=True)]
    others_ratios = [a / b for name in others for a, b in zip(results[name]["auto"], results[name][REFERENCE], strict=True)]
    summary = {"geometric_mean": math.exp(statistics.fmean(map(math.log, ratios))), "worst": max(ratios),
               "cases": len(ratios), "others_geometric_mean": math.exp(statistics.fmean(map(math.log, others_ratios))),
               "others_worst": max(others_ratios)}
    print(f"\nauto against {REFERENCE}: geometric mean of the ratios {summary['geometric_mean']:.3f}, worst "
          f"{summary['worst']:.2f}, over {len(ratios)} cases; on another seed, VE and cosine "
          f"{summary['others_geometric_mean']:.3f} and {summary['others_worst']:.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps(
        {"budgets": BUDGETS, "errors": results, "summary": summary}, indent=2) + "\n")
    plot({name: results[name] for name in problems})


def plot(results: dict[str, dict[str, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = ["auto", "UniPC-3", "UniPC-2", "DPM-Solver++ 3M", "DPM-Solver++ 2M", "DDIM"]
    figure, axes = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 3.8), constrained_layout=True,
                                   squeeze=False)
    for axis, (name, table) in zip(axes[0], results.items(), strict=True):
        for label in shown:
            axis.loglog(BUDGETS, table[label], "o-", lw=2.5 if label == "auto" else 1, ms=4, label=label)
        axis.set(title=name, xlabel="evaluations", ylabel="RMS error", xticks=BUDGETS, xticklabels=BUDGETS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    path = ROOT / "docs" / "images" / "accuracy.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


# ---- overhead --------------------------------------------------------------------------------------------------------


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


if __name__ == "__main__":
    accuracy()
    overhead()
