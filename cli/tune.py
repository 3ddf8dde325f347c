"""Mode tune: fit the grid and the coefficients of sampler auto to a run and a number of steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scorefield.cli.drawing import PRECISION, prepare
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, COMPILE, EMA, SEED, STRICT, Flag
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.tuned import belongs_to, place_of
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "fits the grid and the coefficients of auto to the run, for --sampler tuned"
FLAGS = (
    Flag("steps", tuple, (8,), "for how many steps, or several numbers such as 5,8,10"),
    Flag("num_starts", int, 64, "of the runs to which a solver is fitted; 24 of 64 are held back to judge it"),
    Flag("dense", int, 64, "steps of those runs"),
    PRECISION, COMPILE, *GUIDANCE, SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)


def run(command: Command) -> None:
    """Tune solvers for the run's newest checkpoint, and write them with what they were made from."""
    from scorefield.cli.guide import guide_of
    from scorefield.evaluation.tune import tune
    from scorefield.numerics.files import write_json

    values = command.asked.values
    if not all(type(number) is int for number in values["steps"]) or not values["steps"]:
        raise ArgumentError(f"steps must be whole numbers, got {values['steps']}", "steps")
    checkpoint, model = command.newest, command.denoiser()
    prepare(model.network, command)
    guide, settings = guide_of(command, model), {name: values[name] for name in ("num_starts", "dense", "seed", "precision")}
    began = time.perf_counter()
    with renamed(names={"starts": "num_starts", "model": "workdir"}):
        tunings = tune(guide.of(model, command.device), command.codec.event(command.shape), values["steps"],
                       values["num_starts"], values["dense"], values["seed"], values["batch_size"], command.device)
    of = belongs_to(command, guide, checkpoint)
    for tuning in tunings:
        path, solver = place_of(command, guide, tuning.solver.steps), tuning.solver
        made_from = {"of": of, "settings": settings, "chosen": tuning.chosen, "figures": tuning.figures,
                     "evaluations": tuning.evaluations, "checkpoint": str(checkpoint)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**solver.stored(), "made_from": made_from})
        own, auto = tuning.figures[tuning.chosen], tuning.figures["auto"]
        print(f"{solver.steps} steps: {tuning.chosen}; on starts that were held back, the distance to the flow's end has "
              f"the median {own['median']:.3g} (auto {auto['median']:.3g}) and the RMS {own['rms']:.3g} (auto "
              f"{auto['rms']:.3g}); {tuning.evaluations} evaluations", flush=True)
        print(f"wrote {path}", flush=True)
    print(f"tuned in {time.perf_counter() - began:.0f} s")
