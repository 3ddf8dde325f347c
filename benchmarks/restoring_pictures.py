"""What the tables of restored pictures share: held-out examples of a run, measured, restored in several ways, and figures.

Work is kept in benchmarks/results/parts while it lasts, so a run that was cut goes on where it stopped. In a log it says
every half minute how far it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import RESULTS
from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.checkpoints.formats.run import newest_checkpoint
from scorefield.data import codec_of, load_dataset
from scorefield.data.measured import placed, unit_of
from scorefield.evaluation.comparison.restorations import energy_score
from scorefield.evaluation.fidelity import psnr, ssim
from scorefield.evaluation.restoration import Restoration
from scorefield.evaluation.restore import Measured, restored, with_noise
from scorefield.guidance import threshold
from scorefield.guidance.operators import make_operator
from scorefield.models.networks.low_res import resized
from scorefield.numerics.files import sha256_of
from scorefield.samplers import make_sampler

HEAD = ("PSNR of answers", "PSNR of the mean", "SSIM of the mean", "energy score", "residual")


@dataclass(frozen=True)
class Way:
    """One way to restore: a sampler with its options, and a method."""

    name: str
    sampler: str
    options: dict[str, Any]
    method: str


class Task:
    """Held-out pictures of a run, evenly spaced, seen through an operator with noise."""

    def __init__(self, run: str, operator: str, noise: float, pictures: int):
        config = read_checkpoint(run).config
        self.codec, self.data = codec_of(config["data"], config), load_dataset(config["data"])
        codec: Any = self.codec
        self.model = threshold(load_denoiser(run), "static", low=codec.low, high=codec.high)
        newest = newest_checkpoint(Path(run))
        assert newest is not None      # or it could not have been loaded
        self.weights, self.text, self.noise = sha256_of(newest), operator, noise
        self.numbers = torch.arange(pictures) * len(self.data.test) // pictures
        data, self.condition = self.data.test[self.numbers]
        self.truth = placed(data, codec)
        self.operator = make_operator(operator, self.data.shape)
        self.problem = Measured(self.operator, with_noise(self.operator(self.truth), noise), noise)

    def filled(self) -> tuple[str, Tensor]:
        """The usual restoration without a model: bicubic enlargement, or the mean of the training pictures made to fit."""
        if self.text.startswith("downsample"):
            return "bicubic", resized(self.problem.y, self.data.shape[1:])
        some = torch.arange(min(len(self.data.train), 5000)) * len(self.data.train) // min(len(self.data.train), 5000)
        mean = placed(self.data.train[some][0], self.codec).mean(0, keepdim=True)
        return "the mean picture, made to fit", self.operator.consistent(mean.expand_as(self.truth), self.problem.y)  # type: ignore

    def figures(self, x: Tensor, mean: Tensor) -> dict[str, float]:
        """Of answers x (pictures, samples, *event) and their mean, as the model sees data."""
        n = x.shape[1]
        clean = unit_of(self.truth, self.codec)
        each = psnr(unit_of(x.flatten(0, 1), self.codec), clean.repeat_interleave(n, 0)).clamp(max=100)
        of_mean = unit_of(mean, self.codec)
        left = self.operator(x.flatten(0, 1)) - self.problem.y.repeat_interleave(n, 0)
        score = energy_score(x, self.truth) if n > 1 else energy_score(x.repeat(1, 2, *[1] * (x.ndim - 2)), self.truth)
        return {"PSNR of answers": float(each.mean()),
                "PSNR of the mean": float(psnr(of_mean, clean).clamp(max=100).mean()),
                "SSIM of the mean": float(ssim(of_mean, clean).mean()), "energy score": float(score.mean()),
                "residual": float(left.double().square().mean().sqrt())}

    def restored(self, way: Way, samples: int, batch_size: int) -> dict[str, Any]:
        """The answers of a way: x, mean, evaluations of each measurement and seconds of all."""
        sampler = make_sampler(way.sampler, **way.options)
        work = Restoration(self.model, self.problem, sampler, way.method, samples, batch_size=batch_size)
        key = work.identity_of(self.weights)
        folder = RESULTS / "parts" / key
        parts = work.begun(folder, key)
        work.run(parts, progress=True)
        found = restored(work, parts)
        return {"x": found.x, "mean": found.mean, "evaluations": found.evaluations, "seconds": found.seconds,
                "folder": folder}


def line(name: str, figures: dict[str, Any], names: tuple[str, ...]) -> str:
    """A row of the table."""
    return f"| {name} | " + " | ".join(f"{figures[key]:.4g}" if key in figures else "" for key in names) + " |"


def head(first: str, names: tuple[str, ...]) -> str:
    return f"| {first} | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|"


def done(found: dict[str, Any]) -> None:
    """Its parts are not needed any more, since the row is written."""
    shutil.rmtree(found["folder"], ignore_errors=True)
