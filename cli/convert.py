"""Mode convert: a run or a checkpoint in another format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import AVERAGE, CHECKPOINT, EMA, STRICT, Flag, as_flags
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import choose

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "writes a run or --checkpoint to --output in another format"
FLAGS = (
    CHECKPOINT,
    Flag("output", str, None, "a new .safetensors, .pth, .pt2, .onnx or folder"),
    Flag("format", str, None, "format of --output, such as diffusers, run, pt2 (torch.export) or onnx; taken from its "
                              "suffix unless given"),
    EMA,
    AVERAGE, STRICT,
)


def run(command: Command) -> None:
    """Write a run or --checkpoint to --output: a .safetensors, a .pth, a folder of diffusers or of a run, a program."""
    from scorefield.checkpoints.formats.exported import EXPORTS
    from scorefield.checkpoints.load import FORMATS, SUFFIXES
    from scorefield.cli.origin import describe

    values = command.asked.values
    if not values["output"]:
        raise ArgumentError("mode convert needs an output: a .safetensors, a .pth, or a folder with the format diffusers or "
                            "run", "output", "format")
    formats: dict[str, Any] = {name: form for name, form in {**FORMATS, **EXPORTS}.items() if hasattr(form, "write")}
    suffixes = SUFFIXES | {export.SUFFIX: name for name, export in EXPORTS.items()}
    output = Path(os.path.expanduser(values["output"]))
    kind = values["format"] or suffixes.get(output.suffix)
    if kind is None:
        raise ArgumentError(f"the output {values['output']!r} has no suffix of a format; give the format, one of "
                            f"{', '.join(formats)}", "format")
    choose("format", formats, kind, "format")
    if suffixes.get(output.suffix, kind) != kind or (kind in suffixes.values() and output.suffix not in suffixes):
        ends = {kind: f"a name that ends in {suffix}" for suffix, kind in suffixes.items()}
        raise ArgumentError(f"the format {kind} writes {ends.get(kind, 'a folder')}, got {values['output']!r}",
                            "format", "output")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ArgumentError(f"{output} exists already; choose another output", "output")
    checkpoint = command.take()
    lost = as_flags(formats[kind].write(checkpoint, output, values["ema"]))
    ema = values["ema"]
    one = ema if isinstance(ema, str) else "averaged" if ema or checkpoint.raw is None else "raw"
    sets = f"raw and {one}" if kind in ("run", "score_sde") and ema and checkpoint.raw is not None else one
    print(f"wrote {output} ({kind}, {sets} weights) from {describe(checkpoint)}{lost and '; '}{lost}")
