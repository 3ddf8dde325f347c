"""Mode evaluate: figures of samples against the run's data, over its checkpoints if asked."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.direction import DRAWN, way_of
from scorefield.cli.drawing import FLAGS as DRAWING
from scorefield.cli.drawing import Drawing, drawing_of
from scorefield.cli.drawing import options as options
from scorefield.cli.examples import examples_at
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, EMA, SEED, STRICT, Flag, words
from scorefield.cli.guide import NAMES
from scorefield.cli.likelihood import NO_DENSITY
from scorefield.cli.reference import BOOTSTRAP, reference_of
from scorefield.cli.reference import FLAGS as REFERENCE
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.stopping import keeping

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.evaluation.likelihood import Evaluation
    from scorefield.evaluation.metrics import Metric, Reference
    from scorefield.numerics.processes import World

DEFAULT = 10_000      # samples
SUMMARY = "writes evaluation/NAME.json: FID and other metrics of samples, over the run's checkpoints if asked"
FLAGS = (
    CHECKPOINT,
    Flag("checkpoints", str, "newest", "which checkpoints of the run: newest, all, or steps such as 10000,20000"),
    Flag("num_samples", int, DEFAULT, "how many samples; those that are there are not drawn again"),
    Flag("images", str, None, "evaluate these instead of drawing: a folder of pictures, or a file with an array"),
    Flag("metrics", str, None, "which metrics, such as fid,kid; by default those that fit the data"),
    *REFERENCE,
    DRAWN,
    Flag("likelihood", bool, False, "also bits/dim of the held-out examples, by the exponential method"),
    *DRAWING,
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
NOT_OF_IMAGES = {flag.name for flag in DRAWING} | {"checkpoints", "likelihood", "seed", "ema", "average"}


def run(command: Command) -> None:
    """Evaluate samples of the run, or a user's: evaluation/NAME.json, a line for each figure, and TensorBoard.

    Drawn samples stay in samples/, so further metrics and more samples go on from them. A killed command goes on where it
    stopped, and the processes of torchrun share the drawing and the likelihood.
    """
    from scorefield.evaluation.evaluate import label_of
    from scorefield.numerics.processes import launched, meet

    values, world = command.asked.values, launched()
    if values["images"] is not None:
        if world.first:
            _of_images(command)
        return
    steps, drawing = _steps(command), drawing_of(command)
    if values["likelihood"] and drawing.guide.settings:
        raise ArgumentError(NO_DENSITY.replace("leave it out", "leave out likelihood"), "likelihood",
                            *(NAMES.get(name, name) for name in drawing.guide.settings if name not in ("low", "high")))
    if values["likelihood"] and way_of(command):
        raise ArgumentError("bits/dim of a bridge come from mode likelihood, which has its direction; leave out likelihood",
                            "likelihood")
    judge = judge_of(command, values["num_samples"], drawing.guide.labels, drawing.model.takes.classes)
    if values["likelihood"]:
        label_of(drawing.model, judge.reference.dataset, drawing.guide.labels is not None)      # refuses what has none
    command.write_imported()
    table = Table(command, drawing.stem.name, drawing.described, judge)
    jobs = [Job(replace(drawing, step=step), judge, table, values) for step in steps]
    open_jobs = [job for job in jobs if not job.done]
    meet(world, [folder for job in open_jobs for folder in job.folders], command.device,
         " ".join(job.identity for job in open_jobs))
    for job in open_jobs:
        job.run(world)
    if world.first:
        for job in jobs:
            table.show(job.step)
        print(f"wrote {table.path}")


@dataclass(frozen=True, eq=False)
class Judge:
    """What samples are compared with, and by which metrics."""

    reference: Reference
    names: Sequence[str]
    seed: int
    bootstrap: int
    classes: Sequence[str] | None = None

    @property
    def features(self) -> str | None:
        """The name of the feature network."""
        network = self.reference.features
        return None if network is None else network.name

    def metrics(self, names: Sequence[str]) -> dict[str, Metric]:
        from scorefield.evaluation.metrics import make_metrics

        return make_metrics(names, self.reference, self.seed, self.bootstrap)

    @property
    def data(self) -> dict[str, Any]:
        """What the samples are compared with, for the record."""
        reference = self.reference
        return {"name": reference.dataset.name, "train": reference.size, "test": reference.held_out,
                "digest": reference.digest[:16]}

    @property
    def identity(self) -> list[Any]:
        """All that a figure depends on, beside the samples."""
        return [self.reference.digest, self.reference.size, self.seed, self.bootstrap, self.classes]


def judge_of(command: Command, n: int, labels: Sequence[int] | None = None, classes: int | None = None) -> Judge:
    """The metrics that a command line asks for; ArgumentError unless they suit the data and n samples.

    labels  of the samples, among so many classes of the model: their examples are compared
    """
    from scorefield.evaluation.classes import classes_of
    from scorefield.evaluation.evaluate import require_enough
    from scorefield.evaluation.metrics import default_metrics

    values, reference = command.asked.values, reference_of(command, labels, classes)
    names = (default_metrics(reference.dataset, reference.features) if values["metrics"] is None
             else words("metrics", values["metrics"]))
    judge = Judge(reference, names, values["seed"], values["bootstrap"], classes_of(reference.dataset, labels))
    require_enough(judge.metrics(names), n)
    return judge


def _steps(command: Command) -> list[int | None]:
    """The steps of the checkpoints to evaluate, in order; None is the newest. ArgumentError for one that is not there."""
    from scorefield.checkpoints.formats.run import checkpoints_of
    from scorefield.numerics.text import parse

    there = [step for step, _ in checkpoints_of(command.run)]
    text = command.asked.values["checkpoints"]
    if text == "newest" or (text == "all" and not there):      # of a --checkpoint that is no run yet, the only one
        return [None]
    try:
        asked = there if text == "all" else sorted({parse(word.strip(), int) for word in text.split(",")})
    except ValueError:
        raise ArgumentError(f"checkpoints must be newest, all, or steps such as 10000,20000; got {text!r}",
                            "checkpoints") from None
    if missing := [step for step in asked if step not in there]:
        keep = command.config.training.get("keep")
        raise ArgumentError(f"{command.run} has no checkpoint of step {missing[0]}; it has those of "
                            f"{', '.join(map(str, there))}; training keeps the newest {keep} "
                            "(--config.training.keep)", "checkpoints")
    return [None if step == step_of(command.newest) else step for step in asked]


def step_of(checkpoint: Path) -> int:
    """The step of a run's checkpoint by its name."""
    return int(checkpoint.stem.removeprefix("step_"))


