"""One picture of mode explore: what the command line says of it, the run's model and examples, and its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scorefield.cli.drawing import options as sampler_flags
from scorefield.cli.drawing import parsed_options, precision_of, prepare
from scorefield.cli.examples import examples_at, own_data
from scorefield.cli.fit_variance import fit_for
from scorefield.cli.guide import Guide, guide_of
from scorefield.data import Codec, Dataset
from scorefield.evaluation.explore.paths import Models, encoded, shown_width
from scorefield.evaluation.explore.sheets import Looks, as_data, save_gif
from scorefield.evaluation.names import changed, name_of_place, suffix_of, suffix_of_drawing, whole, with_suffix
from scorefield.evaluation.plots import save_png
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.files import write_json
from scorefield.samplers import SAMPLERS, Sampler, make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib import SDE

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.explore import Picture
    from scorefield.likelihood import ChainELBO
    from scorefield.models import Denoiser, ScoreModel

FRAMES = 11
POINTS, ROWS = 2000, 8      # samples of points; rows of pictures or series
OWN = ("num_samples", "frames", "times", "examples", "split", "images", "step_counts", "clip_x0")      # of the mode alone


@dataclass(frozen=True)
class Drawn:
    """A picture, the frames of its film, and what its record says beside the settings."""

    picture: Tensor
    facts: Mapping[str, Any]
    film: Sequence[Tensor] = ()
    line: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """What the pictures of one command share."""

    command: Command

    @cached_property
    def model(self) -> Denoiser:
        """The run's model."""
        model = self.command.denoiser()
        prepare(model.network, self.command)
        return model

    @cached_property
    def sde(self) -> SDE:
        from scorefield.models.build import build_sde

        assert self.command.stored is not None
        return build_sde(self.command.stored)


