"""What mode tune fitted to a run: where it lies, what it belongs to, and the sampler that it makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide
    from scorefield.samplers import Sampler

FILES = {"auto": ("tuned", "solver", "auto_{steps}{words}.json"),      # what is fitted: its sampler, option and file
         "dpm_solver_v3": ("dpm_solver_v3", "statistics", "dpm_solver_v3{words}.npz")}


@dataclass(frozen=True)
class Restoring:
    """How mode restore guides by a measurement, whatever that is."""

    operator: str
    method: str
    noise: float
    threshold: str

    @property
    def suffix(self) -> str:
        """What a file's name says of it."""
        from scorefield.evaluation.names import short, suffix_of

        words = [short(text.replace(":", "-").replace("=", "")) for text in (self.operator, self.method)]
        said = ({"noise": self.noise} if self.noise else {}) | ({"threshold": "none"} if self.threshold == "none" else {})
        return "".join(f"_{word}" for word in words) + suffix_of(said)


def place_of(command: Command, guide: Guide, fitted: str, steps: int = 0, restoring: Restoring | None = None) -> Path:
    """The run's file of what was fitted, a key of FILES, such as solvers/auto_8_labels_guidance_2.json."""
    from scorefield.evaluation.names import whole, words_of_weights

    labels = "" if guide.labels is None else "_labels"
    settings = replace(guide, labels=None, text=None).suffix      # whatever the label is
    words = "".join(f"_{word}" for word in words_of_weights(command.asked.values["ema"]))
    name = FILES[fitted][2].format(steps=steps, words="{words}")
    stem, _, end = name.partition("{words}")
    return command.run / "solvers" / (whole(f"{stem}{labels}{settings}{restoring.suffix if restoring else ''}{words}") + end)


def belongs_to(command: Command, guide: Guide, checkpoint: Path, restoring: Restoring | None = None) -> dict[str, Any]:
    """What a solver depends on: the weights, the process, the model, the codec, whether there are labels, the guidance, and
    how a measurement guides.
    """
    from scorefield.evaluation import fitted
    from scorefield.numerics.files import known_to_json

    assert command.stored is not None
    of = fitted.belongs_to(checkpoint, command.stored, command.asked.values["ema"], guide.labels is not None)
    _, settings, classifier, *low_res = guide.identity
    said = {"guidance": settings, "classifier": classifier} | ({"low_res": low_res} if low_res else {})
    said |= {} if restoring is None else {"restoring": vars(restoring)}
    return known_to_json({**of, **said})


def tuned_for(command: Command, guide: Guide, name: str, settings: Mapping[str, Any], restoring: Restoring | None = None
              ) -> Sampler:
    """The sampler `name` of samplers.FITTED, of the run's own file, or of the file that the settings name; ArgumentError
    unless that belongs to the model and the guidance.
    """
    from scorefield.samplers import DPMSolverV3, Solver, Statistics, Tuned, make_sampler

    if command.checkpoint is not None:
        raise ArgumentError("a solver is tuned in a run; first make one of the checkpoint with mode convert, format run",
                            "sampler", "checkpoint")
    fitted = next(word for word, (sampler, _, _) in FILES.items() if sampler == name)
    if FILES[fitted][1] in settings:
        sampler: Sampler = make_sampler(name, **settings)
    elif fitted == "auto":
        other = {word: value for word, value in settings.items() if word != "steps"}
        if other:
            raise ArgumentError(f"a tuned solver has its own {' and '.join(other)}; leave that out", *other)
        steps = settings.get("steps", Tuned.steps)
        path = place_of(command, guide, fitted, steps, restoring)
        if not path.exists():
            raise ArgumentError(f"there is no tuned solver {path}; make it with mode tune, steps {steps} and the same "
                                "guidance", "sampler", "steps")
        sampler = Tuned.of(Solver.read(path))
        if vars(sampler)["steps"] != steps:
            raise ArgumentError(f"{path} is of {vars(sampler)['steps']} steps; tune it again with mode tune", "steps")
    else:
        path = place_of(command, guide, fitted, 0, restoring)
        if not path.exists():
            raise ArgumentError(f"there are no statistics {path}; make them with mode tune, sampler dpm_solver_v3 and the "
                                "same guidance", "sampler")
        sampler = DPMSolverV3.of(Statistics.read(path), **settings)
    require_tuned(sampler, command, guide, command.newest, restoring)
    return sampler


def require_tuned(sampler: Sampler, command: Command, guide: Guide, checkpoint: Path, restoring: Restoring | None = None
                  ) -> None:
    """ArgumentError unless a tuned sampler was fitted to this checkpoint and this guidance."""
    made_from = vars(sampler)["made"].made_from
    of = (json.loads(made_from) if isinstance(made_from, str) else made_from).get("of") or {}
    here = belongs_to(command, guide, checkpoint, restoring)
    if other := [name for name in {**here, **of} if of.get(name) != here.get(name)]:
        raise ArgumentError(f"this solver was tuned for another model or guidance: its {' and '.join(other)} differ; tune "
                            "one with mode tune for what is to be drawn", "sampler")