class Table:
    """The results in evaluation/NAME.json, one for each step of a checkpoint (or one for a user's images)."""

    def __init__(self, command: Command, stem: str, described: Mapping[str, Any], judge: Judge):
        from scorefield.evaluation.names import suffix_of, whole, with_suffix
        from scorefield.numerics.files import json_digest, read_json

        values = command.asked.values
        changed = {name: value for name, default in (("num_samples", DEFAULT), ("reference_samples", None),
                                                     ("bootstrap", BOOTSTRAP)) if (value := values[name]) != default}
        changed |= {name: _place_name(text) for name in ("features", "inception_weights")
                    if (text := values[name]) is not None}
        self.run, self.stem = command.run, whole(stem + suffix_of(changed))
        self.path = with_suffix(command.run / "evaluation" / self.stem, ".json")
        self.described: dict[str, Any] = {**described, "features": judge.features, "bootstrap": judge.bootstrap,
                                          "classes": judge.classes, "data": judge.data}
        self.described["identity"] = json_digest(self.described)[:16]
        self.rows: dict[str, Any] = {}
        self.replaced = False
        try:
            there = read_json(self.path)
            rows = dict(there["results"])
            self.replaced = there.get("identity") != self.described["identity"]
            self.rows = {} if self.replaced else rows      # those of other settings or data do not belong under these
        except (OSError, ValueError, KeyError, TypeError):      # there are none yet, or they are damaged
            pass

    def row(self, key: str, identity: str) -> dict[str, Any]:
        """What is known of a step from the same samples, data and settings."""
        row = self.rows.get(key)
        return row if isinstance(row, dict) and row.get("identity") == identity else {}

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep the result of a step, and write them all."""
        from scorefield.numerics.files import write_json

        if self.replaced:
            print(f"{self.path} held figures of other settings or against other data; these have replaced them")
            self.replaced = False
        self.rows[key] = dict(row)
        self.path.parent.mkdir(exist_ok=True)
        order = sorted(self.rows, key=lambda step: (not step.isdecimal(), step.zfill(12)))
        write_json(self.path, {**self.described, "results": {step: self.rows[step] for step in order}})

    def show(self, key: str) -> None:
        """Print the figures of a step."""
        from scorefield.evaluation.evaluate import lines_of

        row = self.rows[key]
        drawn = row["nfe"] is not None and math.isfinite(row["nfe"])
        cost = f", {row['nfe']:g} evaluations each, {row['seconds']:.1f} s" if drawn else ""
        print(f"{f'step {key}: ' if key.isdecimal() else ''}{row['num_samples']} samples{cost}")
        print("\n".join(f"  {line}" for line in lines_of(row)))

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Add the figures to the run's TensorBoard, at the checkpoint's step."""
        from scorefield.training.trackers import event_writer

        values = {name: figure["value"] for name, figure in row["metrics"].items()}
        values |= {"bits_per_dim": row["likelihood"]["bits_per_dim"]} if "likelihood" in row else {}
        try:
            with event_writer(self.run) as writer:
                for name, value in values.items():
                    writer.add_scalar(f"evaluation/{name}/{self.stem}", value, step)
        except OSError as error:      # the figures are in the file already
            print(f"TensorBoard has not got the figures of step {step}: {error}")