@dataclass(frozen=True, eq=False)
class Task:
    """One picture as a command line asks for it.

    settings  the sampler that it uses, or the bound of the chain, or None
    owner     the name of their class
    """

    source: Source
    name: str
    takes: frozenset[str]
    settings: Sampler | ChainELBO | None
    owner: str | None

    @classmethod
    def of(cls, source: Source, name: str, picture: Picture, owner: str | None) -> Task:
        """ArgumentError for what does not fit together, before anything is computed."""
        task = cls(source, name, frozenset(picture.flags), _settings(source, picture, owner), owner)
        if "ema" in task.takes:
            if isinstance(task.settings, Sampler):
                task.settings.times(task.known)      # refuses a grid that does not fit
            if picture.one_label and len(task.guide.labels or ()) > 1:
                raise ArgumentError(f"{name} takes one label for all, got {task.command.asked.values['label']}", "label")
        return task

    @property
    def command(self) -> Command:
        return self.source.command

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
        return self.command.shape

    @property
    def codec(self) -> Codec:
        return self.command.codec

    @property
    def event(self) -> tuple[int, ...]:
        return self.codec.event(self.shape)

    @property
    def of_points(self) -> bool:
        return len(self.shape) == 1

    # ---- the model and the data ------------------------------------------------------------------------------------

    @property
    def model(self) -> Denoiser:
        return self.source.model

    @cached_property
    def known(self) -> ScoreModel:
        """The model, with its fitted variance if the sampler or the bound needs that."""
        settings = {} if self.settings is None else vars(self.settings)
        fit = fit_for(self.command, settings, self.model, self.guide.labels is not None)
        return self.model if fit is None else fit.model(self.model)

    @cached_property
    def sde(self) -> SDE:
        return self.source.sde

    @cached_property
    def guide(self) -> Guide:
        return guide_of(self.command, self.model) if "label" in self.takes else Guide()

    @property
    def models(self) -> Models:
        """The score models of the samples, guided as the command line asks."""
        return self.guide.of(self.known, self.command.device) if self.guide.described else self.known

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
            raise ArgumentError(f"examples must lie in 0 .. {len(split) - 1} ({name} examples of {self.dataset.name!r}), "
                                f"got {wrong[0]}", "examples")
        return split[torch.tensor(list(numbers), dtype=torch.long)][0]

    def chosen_data(self, n: int, exactly: bool = False) -> tuple[list[int], Tensor]:
        """The numbers of the examples, the first n unless they are given, and the examples as data."""
        given = self.value("examples")
        if given is not None and (not given or (exactly and len(given) != n)):
            raise ArgumentError(f"{self.name} takes {n if exactly else 'one or more'} example{'s' * (n > 1)}, got "
                                f"{len(given)}", "examples")
        total = len(self.dataset.test if self.value("images") or self.value("split") == "test" else self.dataset.train)
        chosen = list(range(min(n, total))) if given is None else list(given)
        if exactly and len(chosen) < n:
            raise ArgumentError(f"{self.name} takes {n} examples, and {self.dataset.name!r} has {total}", "images", "split")
        return chosen, self.examples(chosen)

    def chosen_examples(self, n: int, exactly: bool = False) -> tuple[list[int], Tensor]:
        """The same examples as the model sees them."""
        chosen, data = self.chosen_data(n, exactly)
        return chosen, encoded(self.codec, data, [(self.seed, i) for i in chosen], self.command.device)

    def training(self, n: int) -> Tensor:
        """The first n training examples as the model sees them."""
        train = own_data(self.command).train
        data = train[torch.arange(min(n, len(train)))][0]
        return encoded(self.codec, data, sample_seeds(self.seed, 0, len(data)), self.command.device)

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

    def shown(self, x: Tensor, t: float | None = None) -> Tensor:
        """Samples x (..., *event) as data, (..., *shape); states at time t over their width where that is above 1."""
        return as_data(self.codec, x, len(self.event), 1.0 if t is None else shown_width(self.sde, t))

    def prior(self, n: int) -> tuple[Tensor, list[Any]]:
        seeds = sample_seeds(self.seed, 0, n)
        return prior_sample(self.sde, self.event, seeds, self.command.device), seeds

    # ---- the files -------------------------------------------------------------------------------------------------

    @property
    def given(self) -> dict[str, Any]:
        """The mode's own flags that were given and that this picture takes."""
        values = self.command.asked.values
        return {name: values[name] for name in OWN if name in self.takes and name in self.command.asked.given}

    @property
    def stem(self) -> Path:
        """The path of the files without their suffixes, which says every setting that is no default."""
        own = {name: name_of_place(value) if name == "images" else value for name, value in self.given.items()
               if (name, value) != ("split", "test")}
        used = "" if self.settings is None else (
            (f"_{self.owner}" if "sampler" in self.takes else "") + suffix_of(changed(self.settings)))
        values = self.command.asked.values
        seed = self.seed if "seed" in self.takes else 0
        drawn = suffix_of_drawing(seed, values["ema"], precision_of(self.command), None, self.batch_size) if (
            "ema" in self.takes) else suffix_of({"seed": seed} if seed else {})
        return self.command.run / "explore" / whole(self.name + used + suffix_of(own) + self.guide.suffix + drawn)

    def draw(self, picture: Callable[[Task], Drawn]) -> str:
        """Draw the picture and write its files; returns a line that says what was written."""
        started = time.perf_counter()
        drawn = picture(self)
        seconds = time.perf_counter() - started
        self.stem.parent.mkdir(exist_ok=True)
        record: dict[str, Any] = {"what": self.name, **self.given}
        if self.settings is not None:
            record |= {"sampler" if isinstance(self.settings, Sampler) else "estimator": self.owner,
                       "options": dict(vars(self.settings))}
        if "ema" in self.takes:
            values = self.command.asked.values
            record |= {**self.guide.described, "ema": values["ema"], "precision": precision_of(self.command),
                       "batch_size": self.batch_size, "checkpoint": str(self.command.newest)}
        if "seed" in self.takes:
            record["seed"] = self.seed
        if drawn.film:
            save_gif(with_suffix(self.stem, ".gif"), drawn.film)
        save_png(with_suffix(self.stem, ".png"), drawn.picture)
        write_json(with_suffix(self.stem, ".json"), {**record, **drawn.facts, "seconds": round(seconds, 3)})
        kinds = ",".join(["png", *(["gif"] if drawn.film else []), "json"])
        return f"{self.name}: {drawn.line}{'; ' if drawn.line else ''}wrote {self.stem}.{{{kinds}}}"


def _settings(source: Source, picture: Picture, owner: str | None) -> Sampler | ChainELBO | None:
    """The sampler or the bound that a picture uses, with the given options that are its own."""
    command = source.command
    if owner is None:
        return None
    if owner == "chain_elbo":
        from scorefield.cli.likelihood import RENAMED
        from scorefield.cli.likelihood import options as estimator_flags
        from scorefield.likelihood import ChainELBO

        back = {flag: name for name, flag in RENAMED.items()}
        given = command.asked.settings(estimator_flags()[owner])
        with renamed(names=RENAMED):
            return ChainELBO(**{back.get(name, name): value for name, value in given.items()})
    known = sampler_flags().get(owner)
    texts = {name: text for name, text in command.asked.texts.items() if known is None or name in known}
    usual = {} if command.asked.values["sampler"] is not None and owner in SAMPLERS and "sampler" in picture.flags else (
        dict(picture.options))
    given = parsed_options(owner, texts)
    if not isinstance(given.get("grid", ""), str):      # a list of times fixes the steps
        usual.pop("steps", None)
    if "steps" in usual and source.sde.steps is not None:      # a chain has no more
        usual["steps"] = min(usual["steps"], source.sde.steps)
    return make_sampler(owner, **usual | given)


def numbers(values: Tensor, digits: int = 6) -> list[Any]:
    """A tensor as nested lists of numbers with so many digits."""
    return [numbers(row, digits) if row.ndim else float(f"{float(row):.{digits}g}") for row in values.detach().cpu()]
