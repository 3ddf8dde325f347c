"""Resolve a command line to a run and its config."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scorefield.checkpoints.checkpoint import Checkpoint, require_agreement
from scorefield.checkpoints.formats import run as run_format
from scorefield.checkpoints.formats.run import OF_THE_DATA, compared_names, differences, read_config
from scorefield.checkpoints.latents import codec_of
from scorefield.checkpoints.load import read_checkpoint
from scorefield.cli.direction import bound
from scorefield.cli.flags import Flag
from scorefield.cli.origin import describe, import_checkpoint, started_from, stem_of, untouched
from scorefield.configs.loading import all_fields, apply, from_stored, load_config
from scorefield.configs.sections import require_sections
from scorefield.data import Codec, Dataset, load_dataset
from scorefield.models.denoiser import Denoiser
from scorefield.models.ema import parse_average
from scorefield.numerics.devices import local_device
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.locks import LOCK
from scorefield.numerics.processes import launched


@dataclass(frozen=True)
class Asked:
    """A parsed command line.

    mode       one of the modes
    values     every flag of the mode, given or with its default
    texts      the given options of a sampler or an estimator, as text (bool for a switch); that class's types parse them
    given      the names of all given flags and options
    overrides  fields of the config, each with its text
    """

    mode: str
    values: Mapping[str, Any]
    texts: Mapping[str, str | bool] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    overrides: Sequence[tuple[str, str]] = ()

    def settings(self, options: Mapping[str, Flag]) -> dict[str, Any]:
        """The given options of a class, in their declared types."""
        return {name: text if isinstance(text, bool) else options[name].value(text) for name, text in self.texts.items()
                if name in options}


def resolve_average(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Let values["ema"] be what the flag `average` says: True, False for raw weights, or the name of another average."""
    name = values.get("average")
    if name is None:
        return
    if "ema" in given:
        raise ArgumentError(f"average={name} says which weights; leave out ema", "average", "ema")
    if name not in ("ema", "raw"):
        with renamed(names={"averages": "average"}):
            parse_average(name)
    values["ema"] = {"ema": True, "raw": False}.get(name, name)


