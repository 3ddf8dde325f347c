"""Solvers tuned to a model against auto: `python -m benchmarks.tuning [2-D 16-D ...] [--steps 5,8,10] [--starts 256]`.

For each problem (words choose those whose names hold one of them) the distance to the tightly solved flow, at starts that
tuning has not seen: of `tuned` and of `dpm_solver_v3` to that of `auto`, the ratio of the medians and of the root mean
squares; which candidate was chosen; and what the fits have cost in evaluations. Networks are those of benchmarks/problems.py
whose runs exist. Writes benchmarks/results/tuning.json.
"""

import argparse
import json
import time

import torch
from torch import Tensor

from benchmarks.problems import RESULTS, Problem, mixture_2d, mixture_16d, mixture_of_digits, trained
from scorefield.evaluation.statistics import measure
from scorefield.evaluation.tune import tune
from scorefield.models import ScoreModel
from scorefield.models.score_model import Given
from scorefield.samplers import DPMSolverV3, Sampler, Tuned, make_sampler
from scorefield.sde_lib import VPSDE, CosineVPSDE

SEED = 1000      # of the starts of the fits; those of the problems have seed 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--steps", type=lambda text: [int(word) for word in text.split(",")], default=[5, 8, 10])
    parser.add_argument("--starts", type=int, default=256, help="at which the solvers are judged")
    asked = parser.parse_args()
    problems: dict[str, Problem] = {
        "2-D mixture": mixture_2d(VPSDE()), "16-D mixture": mixture_16d(VPSDE()),
        "16-D mixture, cosine": mixture_16d(CosineVPSDE()), "mixture of 300 digits": mixture_of_digits(VPSDE()),
        **trained(asked.starts)}
    rows = []
    print("| model | steps | fit | tuned: median | tuned: RMS | v3: median | v3: RMS | evaluations of the fits | seconds |")
    print("|---" * 9 + "|")
    for name, (model, x_T) in problems.items():
        if asked.words and not any(word in name for word in asked.words):
            continue
        rows += compared(name, model, x_T[:asked.starts], asked.steps)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tuning.json").write_text(json.dumps(rows, indent=2) + "\n")


def compared(name: str, model: ScoreModel, x_T: Tensor, steps: list[int]) -> list[dict]:
    """A row for each number of steps."""
    def of(numbers: range) -> ScoreModel:      # the labels of a problem are in turn
        return model.model.given(label=torch.tensor(numbers) % 10) if isinstance(model, Given) else model

    began = time.perf_counter()
    shape, dtype = tuple(x_T.shape[1:]), x_T.dtype
    tunings = tune(of, shape, steps, seed=SEED, dtype=dtype)
    statistics, cost = measure(of, shape, seed=SEED, dtype=dtype)
    seconds, rows = time.perf_counter() - began, []
    exact = make_sampler("auto", order=3, steps=150)(model, x_T).x

    def distances(sampler: Sampler) -> tuple[float, float]:
        each = (sampler(model, x_T).x - exact).double().flatten(1).square().mean(1)
        return float(each.sqrt().median()), float(each.mean().sqrt())

    for number, tuning in zip(steps, tunings, strict=True):
        auto = distances(make_sampler("auto", steps=number))
        tuned, v3 = distances(Tuned.of(tuning.solver)), distances(DPMSolverV3.of(statistics, steps=number))
        ratios = [value / reference for pair in (tuned, v3) for value, reference in zip(pair, auto, strict=True)]
        rows.append({"model": name, "steps": number, "chosen": tuning.chosen, "auto": auto, "tuned": tuned,
                     "dpm_solver_v3": v3, "evaluations": [tuning.evaluations, cost], "seconds": seconds})
        print(f"| {name} | {number} | {tuning.chosen} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios)
              + f" | {tuning.evaluations:,}, {cost:,} | {seconds:.0f} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
