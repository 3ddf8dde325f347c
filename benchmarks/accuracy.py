"""Accuracy for each evaluation: `python -m benchmarks.accuracy [solvers | distances]`.

Solvers: the distance at t = 1e-3 to the tightly solved probability-flow ODE, from 256 starts at t = 1, of `auto` and of
published methods with one evaluation a step, on mixtures (float64) and on networks of digits: a U-Net, one with given
labels, and an MLP. A few starts, those near a boundary between modes, rule the root mean square, so the median and the 90 %
point over the starts stand beside it. `auto` is compared with the best of the others in each case, whichever that is.

Distances: sliced Wasserstein and energy distance of 1,024 samples to 4,096 draws of the mixtures, at 5 to 50 evaluations,
with 95 % intervals and the floor, which as many exact draws have.

Writes benchmarks/results/accuracy.json, distances.json and docs/images/accuracy.png.
"""

import json
import math
import statistics
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import RESULTS, ROOT, Problem, mixture_2d, mixture_16d, trained
from scorefield.data import Dataset, make_codec
from scorefield.models import GaussianMixture
from scorefield.samplers import make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE

BUDGETS = (5, 8, 10, 15, 20, 50)
T_END = 1e-3
FULL = {"lower_order_final": False}
# "auto" and its variants, then what is published, each with its paper's or the usual grid
OURS: dict[str, tuple[str, dict[str, Any]]] = {"auto": ("auto", {}), "auto, order 2": ("auto", {"order": 2}),
                                             "auto, order 3": ("auto", {"order": 3})}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM-Solver++ 2M": ("dpm_solver++", {"order": 2} | FULL),
    "DPM-Solver++ 3M": ("dpm_solver++", {"order": 3} | FULL),
    "DPM-Solver++ 3M, published": ("dpm_solver++", {"order": 3, "published": True} | FULL),
    "DPM-Solver 3M": ("dpm_solver", {"order": 3} | FULL),
    "DPM-Solver 3S": ("dpm_solver", {"order": 3, "method": "singlestep"}),
    "UniPC-2": ("unipc", {"order": 2}),
    "UniPC-3": ("unipc", {"order": 3}),
    "UniPC-3, noise": ("unipc", {"order": 3, "prediction": "noise"}),
    "DEIS-tAB3": ("deis", {"order": 4}),
    "DEIS-tAB3, logsnr": ("deis", {"order": 4, "grid": "logsnr"}),
    "iPNDM": ("ipndm", {}),
    "REAB-3 (azula), logsnr": ("auto", {"order": 3, "correct": False, "grid": "logsnr"}),
    "REAB-3 (azula), uniform": ("auto", {"order": 3, "correct": False, "grid": "uniform"}),
    "DDIM": ("ddim", {"grid": "logsnr"}),
}
FIGURES = ("rms", "median", "p90")
Table = dict[str, dict[str, list[float]]]      # by method and figure, one number a budget


def distances_of(x: Tensor, exact: Tensor) -> dict[str, float]:
    """RMS over elements of each start's distance; over the starts its RMS, its median and its 90 % point."""
    each = (x - exact).double().flatten(1).square().mean(1).sqrt()
    return {"rms": float(each.square().mean().sqrt()), "median": float(each.median()), "p90": float(each.quantile(0.9))}


def errors(problem: Problem) -> Table:
    model, x_T = problem
    tolerance = 1e-10 if x_T.dtype == torch.float64 else 1e-6
    exact = make_sampler("ode", t_end=T_END, rtol=tolerance, atol=tolerance)(model, x_T).x
    table: Table = {}
    for label, (name, options) in (OURS | PUBLISHED).items():
        rows = []
        for n in BUDGETS:
            result = make_sampler(name, steps=n, t_end=T_END, **options)(model, x_T)
            assert result.nfe == n, (label, result.nfe)
            rows.append(distances_of(result.x, exact))
        table[label] = {figure: [row[figure] for row in rows] for figure in FIGURES}
    return table


def against_the_best(table: Table, figure: str) -> list[tuple[int, float, str]]:
    """For each budget the ratio of auto's figure to that of the best published method, and which that is."""
    ratios = []
    for i, n in enumerate(BUDGETS):
        best = min(PUBLISHED, key=lambda label, i=i: table[label][figure][i])
        ratios.append((n, table["auto"][figure][i] / table[best][figure][i], best))
    return ratios


