"""Mode tune: fit a sampler to a run: the grid and the coefficients of auto, or the statistics of DPM-Solver-v3."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.drawing import PRECISION, prepare
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, COMPILE, EMA, SEED, STRICT, Flag
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.measurements import DATA
from scorefield.cli.restore import restoring_of
from scorefield.cli.tuned import FILES, belongs_to, place_of
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide
    from scorefield.cli.tuned import Restoring
    from scorefield.evaluation.tune import Models

SUMMARY = "fits a sampler to the run: auto for --sampler tuned, or dpm_solver_v3"
AUTO = "auto"
FLAGS = (
    Flag("sampler", str, AUTO, "what is fitted: the grid and coefficients of auto, or the statistics of dpm_solver_v3",
         tuple(FILES)),
    Flag("steps", tuple, (8,), "of auto: for how many steps, or several numbers such as 5,8,10"),
    Flag("num_starts", int, None, "of the runs to which a sampler is fitted, by default 64, of which 24 are held back to "
                                  "judge it; 256 for dpm_solver_v3"),
    Flag("dense", int, 64, "steps of those runs"),
    Flag("operator", str, None, "tune for mode restore by this operator, and the flags after it"),
    Flag("measurement", str, DATA, "as of mode restore: what the runs restore, in turn"),
    Flag("degraded", bool, False, "as of mode restore"),
    Flag("noise", float, 0.0, "as of mode restore"),
    Flag("method", str, "tmpd", "as of mode restore"),
    Flag("num_images", int, None, "as of mode restore"),
    PRECISION, COMPILE,
    *(replace(flag, choices=(*flag.choices, "none")) if flag.name == "threshold" else flag for flag in GUIDANCE),
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
OF_AUTO, OF_RESTORING = ("steps",), ("measurement", "degraded", "noise", "method", "num_images")
NOT_RESTORING = ("guidance", "guidance_interval", "autoguidance", "classifier", "classifier_scale", "quantile", "low_res",
                 "low_res_noise")


def run(command: Command) -> None:
    """Fit a sampler to the run's newest checkpoint, and write it with what it was made from."""
    from scorefield.cli.guide import guide_of

    values, given = command.asked.values, command.asked.given
    if not all(type(number) is int for number in values["steps"]) or not values["steps"]:
        raise ArgumentError(f"steps must be whole numbers, got {values['steps']}", "steps")
    for needs, names in (("operator", OF_RESTORING if values["operator"] is None else ()),
                         ("sampler auto", OF_AUTO if values["sampler"] != AUTO else ())):
        if other := [name for name in names if name in given]:
            raise ArgumentError(f"{' and '.join(other)} belong{'s' * (len(other) == 1)} to {needs}; leave that out", *other)
    model = command.denoiser()
    prepare(model.network, command)
    restoring = None
    if values["operator"] is not None:
        if other := [name for name in NOT_RESTORING if values[name] is not None]:
            raise ArgumentError(f"mode restore takes no {' and no '.join(other)}; leave that out", *other)
        restoring, guide, models = restoring_of(command, model)
    else:
        if values["threshold"] == "none":
            values["threshold"] = None      # type: ignore[index]      # a dict, as resolve_average takes it
        guide = guide_of(command, model)
        models = guide.of(model, command.device)
    began = time.perf_counter()
    with renamed(names={"starts": "num_starts", "model": "workdir", "noise_std": "noise", "y": "measurement"}):
        (_tune if values["sampler"] == AUTO else _measure)(command, models, guide, restoring)
    print(f"tuned in {time.perf_counter() - began:.0f} s")


def _made_from(command: Command, guide: Guide, restoring: Restoring | None, starts: int) -> dict[str, Any]:
    values = command.asked.values
    settings = {"num_starts": starts, **{name: values[name] for name in ("dense", "seed", "precision")}}
    return {"of": belongs_to(command, guide, command.newest, restoring), "settings": settings,
            "checkpoint": str(command.newest)}


def _tune(command: Command, models: Models, guide: Guide, restoring: Restoring | None) -> None:
    """Solvers for several numbers of steps."""
    from scorefield.evaluation.tune import STARTS, tune
    from scorefield.numerics.files import write_json

    values, starts = command.asked.values, command.asked.values["num_starts"] or STARTS
    tunings = tune(models, command.codec.event(command.shape), values["steps"], starts, values["dense"], values["seed"],
                   values["batch_size"], command.device)
    made_from = _made_from(command, guide, restoring, starts)
    for tuning in tunings:
        path, solver = place_of(command, guide, AUTO, tuning.solver.steps, restoring), tuning.solver
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**solver.stored(), "made_from": {
            **made_from, "chosen": tuning.chosen, "figures": tuning.figures, "evaluations": tuning.evaluations}})
        own, auto = tuning.figures[tuning.chosen], tuning.figures["auto"]
        print(f"{solver.steps} steps: {tuning.chosen}; on starts that were held back, the distance to the flow's end has "
              f"the median {own['median']:.3g} (auto {auto['median']:.3g}) and the RMS {own['rms']:.3g} (auto "
              f"{auto['rms']:.3g}); {tuning.evaluations} evaluations", flush=True)
        print(f"wrote {path}", flush=True)


def _measure(command: Command, models: Models, guide: Guide, restoring: Restoring | None) -> None:
    """The statistics of DPM-Solver-v3, for any number of steps."""
    from scorefield.evaluation.statistics import STARTS, measure
    from scorefield.numerics.files import write_arrays

    values, starts = command.asked.values, command.asked.values["num_starts"] or STARTS
    statistics, evaluations = measure(models, command.codec.event(command.shape), starts, values["dense"], values["seed"],
                                      values["batch_size"], command.device)
    made_from = {**_made_from(command, guide, restoring, starts), "evaluations": evaluations}
    path: Path = place_of(command, guide, "dpm_solver_v3", 0, restoring)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, replace(statistics, made_from=json.dumps(made_from, sort_keys=True)).stored())
    print(f"{len(statistics.lam)} nodes; {evaluations} evaluations\nwrote {path}", flush=True)
