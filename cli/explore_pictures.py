"""What mode explore draws: for each picture, from the command line to the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scorefield.cli.drawing import options as sampler_flags
from scorefield.cli.drawing import parsed_options, precision_of, prepare
from scorefield.cli.examples import examples_at, own_data
from scorefield.cli.guide import Guide, guide_of
from scorefield.data import Codec, Dataset, codec_of
from scorefield.evaluation.explore import forward as forward_of
from scorefield.evaluation.explore import progressive as progressive_of
from scorefield.evaluation.explore import schedule as schedule_of
from scorefield.evaluation.explore.figures import schedule_figure
from scorefield.evaluation.explore.paths import Models, encoded
from scorefield.evaluation.explore.sheets import Looks, as_data, save_gif, sheet, time_names
from scorefield.evaluation.names import changed, name_of_place, suffix_of, suffix_of_drawing, whole, with_suffix
from scorefield.evaluation.plots import save_png
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_json
from scorefield.samplers import Sampler, make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import SDE

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.explore import Picture
    from scorefield.models import Denoiser

FRAMES = 11
POINTS, ROWS = 2000, 8      # samples of points; rows of pictures or series


@dataclass(frozen=True)
class Drawn:
    """A picture, the frames of its film, and what its record says beside the settings."""

    picture: Tensor
    facts: Mapping[str, Any]
    film: Sequence[Tensor] = ()
    line: str = ""


@dataclass(frozen=True, eq=False)
class Task:
    """One picture as a command line asks for it.

    sampler  the one that it uses, or None
    """

    command: Command
    name: str
    takes: frozenset[str]
    sampler: Sampler | None
    sampler_name: str | None
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, command: Command, name: str, picture: Picture, owner: str | None) -> Task:
        """ArgumentError for what does not fit together, before anything is computed."""
        sampler = None
        if owner is not None:
            flags = sampler_flags().get(owner, {})
            texts = {option: text for option, text in command.asked.texts.items() if option in flags or not flags}
            chosen = command.asked.values["sampler"] is not None
            sampler = make_sampler(owner, **({} if chosen else dict(picture.options)) | parsed_options(owner, texts))
        task = cls(command, name, frozenset(picture.flags), sampler, owner)
        if "ema" in task.takes:
            if sampler is not None:
                sampler.times(task.model)      # refuses a grid that does not fit
            _ = task.guide
        return task

    # ---- what the command line says --------------------------------------------------------------------------------

    def value(self, name: str, default: Any = None) -> Any:
        value = self.command.asked.values[name]
        return default if value is None else value

    @property
    def seed(self) -> int:
        return self.command.asked.values["seed"]

    @property
    def frames(self) -> int:
        return self.value("frames", FRAMES)

    @property
    def batch_size(self) -> int:
        return self.command.asked.values["batch_size"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example, as data."""
        assert self.command.stored is not None
        return tuple(self.command.stored["shape"])

    @cached_property
    def codec(self) -> Codec:
        assert self.command.stored is not None
        return codec_of(self.command.config.data, self.command.stored)

    @property
    def event(self) -> tuple[int, ...]:
        return self.codec.event(self.shape)

    @property
    def of_points(self) -> bool:
        return len(self.shape) == 1

    # ---- the model and the data ------------------------------------------------------------------------------------

    @property
    def model(self) -> Denoiser:
        """The run's model, which the pictures of one command share."""
        found = self.command.__dict__.get("_explored")
        if found is None:
            found = self.command.denoiser()
            prepare(found.network, self.command)
            self.command.__dict__["_explored"] = found
        return found

    @property
    def sde(self) -> SDE:
        from scorefield.models.build import build_sde

        return build_sde(self.command.stored)

    @cached_property
    def guide(self) -> Guide:
        return guide_of(self.command, self.model) if "label" in self.takes else Guide()

    @property
    def models(self) -> Models:
        """The score models of the samples, guided as the command line asks."""
        return self.guide.of(self.model, self.command.device) if self.guide.described else self.model

    @property
    def names(self) -> Sequence[str]:
        """Of the samples' classes."""
        return self.guide.names

    @cached_property
    def dataset(self) -> Dataset:
        images = self.command.asked.values["images"] if "images" in self.takes else None
        if images is None:
            return own_data(self.command, f"{self.name} needs examples: give images" if "images" in self.takes else "")
        return examples_at(self.command, images, "images")[0]

    def examples(self, numbers: Sequence[int]) -> Tensor:
        """The examples with these numbers in their split, as data."""
        name = "test" if self.value("images") else self.value("split", "test")
        split = getattr(self.dataset, name)
        if wrong := [i for i in numbers if not 0 <= i < len(split)]:
            raise ArgumentError(f"examples must lie in 0 .. {len(split) - 1} ({name} examples of {self.dataset.name!r}), got "
                                f"{wrong[0]}", "examples")
        return split[torch.tensor(list(numbers), dtype=torch.long)][0]

    def chosen_examples(self, n: int, exactly: bool = False) -> tuple[list[int], Tensor]:
        """The numbers of the examples (n unless they are given) and the examples as the model sees them."""
        given = self.value("examples")
        if given is not None and (not given or (exactly and len(given) != n)):
            raise ArgumentError(f"{self.name} takes {n if exactly else 'one or more'} examples, got {len(given)}", "examples")
        total = len(self.dataset.test if self.value("images") or self.value("split") == "test" else self.dataset.train)
        numbers = list(range(min(n, total))) if given is None else list(given)
        x = encoded(self.codec, self.examples(numbers), [(self.seed, i) for i in numbers], self.command.device)
        return numbers, x

    @cached_property
    def data(self) -> Tensor | None:
        """Training examples to be seen behind points, or whose range gives the axes; None if they cannot be read."""
        if self.command.config.data.dataset == "arrays":
            return None
        try:
            train = own_data(self.command).train
        except (OSError, ValueError):
            return None
        return train[torch.arange(min(len(train), 4000))][0]

    def looks(self, like: Tensor) -> Looks:
        """How examples are drawn: by the training data where they are there, else by examples of the picture."""
        data = None if self.codec.levels is not None else self.data
        return Looks.of(self.codec, self.shape, like if data is None else data)

    def prior(self, n: int) -> tuple[Tensor, list[Any]]:
        seeds = sample_seeds(self.seed, 0, n)
        return prior_sample(self.sde, self.event, seeds, self.command.device), seeds

    # ---- the files -------------------------------------------------------------------------------------------------

    @property
    def given(self) -> dict[str, Any]:
        """The mode's own flags that were given and that this picture takes."""
        values = self.command.asked.values
        own = ("num_samples", "frames", "times", "examples", "split", "images", "step_counts")
        return {name: values[name] for name in own if name in self.takes and name in self.command.asked.given}

    @property
    def stem(self) -> Path:
        """The path of the files without their suffixes, which says every setting that is no default."""
        own = {name: name_of_place(value) if name == "images" else value for name, value in self.given.items()
               if (name, value) != ("split", "test")}
        used = "" if self.sampler is None else (
            ("" if self.sampler_name == self.name else f"_{self.sampler_name}") + suffix_of(changed(self.sampler)))
        values = self.command.asked.values
        seed = self.seed if "seed" in self.takes else 0
        drawn = suffix_of_drawing(seed, values["ema"], precision_of(self.command), None, self.batch_size) if (
            "ema" in self.takes) else suffix_of({"seed": seed} if seed else {})
        return self.command.run / "explore" / whole(self.name + used + suffix_of(own) + self.guide.suffix + drawn)

    def write(self, drawn: Drawn) -> str:
        """Write the files; returns a line that says what was written."""
        self.stem.parent.mkdir(exist_ok=True)
        record: dict[str, Any] = {"what": self.name, **self.given}
        if self.sampler is not None:
            record |= {"sampler": self.sampler_name, "options": dict(vars(self.sampler))}
        if "ema" in self.takes:
            values = self.command.asked.values
            record |= {**self.guide.described, "ema": values["ema"], "precision": precision_of(self.command),
                       "batch_size": self.batch_size, "checkpoint": str(self.command.newest)}
        if "seed" in self.takes:
            record["seed"] = self.seed
        seconds = time.perf_counter() - self.started
        if drawn.film:
            save_gif(with_suffix(self.stem, ".gif"), drawn.film)
        save_png(with_suffix(self.stem, ".png"), drawn.picture)
        write_json(with_suffix(self.stem, ".json"), {**record, **drawn.facts, "seconds": round(seconds, 3)})
        kinds = ",".join(["png", *(["gif"] if drawn.film else []), "json"])
        return f"{self.name}: {drawn.line}{'; ' if drawn.line else ''}wrote {self.stem}.{{{kinds}}}"


