"""Mode train: train, or go on where the run of a folder stopped."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from scorefield.cli.flags import CHECKPOINT
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "trains, or goes on where the folder's run stopped"
FLAGS = (CHECKPOINT,)


def run(command: Command) -> None:
    """Train in the run's folder, or go on there."""
    from scorefield.configs.loading import all_fields
    from scorefield.data import codec_of
    from scorefield.evaluation.preview import Preview
    from scorefield.numerics.files import write_json
    from scorefield.numerics.processes import launched
    from scorefield.training.trainer import Interrupted, Trainer

    config, folder = command.config, command.run
    dataset = command.dataset()
    resolved = config.to_dict() | {"config": command.name, "shape": list(dataset.shape), "levels": dataset.levels}
    experiment = {f: v for f, v in all_fields(resolved).items() if not f.startswith("training.")}
    world = launched()
    if world.first:      # it alone, since under torchrun the others may already see what it writes
        command.refuse_other_experiment(experiment)
    if config.training.batch_size % world.size:
        raise ArgumentError(f"training.batch_size={config.training.batch_size} must be divisible by {world.size}, the "
                            "number of processes")
    if command.checkpoint is not None and command.checkpoint.step >= config.training.steps:
        raise ArgumentError(f"{command.source} is at step {command.checkpoint.step} already; to train on, raise "
                            f"training.steps, which is {config.training.steps}", "training.steps")
    command.write_imported()
    codec, shown = codec_of(config.data, dataset.levels), Preview(config.training.sample_steps)
    # Setting up reads the newest checkpoint and finds what is wrong before anything is written.
    trainer = Trainer(config, dataset, folder, command.device, lambda model: shown(model, dataset, codec))
    if trainer.step >= config.training.steps:
        message = f"{trainer.checkpoint} is at step {trainer.step} already; to train on, raise training.steps"
        if trainer.step > config.training.steps:
            raise ArgumentError(f"{message}, which is {config.training.steps}", "training.steps")
        print(f"{message} (--config.training.steps)")
        return
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        stored = command.stored or {}
        kept = {key: stored[key] for key in ("origin", "num_scales", "reduce_mean") if key in stored}      # of an import
        write_json(folder / "config.json", resolved | kept)
        parameters = sum(p.numel() for p in trainer.parameters)
        print(f"{dataset.name}: {len(dataset.train)} examples of shape {dataset.shape}, {len(dataset.test)} held out; "
              f"{trainer.denoiser.sde}; {parameters:,} parameters; {command.device}"
              + (f"; goes on from {trainer.checkpoint}" if trainer.checkpoint else ""), flush=True)
    start = time.perf_counter()
    try:
        checkpoint = trainer.train()
    except Interrupted as stopped:
        print(f"\ninterrupted: {folder} holds step {stopped.step} of {config.training.steps}; the same command goes on",
              file=sys.stderr)
        sys.exit(130)
    if world.first:
        print(f"wrote {checkpoint}, {folder / 'stats.jsonl'} and {folder / 'tensorboard'} in "
              f"{time.perf_counter() - start:.0f} s")