class Job:
    """The evaluation of one checkpoint: what is known, and what is still to be done."""

    def __init__(self, drawing: Drawing, judge: Judge, table: Table, values: Mapping[str, Any]):
        from scorefield.numerics.files import json_digest

        self.drawing, self.judge, self.table, self.n = drawing, judge, table, values["num_samples"]
        self.step = str(step_of(drawing.checkpoint))
        self.identity = json_digest([drawing.key, self.n, judge.identity])[:16]
        self.row = table.row(self.step, self.identity)
        self.missing = [name for name in judge.names if name not in self.row.get("metrics", {})]
        self.bits = values["likelihood"] and "likelihood" not in self.row
        self.begun = drawing.begun(self.n, drawing.existing()) if self.missing else None

    @property
    def done(self) -> bool:
        return not self.missing and not self.bits

    @property
    def folders(self) -> list[Path]:
        """Those that the processes of torchrun share."""
        return [self.drawing.folder] * bool(self.missing) + [self._partial] * self.bits

    @property
    def _partial(self) -> Path:
        return self.drawing.command.run / "likelihood" / "partial" / f"{self.drawing.key}{self.drawing.checkpoint.stem[-8:]}"

    def run(self, world: World) -> None:
        """Draw this process's share of the samples and score its share of the examples; the first finishes the rest."""
        from scorefield.evaluation.evaluate import Quality, measure
        from scorefield.evaluation.generate import kept

        drawing = self.drawing.with_weights()
        samples = None if self.begun is None else drawing.draw(self.begun, world)
        scoring = self._scoring(drawing, world) if self.bits else None
        with keeping(lambda: "" if samples is None else kept(samples)):
            if scoring is not None:
                with keeping(scoring.kept):
                    scoring.run()
            if not world.first:
                return
            bits = None if scoring is None else scoring.result()
            if samples is None:
                found = Quality({}, bits, self.n).summary()
            else:
                drawing.write(samples)
                figures = measure(samples, self.judge.metrics(self.missing), drawing.codec)
                found = Quality(figures, bits, self.n, samples.nfe, samples.seconds).summary()
        row = {"checkpoint": str(drawing.checkpoint), "identity": self.identity, **found, **{
            name: value for name, value in self.row.items() if name not in ("checkpoint", "metrics")}}
        row["metrics"] = {**self.row.get("metrics", {}), **found["metrics"]}
        self.table.put(self.step, row)
        self.table.log(int(self.step), row)
        drawing.clear()
        if scoring is not None:
            scoring.clear()

    def _scoring(self, drawing: Drawing, world: World) -> Evaluation:
        from scorefield.evaluation.evaluate import LIKELIHOOD, label_of
        from scorefield.evaluation.likelihood import Evaluation

        values, reference = drawing.command.asked.values, self.judge.reference
        model = drawing.model if drawing.precision == "fp32" else drawing.weights()
        return Evaluation(model, reference.dataset, reference.codec, seed=values["seed"], batch_size=values["batch_size"],
                          device=drawing.command.device, folder=self._partial, world=world,
                          label=label_of(model, reference.dataset, drawing.guide.labels is not None), **LIKELIHOOD)


def _place_name(text: str) -> str:
    """A word, or a name for the file at a path."""
    from scorefield.evaluation.names import name_of_place

    return name_of_place(text) if Path(os.path.expanduser(text)).exists() else text


def _of_images(command: Command) -> None:
    """Evaluate a user's examples: evaluation/images_NAME.json."""
    import torch

    from scorefield.evaluation.evaluate import Quality, measure
    from scorefield.evaluation.names import name_of_place

    values = command.asked.values
    if mixed := sorted(NOT_OF_IMAGES & command.asked.given | set(command.asked.texts)):
        raise ArgumentError(f"images are evaluated instead of samples of the run; leave out {', '.join(mixed)}", "images",
                            *mixed)
    data, _ = examples_at(command, values["images"], "images")
    n = min(values["num_samples"], len(data.train)) if "num_samples" in command.asked.given else len(data.train)
    if n < values["num_samples"] and "num_samples" in command.asked.given:
        print(f"{values['images']} holds {n} examples, fewer than num_samples {values['num_samples']}: all are evaluated")
    with renamed(names={"num_samples": "images"} if n == len(data.train) else {}):
        judge = judge_of(command, n)
    command.write_imported()
    table = Table(command, f"images_{name_of_place(values['images'])}", {"images": values["images"]}, judge)
    units = [torch.arange(begin, min(begin + values["batch_size"], n)) for begin in range(0, n, values["batch_size"])]
    hasher = hashlib.sha256(json.dumps(judge.identity).encode())
    for unit in units:
        hasher.update((x := data.train[unit][0]).contiguous().numpy().tobytes() + f"{x.dtype} {tuple(x.shape[1:])}".encode())
    identity = hasher.hexdigest()[:16]
    row = table.row("images", identity)
    known = row.get("metrics", {})
    if missing := [name for name in judge.names if name not in known]:
        batches = (data.train[unit][0] for unit in units)
        found = Quality(measure(batches, judge.metrics(missing), judge.reference.codec), samples=n).summary()
        table.put("images", {"identity": identity, **found, "metrics": {**known, **found["metrics"]}})
    table.show("images")
    print(f"wrote {table.path}")
