"""Held-out digits restored by a trained run: recognised by the judge, PSNR, and how well they fit the measurement.

    python -m benchmarks.restoring_digits --run runs/vp_digits_labels --digits 100

Their right half is missing, or they are enlarged from 4x4 pixels. Beside the ways to restore stand the whole digits, and the
restoration without a model: the mean of the training digits in the missing half, or bicubic enlargement. A digit counts as
recognised where the judge (judge.py) takes an answer for its class. twisted_smc, mode restore's default, moves as many
particles as an exact answer needs, which takes hours of one core for 100 digits; rows are written to
benchmarks/results/restoring_digits.json as they come, and a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.judge import as_pictures, train_judge
from benchmarks.restoring_pictures import HEAD, Task, Way, done, head, line
from benchmarks.rows import Rows

OPERATORS = ("mask:half=right", "downsample:factor=2")
WAYS = (
    Way("ddim, pigdm", "ddim", {"steps": 50, "eta": 1.0}, "pigdm:data_std=0.5"),
    Way("ddim, tmpd", "ddim", {"steps": 50, "eta": 1.0}, "tmpd"),
    Way("twisted_smc, pigdm", "twisted_smc", {"steps": 100, "particles": 64}, "pigdm:data_std=0.5"),
    Way("twisted_smc, tmpd", "twisted_smc", {"steps": 100, "particles": 64}, "tmpd"),
)
NAMES = ("recognised", *HEAD, "evaluations", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/vp_digits_labels")
    parser.add_argument("--digits", type=int, default=100, help="how many of the held-out digits")
    parser.add_argument("--samples", type=int, default=8, help="answers for each")
    parser.add_argument("--operators", nargs="*", default=list(OPERATORS))
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--ways", nargs="*", default=[way.name for way in WAYS], choices=[way.name for way in WAYS])
    parser.add_argument("--batch_size", type=int, default=512)
    options = parser.parse_args()
    judge, accuracy = train_judge()
    tasks = [Task(options.run, operator, options.noise, options.digits) for operator in options.operators]
    rows = Rows("restoring_digits", {"weights": tasks[0].weights, **{name: getattr(options, name) for name in (
        "digits", "samples", "noise")}})

    def figures(task: Task, x: Tensor, mean: Tensor, **more: float) -> dict[str, Any]:
        label = task.condition["label"].repeat_interleave(x.shape[1])
        with torch.no_grad():
            guess = judge(as_pictures(task.codec.decode(x.flatten(0, 1)))).argmax(1)
        return {"recognised": float((guess == label).double().mean())} | task.figures(x, mean) | more

    print(f"The judge recognises {100 * accuracy:.1f} % of all held-out digits.")
    for task in tasks:
        print(f"\n{task.text}, noise {options.noise:g}\n\n{head('way', NAMES)}")
        for name, x in (("the whole digits", task.truth), task.filled()):
            print(line(name, rows(f"{task.text}, {name}", lambda task=task, x=x: figures(task, x[:, None], x)), NAMES))
        for way in (way for way in WAYS if way.name in options.ways):
            def made(task: Task = task, way: Way = way) -> dict[str, Any]:
                found = task.restored(way, options.samples, options.batch_size)
                row = figures(task, found["x"], found["mean"], evaluations=found["evaluations"], seconds=found["seconds"])
                done(found)
                return row

            print(line(way.name, rows(f"{task.text}, {way.name}", made), NAMES), flush=True)


if __name__ == "__main__":
    main()