def solvers(starts: int | None = None) -> None:
    problems: dict[str, Problem] = {
        "2-D mixture": mixture_2d(VPSDE()), "16-D mixture": mixture_16d(VPSDE()),
        "16-D mixture, seed 1": mixture_16d(VPSDE(), 1), "16-D mixture, VE": mixture_16d(VESDE()),
        "16-D mixture, cosine": mixture_16d(CosineVPSDE()), **trained(*([] if starts is None else [starts]))}
    results, cases = {}, []
    header = "| " + " | ".join(["RMS / median / 90 % at evaluations", *map(str, BUDGETS)]) + " |\n|" + "---|" * (
        len(BUDGETS) + 1)
    for name, problem in problems.items():
        table = results[name] = errors(problem)
        print(f"\n**{name}**, {len(problem[1])} starts\n\n{header}")
        for label, figures in table.items():
            cells = (" / ".join(f"{value:.2g}" for value in row) for row in zip(*figures.values(), strict=True))
            print("| " + " | ".join([label, *cells]) + " |", flush=True)
        cases += [{"problem": name, "evaluations": n, "figure": figure, "ratio": ratio, "best": best}
                  for figure in FIGURES for n, ratio, best in against_the_best(table, figure)]
    summary = {}
    for figure in FIGURES:
        ratios = [case for case in cases if case["figure"] == figure]
        worst = max(ratios, key=lambda case: case["ratio"])
        summary[figure] = {"geometric_mean": math.exp(statistics.fmean(math.log(case["ratio"]) for case in ratios)),
                           "worst": worst, "cases": len(ratios), "wins": sum(case["ratio"] < 1 for case in ratios)}
        print(f"\nauto against the best published method of each of {len(ratios)} cases, {figure}: geometric mean "
              f"{summary[figure]['geometric_mean']:.3f}, better in {summary[figure]['wins']}, worst {worst['ratio']:.2f} "
              f"({worst['problem']}, {worst['evaluations']} evaluations, {worst['best']})")
    save("accuracy", {"budgets": BUDGETS, "errors": results, "cases": cases, "summary": summary})
    plot({name: results[name] for name in ("2-D mixture", "16-D mixture", "digits") if name in results})


def plot(results: dict[str, Table]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = ["auto", "UniPC-3", "DPM-Solver++ 3M", "DPM-Solver++ 2M", "DEIS-tAB3", "iPNDM", "REAB-3 (azula), logsnr", "DDIM"]
    figure, axes = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 3.8), constrained_layout=True,
                                   squeeze=False)
    for axis, (name, table) in zip(axes[0], results.items(), strict=True):
        for label in shown:
            line, = axis.loglog(BUDGETS, table[label]["rms"], "o-", lw=2.5 if label == "auto" else 1, ms=4, label=label)
            axis.loglog(BUDGETS, table[label]["median"], ":", lw=1, color=line.get_color())
        axis.set(title=name, xlabel="evaluations", ylabel="RMS error (dotted: median)", xticks=BUDGETS, xticklabels=BUDGETS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    path = ROOT / "docs" / "images" / "accuracy.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


# ---- distances ---------------------------------------------------------------------------------------------------------


def distances(samples: int = 1024, budgets: tuple[int, ...] = (5, 10, 20, 50)) -> None:
    """Of what a sampler makes to the mixture: the errors of the prior and of t_end count here, too."""
    from scorefield.evaluation.metrics import Reference, make_metrics

    names = ("auto", "DPM-Solver++ 2M", "UniPC-3", "DEIS-tAB3", "iPNDM", "DDIM")
    shown = {label: (OURS | PUBLISHED)[label] for label in names}
    rows = []
    for name, (model, _) in {"2-D mixture": mixture_2d(VPSDE()), "16-D mixture": mixture_16d(VPSDE())}.items():
        assert isinstance(model, GaussianMixture)
        draws = model.sample(4096 + samples, 0.0, torch.Generator().manual_seed(1)).float()
        data = Dataset(name, draws[samples:], draws[:samples], draws.shape[1:], None)
        reference = Reference(data, make_codec(None))
        x_T = prior_sample(model.sde, draws.shape[1:], sample_seeds(1, 0, samples), dtype=torch.float64)
        for label, (method, options) in shown.items():
            for n in budgets:
                x = make_sampler(method, steps=n, **options)(model, x_T).x.float()
                figures = {}
                for metric_name, metric in make_metrics(["sliced_wasserstein", "energy"], reference).items():
                    metric.update(x)
                    figures[metric_name] = vars(metric.result())
                rows.append({"problem": name, "method": label, "evaluations": n} | figures)
    for metric_name in ("sliced_wasserstein", "energy"):
        for problem in dict.fromkeys(row["problem"] for row in rows):
            own = [row for row in rows if row["problem"] == problem]
            floor = own[0][metric_name]["floor"]
            print(f"\n| {problem}: {metric_name}, floor {floor:.2g} | " + " | ".join(map(str, budgets)) + " |\n|"
                  + "---|" * (len(budgets) + 1))
            for label in shown:
                cells = [row[metric_name] for row in own if row["method"] == label]
                print(f"| {label} | " + " | ".join(f"{c['value']:.2g} ({c['low']:.2g} to {c['high']:.2g})" for c in cells)
                      + " |")
    save("distances", {"samples": samples, "rows": rows})


def save(name: str, content: Any) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parts = {"solvers": solvers, "distances": distances}
    for word in sys.argv[1:] or parts:
        if word not in parts:
            sys.exit(f"unknown part {word!r}; choose from {', '.join(parts)}")
        parts[word]()
