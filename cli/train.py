"""Mode train: train, or continue a run where it stopped."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import CHECKPOINT, STRICT, Flag
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.stopping import exit_code, name_of

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "trains, or continues where the folder's run stopped"
FLAGS = (
    CHECKPOINT, STRICT,
    Flag("from_step", int, None, "go back: go on from the run's checkpoint of this step, and remove the later ones"),
    Flag("restart", bool, False, "train a run anew that has lost its checkpoints; else that is refused"),
    Flag("other_data", bool, False, "go on with data that have changed since the run was left; else that is refused"),
)


def run(command: Command) -> None:
    """Train in the run's folder, or continue the run in it."""
    from scorefield.numerics.processes import launched
    from scorefield.training.folder import opened

    with contextlib.ExitStack() as held:
        if launched().first and command.checkpoint is None:      # a new import makes the folder itself
            held.enter_context(opened(command.run))
            command.refuse_if_changed()
        _train(command, held)


def _train(command: Command, held: contextlib.ExitStack) -> None:
    from scorefield.configs.loading import all_fields
    from scorefield.data import in_units_of
    from scorefield.evaluation.measures import Measures
    from scorefield.evaluation.preview import Preview
    from scorefield.numerics.processes import launched
    from scorefield.training.folder import opened
    from scorefield.training.keeping import go_back
    from scorefield.training.labels import require_fit
    from scorefield.training.run import described, train_run
    from scorefield.training.trainer import Interrupted

    config, folder, steps = command.config, command.run, command.config.training.steps
    assert command.name is not None
    dataset = command.told(in_units_of(command.dataset(), command.stored))
    if launched().first:      # only the first process: under torchrun the others may already see what it writes
        fields = all_fields(described(config, dataset, command.name))
        command.refuse_other_experiment({f: v for f, v in fields.items() if not f.startswith(("training.", "standard"))})
    if command.checkpoint is not None and command.checkpoint.step >= steps:
        raise ArgumentError(f"{command.source} is at step {command.checkpoint.step} already; to train it further, raise "
                            f"training.steps, which is {steps}")
    if command.checkpoint is not None:      # a run's folder is written for it first
        require_fit(config, dataset)
        command.write_imported()
        held.enter_context(opened(folder))
    if command.asked.values["from_step"] is not None and launched().first:
        for path in go_back(folder, command.asked.values["from_step"]):
            print(f"removed {path}", flush=True)
    stored = command.stored or {}
    kept: dict[str, Any] = {key: stored[key] for key in ("origin", "num_scales", "reduce_mean") if key in stored}
    try:
        train_run(config, dataset, folder, command.device, command.name, kept, Preview(config.training.sample_steps),
                  measures=Measures(),
                  **{name: command.asked.values[name] for name in ("restart", "strict", "other_data")})
    except Interrupted as stopped:
        if launched().first:
            print(f"\ninterrupted by {name_of(stopped.number)}: {folder} holds step {stopped.step} of {steps}; the same "
                  "command continues", file=sys.stderr)
        sys.exit(exit_code(stopped.number))
