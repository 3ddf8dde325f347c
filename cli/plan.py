"""Mode plan: what training takes of a GPU's memory, and whether it fits; without a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scorefield.cli.flags import Flag
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.training.plan import Plan

SUMMARY = "prints parameters, memory a GPU and whether training fits, without a GPU"
FLAGS = (
    Flag("gpus", int, 1, "how many GPUs share the batch"),
    Flag("gpu_memory", float, 80.0, "memory of each, in GiB"),
    Flag("shape", str, None, "of an example, such as 3,32,32; without it the data are read"),
    Flag("json", bool, False, "print JSON, in bytes, instead of a table"),
)


def run(command: Command) -> None:
    """Print the plan of a config, or of the run in a folder."""
    from scorefield.training.plan import plan

    values = command.asked.values
    found = plan(command.config, _event(command, _shape(command)), values["gpus"], values["gpu_memory"])
    print(json.dumps(found.as_json(), indent=2) if values["json"] else table(found), flush=True)


def _shape(command: Command) -> Sequence[int]:
    text = command.asked.values["shape"]
    if text is None:
        if command.asked.values["config"] is None and command.stored is not None:
            return tuple(command.stored["shape"])
        try:
            return command.dataset().shape
        except FileNotFoundError as error:
            raise ArgumentError(f"{error}; or give the shape of an example", "shape") from None
    sides = [int(side) for side in text.split(",") if side.strip().isdecimal()]
    if not sides or len(sides) != text.count(",") + 1 or min(sides) < 1 or max(sides) > 2**20:
        raise ArgumentError(f"shape must be whole numbers from 1 with commas between them, such as 3,32,32, got {text!r}",
                            "shape")
    return sides


def _event(command: Command, shape: Sequence[int]) -> Sequence[int]:
    """The shape of one example as the network sees it: of latents, that of the autoencoder."""
    from scorefield.checkpoints.latents import autoencoder_at

    source = command.config.data.get("autoencoder")
    return autoencoder_at(source, shape=shape).network.latent if source else shape


def table(plan: Plan) -> str:
    """A line for each way of training, in GiB a GPU."""
    from scorefield.training.plan import GIB

    names = ("weights", "gradients", "optimizer", "averages", "gathered", "activations", "reserved", "total")
    head = ["sharding", "recomputed", *names, "fits", "largest batch a GPU"]
    rows = [[layout.sharding, "yes" if layout.checkpointing else "no",
             *(f"{getattr(layout, name) / GIB:.3f}" for name in names), "yes" if layout.fits else "no",
             str(layout.largest_batch)] for layout in plan.layouts]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([
        f"{plan.parameters:,} parameters; {plan.gpus} GPU{'s' * (plan.gpus > 1)} of {plan.gpu_memory / GIB:g} GiB, "
        f"{plan.batch} examples each; products in {plan.precision}; GiB a GPU:", *lines,
        "recomputed: training.activation_checkpointing; reserved: a guess for CUDA, libraries and what lies between"])
