"""Couplings of data and noise on the swiss roll: `python -m benchmarks.couplings [--runs runs] [--steps N] [--picture P]`.

Trains configs/flow_swiss_roll.py with each coupling (once; reflow from the independent run), and prints, over 2,000 starts:

    transport    the mean of |x_0 - x_T| from the two ends of the flow
    path         the mean length of the flow's path, by 100 Euler steps, over that of the straight line between its ends
    distance     of 1, 2 and 4 Euler steps to the end of the model's own flow, the median over the starts
    samples      sliced Wasserstein distance to the data after 1, 2, 4 and 100 Euler steps; the floor of as many draws
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from scorefield.checkpoints import load_denoiser
from scorefield.data import load_dataset
from scorefield.evaluation.metrics.sliced import directions, squared_w2
from scorefield.models import Denoiser
from scorefield.samplers import make_sampler, prior_sample, sample_seeds

ROOT = Path(__file__).parents[1]
STARTS, FINE, FEW = 2000, 100, (1, 2, 4)
RUNS = {"independent": "coupling_independent", "optimal_transport": "coupling_transport", "reflow": "coupling_reflow"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--steps", type=int, help="of training, of each run; by default those of the config")
    parser.add_argument("--picture", type=Path, help="where to draw the paths of 100 starts under each coupling")
    asked = parser.parse_args()
    models = {coupling: trained(asked.runs, coupling, asked.steps) for coupling in RUNS}
    roll = load_dataset({"dataset": "swiss_roll"})
    data, again = (split[torch.arange(STARTS)][0].double() for split in (roll.test, roll.train))
    print("| coupling | transport | path / line | distance at 1, 2, 4 steps | samples at 1, 2, 4, 100 steps |")
    print("|---" * 5 + "|")
    rows = {}
    for coupling, model in models.items():
        row = rows[coupling] = figures(model, data)
        print(f"| {coupling} | {row['transport']:.3f} | {row['path']:.4f} | {told(row['distance'])} | "
              f"{told(row['samples'])} |", flush=True)
    print(f"floor of the samples: {sliced(again, data):.3f}")
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "couplings.json").write_text(json.dumps(rows, indent=2) + "\n")
    if asked.picture is not None:
        draw({name: walked(model, 40, 100) for name, model in models.items()}, asked.picture)


def trained(runs: Path, coupling: str, steps: int | None) -> Denoiser:
    """The model of a coupling, trained if its run is not there yet or has fewer steps."""
    run, more = runs / RUNS[coupling], [f"--config.training.coupling={coupling}"]
    more += [f"--config.training.teacher={runs / RUNS['independent']}", "--config.training.initial=random"
             ] if coupling == "reflow" else []
    more += [] if steps is None else [f"--config.training.steps={steps}"]
    subprocess.run([sys.executable, str(ROOT / "main.py"), "--config", str(ROOT / "configs/flow_swiss_roll.py"), "--mode",
                    "train", "--workdir", str(run), *more], check=True, stdout=subprocess.DEVNULL)
    return load_denoiser(run).eval()


def walked(model: Denoiser, steps: int, n: int = STARTS) -> Tensor:
    """The states of that many Euler steps, (steps + 1, n, 2)."""
    x_T = prior_sample(model.sde, (2,), sample_seeds(7, 0, n))
    result = make_sampler("euler", steps=steps, t_end=model.sde.t_min)(model, x_T, trajectory=True)
    assert result.trajectory is not None
    return result.trajectory.double()


def figures(model: Denoiser, data: Tensor) -> dict[str, float | list[float]]:
    fine, few = walked(model, FINE), [walked(model, steps)[-1] for steps in FEW]
    line = (fine[-1] - fine[0]).norm(dim=1)
    path = fine.diff(dim=0).norm(dim=2).sum(0)
    distance = [float((x - fine[-1]).square().mean(1).sqrt().median()) for x in few]
    return {"transport": float(line.mean()), "path": float(path.sum() / line.sum()), "distance": distance,
            "samples": [sliced(x, data) for x in (*few, fine[-1])]}


def sliced(x: Tensor, y: Tensor) -> float:
    """The sliced Wasserstein distance of points (n, 2)."""
    of = directions(2, 0)
    return float(squared_w2(*((of @ points.T).sort(1).values for points in (x, y)))[0].mean().sqrt())


def told(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def draw(paths: dict[str, Tensor], place: Path) -> None:
    """The paths of each model, from noise (grey) to data (blue), side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1), layout="constrained")
    for axis, (name, states) in zip(figure.subplots(1, len(paths), sharex=True, sharey=True), paths.items(), strict=True):
        axis.plot(states[:, :, 0].numpy(), states[:, :, 1].numpy(), color="0.75", linewidth=0.6)
        axis.scatter(*states[0].T.numpy(), s=4, color="0.5")
        axis.scatter(*states[-1].T.numpy(), s=5, color="C0")
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=7)
    figure.savefig(place, dpi=110)


if __name__ == "__main__":
    main()
