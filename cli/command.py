"""Which run a command line means, and with which config. The flags are those that main.py defines."""

import os
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from scorefield.checkpoints import Checkpoint, read_checkpoint
from scorefield.checkpoints.checkpoint import require_agreement
from scorefield.checkpoints.formats import run as run_format
from scorefield.checkpoints.formats.run import read_config
from scorefield.cli.start import describe, from_stored, import_checkpoint, started_from, stem_of, untouched
from scorefield.configs.loading import all_fields, load_config, override, validate
from scorefield.data import Dataset, load_dataset, source_of
from scorefield.models import Denoiser
from scorefield.models.build import effective
from scorefield.numerics.processes import launched, local_device

FLAGS = flags.FLAGS


class Command:
    """What the command line asks for: its config resolved, the run's folder found, --checkpoint read.

    In mode train the config comes from --config, or from the run's folder without it. In the other modes the run's own
    config holds, and what the command line says besides must agree with it; only where the data lie may differ. A run that
    was made of a --checkpoint keeps the SDE and the model that this told, whatever the mode; see `import_checkpoint`.
    """

    checkpoint: Checkpoint | None = None      # that of --checkpoint, just read

    def __init__(self, overrides: list[tuple[str, str]]):
        self.name = Path(FLAGS.config).stem if FLAGS.config else None
        self.run = Path(os.path.expanduser(
            FLAGS.workdir or f"runs/{stem_of(FLAGS.checkpoint) if FLAGS.checkpoint else self.name}"))
        used = FLAGS.mode != "convert" or not FLAGS.checkpoint      # which takes no run's folder
        if used and self.run.exists() and not self.run.is_dir():
            raise ValueError(f"{self.run} is not a folder (--workdir)")
        self.stored = read_config(self.run) if used and (self.run / "config.json").exists() else None
        given = load_config(FLAGS.config) if FLAGS.config else None
        if FLAGS.checkpoint:
            self._read_checkpoint(given, overrides)
        imported = self.stored is not None and "origin" in self.stored
        if self.stored is not None and self.checkpoint is not None:
            self.config = from_stored(self.stored, FLAGS.checkpoint)
        elif self.stored is not None and imported:
            self.config = self._of_imported(self.stored, given)
        elif FLAGS.mode == "train" and given is not None:
            self.config = given
        elif self.stored is not None:
            self.config = from_stored(self.stored, self.run / "config.json")
            if self.name not in (None, self.stored["config"]):
                raise ValueError(f"{self.run} holds a run of {self.stored['config']!r}, not {self.name!r} "
                                 "(--config, --workdir)")
        else:
            raise FileNotFoundError(f"{self.run} holds no run; train first with --mode train, or give its --workdir")
        if self.checkpoint is None:      # whose config has them
            for field, text in overrides:
                override(self.config, field, text)
        if self.stored is not None and imported and self.config.data.dataset == "folder":
            for field, size in (("channels", self.stored["shape"][0]), ("image_size", self.stored["shape"][-1])):
                self.config.data[field] = size if self.config.data[field] is None else self.config.data[field]
        if FLAGS.mode != "train" and self.stored is not None:
            self.refuse_other_experiment(all_fields(effective(self.config.to_dict())))
        validate(self.config)
        source_of(self.config.data.dataset)
        if self.stored is not None and (self.name is None or imported):
            self.name = self.stored["config"]
        self.device = local_device(FLAGS.device)

    def _read_checkpoint(self, given: ConfigDict | None, overrides: list[tuple[str, str]]) -> None:
        """Read --checkpoint, unless the run's folder was made of it before."""
        source = FLAGS.checkpoint
        if FLAGS.mode == "convert" and FLAGS.workdir:
            raise ValueError("--mode convert takes one of --checkpoint and --workdir")
        if self.stored is None:
            if launched().size > 1:
                raise ValueError(f"{source} is not a run yet; under torchrun start from one that --mode convert "
                                 "--format run has written (--workdir)")
            self.checkpoint = import_checkpoint(source, given, overrides)
            self.stored = self.checkpoint.config
        elif Path(os.path.expanduser(source)).resolve() == self.run.resolve():
            raise ValueError(f"{source} is a run already; give it as --workdir instead of --checkpoint")
        elif not started_from(self.stored, source):
            origin = self.stored.get("origin", {}).get("source")
            raise ValueError(f"{self.run} is not what {source} is now, but " + (
                f"was made of {origin}" if origin else "a run of its own") + "; choose another --workdir, or take what it "
                f"holds by --workdir {self.run} alone")
        elif FLAGS.mode != "train" and not untouched(self.stored, self.run):
            raise ValueError(f"{self.run} was trained on since it was made of {source}; take what it holds by --workdir "
                             f"{self.run} alone, or choose another --workdir")

    def _of_imported(self, stored: dict[str, Any], given: ConfigDict | None) -> ConfigDict:
        """The config of a run that was made of a checkpoint, with the data and the training of one given beside it."""
        config = from_stored(stored, self.run / "config.json")
        if given is not None:
            require_agreement(stored, effective(given.to_dict()), self.run)
            config.data = given.data
            if FLAGS.mode in ("train", "convert"):      # the others have no use for these
                config.training = given.training
                config.model.dropout = effective(given.to_dict())["model"]["dropout"]
        return config

    def denoiser(self) -> Denoiser:
        """Of --checkpoint where that was just read, or else of the run."""
        return (self.checkpoint or read_checkpoint(self.run)).denoiser(FLAGS.ema).to(self.device)

    def write_imported(self) -> None:
        """Make the run's folder of --checkpoint, where that was just read; before anything else is written there."""
        if self.checkpoint is not None:
            run_format.write(self.checkpoint, self.run)
            print(f"wrote {self.run} from {FLAGS.checkpoint}: {describe(self.checkpoint)}", flush=True)
            self.stored = read_config(self.run)

    def refuse_other_experiment(self, fields: dict[str, Any]) -> None:
        """ValueError where the run's folder is of another experiment, or of something that is no run at all.

        Where the data lie may differ; of a checkpoint that was imported and not trained on, what is trained on, too.
        """
        if self.stored is None:
            if self.run.exists() and any(self.run.iterdir()):
                raise ValueError(f"{self.run} is not empty and holds no run; choose another --workdir")
            return
        stored = from_stored(self.stored, self.run / "config.json").to_dict()      # with fields that came later
        there = all_fields(effective(stored)) | {k: v for k, v in self.stored.items() if k in ("config", "shape", "levels")}
        shape = self.stored["shape"]
        free = {"data.path"} | {f for f, size in (("data.channels", shape[0]), ("data.image_size", shape[-1]))
                                if fields[f] == size}
        new = self.checkpoint is not None or untouched(self.stored, self.run)
        if new and FLAGS.mode in ("train", "likelihood"):
            free |= {f for f in fields if f.startswith("data.")} - {"data.low", "data.high"}
            free |= {"model.dropout", "levels"} if FLAGS.mode == "train" else set()
        other = [f for f in fields if f not in free and fields[f] != there.get(f)]
        if other:
            differences = ", ".join(f"{f} is {there.get(f)!r} there and {fields[f]!r} here" for f in other[:3])
            place = self.run if self.checkpoint is None else FLAGS.checkpoint
            raise ValueError(f"{place} holds another experiment: {differences}; change that or the --workdir")

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named flags that have a value, by name."""
        return {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}

    def dataset(self) -> Dataset:
        """The config's data set."""
        return load_dataset(self.config.data)
