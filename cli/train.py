"""Mode train: train, or continue a run where it stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import CHECKPOINT
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "trains, or continues where the folder's run stopped"
FLAGS = (CHECKPOINT,)


def run(command: Command) -> None:
    """Train in the run's folder, or continue the run in it."""
    from scorefield.configs.loading import all_fields
    from scorefield.data import in_units_of
    from scorefield.evaluation.measures import Measures
    from scorefield.evaluation.preview import Preview
    from scorefield.numerics.processes import launched
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
    stored = command.stored or {}
    kept: dict[str, Any] = {key: stored[key] for key in ("origin", "num_scales", "reduce_mean") if key in stored}
    try:
        train_run(config, dataset, folder, command.device, command.name, kept, Preview(config.training.sample_steps),
                  measures=Measures())
    except Interrupted as stopped:
        print(f"\ninterrupted: {folder} holds step {stopped.step} of {steps}; the same command continues", file=sys.stderr)
        sys.exit(130)