def numbers(values: Tensor, digits: int = 6) -> list[Any]:
    """A tensor as nested lists of numbers with so many digits."""
    return torch.round(values.double().cpu(), decimals=12).tolist() if digits > 10 else [
        numbers(row, digits) if row.ndim else float(f"{float(row):.{digits}g}") for row in values.detach().cpu()]


# ---- the pictures --------------------------------------------------------------------------------------------------


def progressive(task: Task) -> Drawn:
    n = task.value("num_samples", POINTS if task.of_points else ROWS)
    x_T, seeds = task.prior(n)
    assert task.sampler is not None
    film = progressive_of(task.models, task.sampler, x_T, seeds, task.frames, task.batch_size, True)
    data = as_data(task.codec, film.predictions)
    noisy = torch.stack([as_data(task.codec, x, task.sde, float(t)) for x, t in zip(film.states, film.times, strict=True)])
    looks, names = task.looks(data[-1]), time_names(film.times.tolist(), task.of_points)
    title = f"x_0 predicted at t by {task.sampler_name}"
    if task.of_points:
        cells, rows = [list(noisy), list(data)], ["x_t", "predicted x_0"]
        picture = sheet(cells, looks, rows, names, behind=task.data)
        frames = [sheet([[a, b]], looks, (), ("x_t", "predicted x_0"), f"t = {t:.3f}", task.data)
                  for a, b, t in zip(noisy, data, film.times.tolist(), strict=True)]
    else:
        picture = sheet([list(data[:, i]) for i in range(n)], looks, _labels(task, n), names, title)
        frames = [sheet([list(a), list(b)], looks, ["x_t", "x_0"], (), f"t = {t:.3f}")
                  for a, b, t in zip(noisy, data, film.times.tolist(), strict=True)]
    error = (film.predictions - film.x).double().square().flatten(1).mean(1).sqrt()
    facts = {"times": numbers(film.times), "rmse_to_the_sample": numbers(error), "nfe": film.nfe}
    return Drawn(picture, facts, frames, f"{n} samples at {len(film.times)} times, {film.nfe} evaluations each")


