"""The tuned solvers of a run: where they lie, what they belong to, and the sampler that one makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide
    from scorefield.samplers import Sampler


def place_of(command: Command, guide: Guide, steps: int) -> Path:
    """The file of the run's solver of so many steps, such as solvers/auto_8_labels_guidance_2.json."""
    from scorefield.evaluation.names import words_of_weights

    labels = "" if guide.labels is None else "_labels"
    settings = replace(guide, labels=None, text=None).suffix      # whatever the label is
    words = "".join(f"_{word}" for word in words_of_weights(command.asked.values["ema"]))
    return command.run / "solvers" / f"auto_{steps}{labels}{settings}{words}.json"


def belongs_to(command: Command, guide: Guide, checkpoint: Path) -> dict[str, Any]:
    """What a solver depends on: the weights, the process, the model, the codec, whether there are labels, the guidance."""
    from scorefield.evaluation import fitted
    from scorefield.numerics.files import known_to_json

    assert command.stored is not None
    of = fitted.belongs_to(checkpoint, command.stored, command.asked.values["ema"], guide.labels is not None)
    _, settings, classifier = guide.identity
    return known_to_json({**of, "guidance": settings, "classifier": classifier})


def tuned_for(command: Command, guide: Guide, settings: Mapping[str, Any]) -> Sampler:
    """The sampler of the run's own solver, or of the file that the settings name; ArgumentError unless it belongs to the
    model and the guidance.
    """
    from scorefield.samplers import Solver, Tuned, make_sampler

    if command.checkpoint is not None:
        raise ArgumentError("a solver is tuned in a run; first make one of the checkpoint with mode convert, format run",
                            "sampler", "checkpoint")
    if "solver" in settings:
        sampler = make_sampler("tuned", **settings)
    else:
        other = {name: value for name, value in settings.items() if name not in ("steps", "solver")}
        if other:
            raise ArgumentError(f"a tuned solver has its own {' and '.join(other)}; leave that out", *other)
        steps = settings.get("steps", Tuned.steps)
        path = place_of(command, guide, steps)
        if not path.exists():
            raise ArgumentError(f"there is no tuned solver {path}; make it with mode tune, steps {steps} and the same "
                                "guidance", "sampler", "steps")
        sampler = Tuned.of(Solver.read(path))
        if sampler.steps != steps:
            raise ArgumentError(f"{path} is of {sampler.steps} steps; tune it again with mode tune", "steps")
    require_tuned(sampler, command, guide, command.newest)
    return sampler


def require_tuned(sampler: Sampler, command: Command, guide: Guide, checkpoint: Path) -> None:
    """ArgumentError unless a tuned sampler was fitted to this checkpoint and this guidance."""
    there, here = vars(sampler)["made"].made_from.get("of") or {}, belongs_to(command, guide, checkpoint)
    if other := [name for name in here if there.get(name) != here[name]]:
        raise ArgumentError(f"this solver was tuned for another model or guidance: its {' and '.join(other)} differ; tune "
                            "one with mode tune for what is to be drawn", "sampler")
