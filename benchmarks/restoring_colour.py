"""Natural colour: held-out patches of two photographs, restored by a small run: a box of 8x8 of 32x32 pixels is missing, the
colours are, or the patches are enlarged four times.

    python main.py --config configs/vp_patches32_small.py --mode train
    python -m benchmarks.restoring_colour

Both together take about 15 minutes of one core. Beside the ways to restore stands the restoration without a model: the mean
patch made to fit, or bicubic enlargement. Rows are written to benchmarks/results/restoring_colour.json as they come, and a
run that was cut goes on where it stopped. docs/images/restoring_colour_OPERATOR.png has truth, what is left, and mean and
answers of one way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.restoring_pictures import HEAD, Task, Way, done, head, line
from benchmarks.rows import Rows
from scorefield.data.measured import unit_of
from scorefield.evaluation.plots import image_grid, save_png

IMAGES = Path(__file__).parents[1] / "docs" / "images"
OPERATORS = ("mask:box=0.25", "grey", "downsample:factor=4")
WAYS = (
    Way("ddim, ddnm", "ddim", {"steps": 50, "eta": 1.0}, "ddnm"),
    Way("ddim, pigdm", "ddim", {"steps": 50, "eta": 1.0}, "pigdm:data_std=0.5"),
    Way("twisted_smc, pigdm", "twisted_smc", {"steps": 49, "particles": 8, "variance": "beta_tilde"}, "pigdm:data_std=0.5"),
)
NAMES = (*HEAD, "evaluations", "seconds")
SHOWN, PICTURED = 4, "ddim, pigdm"      # patches of each task in the picture, and whose answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/vp_patches32_small")
    parser.add_argument("--patches", type=int, default=12)
    parser.add_argument("--samples", type=int, default=4, help="answers for each")
    parser.add_argument("--operators", nargs="*", default=list(OPERATORS))
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--ways", nargs="*", default=[way.name for way in WAYS], choices=[way.name for way in WAYS])
    options = parser.parse_args()
    tasks = [Task(options.run, operator, options.noise, options.patches) for operator in options.operators]
    rows = Rows("restoring_colour", {"weights": tasks[0].weights, **{name: getattr(options, name) for name in (
        "patches", "samples", "noise")}})
    for task in tasks:
        print(f"\n{task.text}, noise {options.noise:g}\n\n{head('way', NAMES)}")
        name, x = task.filled()
        print(line(name, rows(f"{task.text}, {name}", lambda task=task, x=x: task.figures(x[:, None], x)), NAMES))
        for way in (way for way in WAYS if way.name in options.ways):
            def made(task: Task = task, way: Way = way) -> dict[str, Any]:
                found = task.restored(way, options.samples, 64)
                shown = [task.truth, task.problem.simple(), found["mean"], *found["x"].unbind(1)]
                if way.name == PICTURED:
                    save_png(IMAGES / f"restoring_colour_{task.text.split(':')[0]}.png", sheet(task, shown))
                row = task.figures(found["x"], found["mean"]) | {name: found[name] for name in ("evaluations", "seconds")}
                done(found)
                return row

            print(line(way.name, rows(f"{task.text}, {way.name}", made), NAMES), flush=True)


def sheet(task: Task, columns: list[Any]) -> Any:
    """A row for each of the first patches: truth, restored without a model, mean, answers."""
    def levels(x: Tensor) -> Tensor:
        return (255 * unit_of(x, task.codec).clamp(0, 1)).round().to(torch.uint8)

    tiles = torch.stack([levels(x[:SHOWN]) for x in columns], 1).flatten(0, 1)
    return image_grid(tiles, 256, torch.arange(SHOWN).repeat_interleave(len(columns)))


if __name__ == "__main__":
    main()