class Command:
    """A command line with its config resolved, the run's folder found and --checkpoint read.

    In modes train and plan the config comes from --config, or from the run's folder if --config is not given. In the
    other modes the run's own config is used, and the command line must agree with it; only the path of the data may
    differ. A run that was made from a --checkpoint keeps the checkpoint's SDE and model in every mode; see
    `import_checkpoint`.
    """

    checkpoint: Checkpoint | None = None      # the one that --checkpoint names, if this command has read it
    _unused: Checkpoint | None = None         # the run's newest, between reading it and making a denoiser of it

    def __init__(self, asked: Asked):
        self.asked, self.mode, self._said = asked, asked.mode, set[str]()
        self.source: str | None = asked.values.get("checkpoint")
        config = asked.values["config"]
        self.name = Path(config).stem if config else None
        self.run = Path(os.path.expanduser(
            asked.values["workdir"] or f"runs/{stem_of(self.source) if self.source else self.name}"))
        self.stored = self._read_stored()
        given = load_config(config) if config else None
        if self.source:
            self._read_checkpoint(given)
        self.imported = self.stored is not None and "origin" in self.stored
        self.config = self._resolved(given)
        if self.checkpoint is None:      # otherwise its config has them already
            apply(self.config, asked.overrides)
        self._fit_folder()
        require_sections(self.config)
        if self.mode not in ("train", "plan") and self.stored is not None:
            self.refuse_other_experiment(all_fields(self.config))
        if self.stored is not None and (self.name is None or self.imported):
            self.name = self.stored["config"]
        self.device = local_device(asked.values["device"])

    def _read_stored(self) -> dict[str, Any] | None:
        """config.json of the run's folder, if it exists and the command uses it."""
        if self.mode == "convert" and self.source:
            return None
        if self.run.exists() and not self.run.is_dir():
            raise ArgumentError(f"{self.run} is not a folder", "workdir")
        if line := run_format.restore_config(self.run):
            self.say(line)
        return read_config(self.run) if (self.run / "config.json").exists() else None

    def _read_checkpoint(self, given: ConfigDict | None) -> None:
        """Read --checkpoint, unless the run's folder was made from it before."""
        source = self.source
        assert source is not None
        if self.mode == "convert" and self.asked.values["workdir"]:
            raise ArgumentError("mode convert takes either checkpoint or workdir, got both", "checkpoint", "workdir")
        if self.stored is None:
            if launched().size > 1:
                raise ArgumentError(f"{source} is not a run yet; torchrun needs a run, which mode convert writes in format "
                                    "run", "workdir")
            self.checkpoint = import_checkpoint(source, given, self.asked.overrides)
            self.stored = self.checkpoint.config
        elif Path(os.path.expanduser(source)).resolve() == self.run.resolve():
            raise ValueError(f"{source} is a run already; give it as --workdir instead of --checkpoint")
        elif not started_from(self.stored, source):
            origin = self.stored.get("origin", {}).get("source")
            raise ValueError(f"{self.run} was not made from {source} as it is now, but " + (
                f"from {origin}" if origin else "by training") + "; choose another --workdir, or give --workdir "
                f"{self.run} alone to use the run in it")
        elif self.mode != "train" and not untouched(self.stored, self.run):
            raise ValueError(f"{self.run} was trained further since it was made from {source}; give --workdir {self.run} "
                             "alone to use it, or choose another --workdir")

    def _resolved(self, given: ConfigDict | None) -> ConfigDict:
        """The config before the command line's own fields are set."""
        if self.stored is not None and self.checkpoint is not None:
            return from_stored(self.stored, self.checkpoint.source)
        if self.stored is not None and self.imported:
            return self._of_imported(self.stored, given)
        if self.mode in ("train", "plan") and given is not None:
            return given
        if self.stored is None and self.mode == "train":
            raise ArgumentError(f"{self.run} holds no run to go on with; give the config of a new one", "config", "workdir")
        if self.stored is None:
            raise FileNotFoundError(f"{self.run} holds no run; train first with --mode train, or give the run's --workdir")
        if self.name not in (None, self.stored["config"]):
            raise ArgumentError(f"{self.run} holds a run of {self.stored['config']!r}, not {self.name!r}",
                                "config", "workdir")
        return from_stored(self.stored, self.run / "config.json")

    def _of_imported(self, stored: dict[str, Any], given: ConfigDict | None) -> ConfigDict:
        """The config of a run that was made from a checkpoint, with the data and the training of --config, if given."""
        config = from_stored(stored, self.run / "config.json")
        if given is not None:
            require_agreement(stored, given.to_dict(), self.run)
            config.data = given.data
            if self.mode in ("train", "convert"):      # the other modes do not use these
                config.training = given.training
                config.model.dropout = given.model.dropout
        return config

    def _fit_folder(self) -> None:
        """Take the size of a user's pictures from an imported network, unless the command line sets it."""
        if self.stored is None or not self.imported or "image_size" not in self.config.data:
            return
        said = {name for name, _ in self.asked.overrides}
        for name, size in (("channels", self.stored["shape"][0]), ("image_size", self.stored["shape"][-1])):
            if f"data.{name}" not in said:
                self.config.data[name] = size

    @cached_property
    def newest(self) -> Path:
        """The run's newest sound checkpoint as this command first saw it: training may write others meanwhile. Those that
        were passed over are said.

        FileNotFoundError if there is none.
        """
        self._unused = read_checkpoint(self.run, strict=bool(self.asked.values.get("strict")))
        for line in (*run_format.strangers(self.run), *self._unused.passed_over):
            if launched().first:
                print(line, file=sys.stderr, flush=True)
        assert self._unused.file is not None
        return self._unused.file

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example of the run, as data."""
        assert self.stored is not None
        return tuple(self.stored["shape"])

    @cached_property
    def codec(self) -> Codec:
        """Of the run's data."""
        assert self.stored is not None
        return codec_of(self.config.data, self.stored, self.device)

    def codec_for(self, dataset: Dataset) -> Codec:
        """Of data that the run's model takes: that of the run, with the standardisation of a data set that has one."""
        return self.codec if self.config.data.get("autoencoder") else codec_of(self.config.data, dataset)

    def take(self) -> Checkpoint:
        """The checkpoint of --checkpoint if this command has read it, else the run's newest."""
        if self.checkpoint is not None:
            return self.checkpoint
        path = self.newest
        found, self._unused = self._unused or read_checkpoint(path), None      # it is not held for longer
        return found

    def denoiser(self) -> Denoiser:
        """The denoiser of that checkpoint; of a bridge the direction that is asked for."""
        return bound(self, self.take().denoiser(self.asked.values["ema"]).to(self.device))

    def write_imported(self) -> None:
        """Make the run's folder from --checkpoint, if this command has read it; before anything else is written there."""
        if self.checkpoint is not None:
            run_format.write(self.checkpoint, self.run)
            print(f"wrote {self.run} from {self.source}: {describe(self.checkpoint)}", flush=True)
            self.stored = read_config(self.run)

    def refuse_if_changed(self) -> None:
        """Raise ValueError if the run's config.json is not what this command has read: another one has written it since."""
        if self._read_stored() != self.stored:
            raise ValueError(f"{self.run} was written by another process meanwhile; give the command again")

    def refuse_other_experiment(self, fields: dict[str, Any]) -> None:
        """Raise ArgumentError if the run's folder holds another experiment, or anything that is not a run.

        The path of the data may differ. If the run is an imported checkpoint without further training, the data set and
        the names of its classes may differ, too.
        """
        if self.stored is None:
            if self.run.exists() and any(path.name != LOCK for path in self.run.iterdir()):
                raise ArgumentError(f"{self.run} is not empty and holds no run; choose another folder", "workdir")
            return
        stored = from_stored(self.stored, self.run / "config.json")      # with fields that later versions added
        there = all_fields(stored) | {k: v for k, v in self.stored.items() if k in ("config", "shape", "levels")}
        there["class_names"] = compared_names(self.stored, fields.get("class_names", []))
        shape = self.stored["shape"]
        free = {*OF_THE_DATA} | {f for f, size in (("data.channels", shape[0]), ("data.image_size", shape[-1]))
                                if fields.get(f) == size}
        new = self.checkpoint is not None or untouched(self.stored, self.run)
        if new and self.mode in ("train", "likelihood", "evaluate"):
            free |= {f for f in fields if f.startswith("data.")} - {"data.low", "data.high"}
            free |= {"model.dropout", "levels", "class_names"} if self.mode == "train" else set()
        other = [f for f in fields if f not in free and fields[f] != there.get(f)]
        if other:
            place = self.run if self.checkpoint is None else self.source
            raise ArgumentError(f"{place} holds another experiment: {differences(other, there, fields)}; change this, or "
                                "choose another folder", "workdir")

    def dataset(self) -> Dataset:
        """The config's data set. What it says of its files is printed."""
        return self.told(load_dataset(self.config.data))

    def told(self, dataset: Dataset) -> Dataset:
        """The same data set. Its notes are printed, each once, by the first process."""
        for note in dataset.notes:
            self.say(note)
        return dataset

    def say(self, note: str) -> None:
        """Print a line, unless this command has printed it already; the first process does."""
        if launched().first and note not in self._said:
            print(note, flush=True)
        self._said.add(note)