def _labels(task: Task, n: int) -> list[str]:
    """The names of the classes of n samples, as labels of rows; nothing without labels."""
    labels = task.guide.of_samples(range(n))
    return [] if labels is None else [task.guide.name(y) for y in labels.tolist()]


def forward(task: Task) -> Drawn:
    chosen, x0 = task.chosen_examples(POINTS if task.of_points else 4)
    strip = forward_of(task.sde, x0, [(task.seed, i) for i in chosen], task.frames)
    data = torch.stack([as_data(task.codec, x, task.sde, float(t)) for x, t in zip(strip.states, strip.times, strict=True)])
    looks, names = task.looks(data[0]), time_names(strip.times.tolist(), task.of_points)
    if task.of_points:
        picture = sheet([list(data)], looks, ["x_t"], names)
    else:
        picture = sheet([list(data[:, i]) for i in range(len(chosen))], looks, [f"example {i}" for i in chosen], names,
                        "x_t at t")
    frames = [sheet([[x] if task.of_points else list(x)], looks, (), (), f"t = {t:.3f}")
              for x, t in zip(data, strip.times.tolist(), strict=True)]
    curves = {"alpha": task.sde.alpha(strip.times), "sigma": task.sde.sigma(strip.times)}
    facts = {"numbers": [] if task.of_points else chosen, "times": numbers(strip.times),
             **{name: numbers(curve.expand(len(strip.times))) for name, curve in curves.items()}}
    return Drawn(picture, facts, frames, f"{len(chosen)} examples at {len(strip.times)} times")


def schedule(task: Task) -> Drawn:
    sde = task.sde
    curves = schedule_of(sde)
    facts = {"sde": repr(sde), **{name: numbers(value) for name, value in vars(curves).items() if value is not None},
             "alpha_bar": numbers(curves.alpha.square())}
    ends = f"log SNR from {float(curves.log_snr[0]):.3g} to {float(curves.log_snr[-1]):.3g}"
    return Drawn(schedule_figure(curves, repr(sde)), facts, line=ends)


DRAW: Mapping[str, Callable[[Task], Drawn]] = {"progressive": progressive, "forward": forward, "schedule": schedule}
