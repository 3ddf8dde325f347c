"""From a config to a trained run: a folder that is enough to go on, sample, score and compare."""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scorefield.checkpoints.formats.run import (
    FINGERPRINT,
    OF_THE_DATA,
    Sound,
    compared_names,
    differences,
    newest_checkpoint,
    newest_sound,
    read_config,
)
from scorefield.configs.loading import all_fields, apply, from_stored, load_config
from scorefield.configs.sections import data, require_sections
from scorefield.configs.training import names_of
from scorefield.data.codec import Codec
from scorefield.data.dataset import Dataset, as_dataset
from scorefield.data.datasets import PICTURE_FIELDS, in_units_of, load_dataset
from scorefield.data.degradations import pictures_as_said
from scorefield.data.fingerprint import fingerprint
from scorefield.models.build import build_denoiser
from scorefield.models.conditions import GUIDANCE
from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.autoencoder import autoencoder_of
from scorefield.models.networks.dequantizer import dequantizer_of
from scorefield.numerics.devices import autocast_dtype, keep_freed_memory, local_device, require_compiler, slow_arithmetic
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.files import write_json
from scorefield.numerics.processes import connect, launched
from scorefield.training.batches import Batches, held_out
from scorefield.training.doubts import doubts
from scorefield.training.ends import TrainingEnds
from scorefield.training.folder import begin, is_empty, opened
from scorefield.training.labels import require_conditions
from scorefield.training.latents import codec_of_encoded, codec_to_train, encoded, latent_fields
from scorefield.training.machine import Machine
from scorefield.training.meters import Meters, operations_of
from scorefield.training.objectives import build_objective
from scorefield.training.objectives.score_matching import told
from scorefield.training.schedule import Measures, measured_by
from scorefield.training.teachers import begin_with, initial_of, perceptual_of, teacher_of
from scorefield.training.trackers import require_trackers
from scorefield.training.trainer import Trainer

Preview = Callable[[Any, Dataset, Codec], Tensor]      # of a model: samples as a picture (3, height, width), uint8


def train(config: str | Path | ModuleType | ConfigDict, dataset: Any = None, workdir: str | Path | None = None,
          device: str | torch.device = "auto", overrides: Mapping[str, Any] | None = None, preview: Preview | None = None,
          progress: bool = True, restart: bool = False, strict: bool = False, other_data: bool = False,
          measures: Measures | None = None) -> Path:
    """Train, or continue where the run in `workdir` stopped; returns that folder, which `load_denoiser` reads.

        run = train("configs/vp_digits.py", dataset=pictures, workdir="runs/mine", overrides={"training.steps": 1000})
        model = load_denoiser(run)

    config     the path of a config file, a module with get_config(), or what that returns
    dataset    a Dataset, or a tensor or an array that `data.from_arrays` reads; None: the one that the config names
    workdir    the run's folder; runs/<name of the config> unless given
    device     "auto" is cuda, else mps, else cpu
    overrides  fields of the config by their dotted names, with other values
    preview    what makes a picture of samples for TensorBoard, such as evaluation.Preview()
    progress   whether to show progress on the terminal
    restart    whether a run that has lost its checkpoints is trained anew; else that is refused
    strict     whether a damaged newest checkpoint is refused; else the one before it is used
    other_data whether to go on with data that have changed since the run was left; else that is refused
    measures   what makes the figures of training.metrics_every, such as evaluation.Measures()

    One process trains in a folder at a time. Raises ArgumentError if another one does, if arguments do not fit together or
    if the folder holds another experiment, before anything is written; Interrupted after Ctrl-C, when a checkpoint has been
    saved; ArithmeticError if the loss stops being finite.
    """
    name, chosen = _resolved(config, overrides or {})
    if workdir is None and not name:
        raise ArgumentError("a config object has no name, so say where its run shall be", "workdir")
    run = Path(os.path.expanduser(workdir or f"runs/{name}"))
    if dataset is not None:
        dataset = as_dataset(dataset)
        chosen.data = data("arrays", **{field: chosen.data[field] for field in PICTURE_FIELDS if field in chosen.data})
    require_sections(chosen)
    if dataset is not None:
        dataset = pictures_as_said(dataset, chosen.data)
    first = launched().first
    say = partial(print, flush=True) if progress and first else _silence
    with opened(run, say) if first else contextlib.nullcontext():
        dataset = load_dataset(chosen.data) if dataset is None else dataset
        dataset = in_units_of(dataset, read_config(run) if (run / "config.json").exists() else None)
        for note in dataset.notes:
            say(note)
        name = name or run.name
        if first:
            require_same_experiment(run, described(chosen, dataset, name))
        train_run(chosen, dataset, run, local_device(str(device)), name, preview=preview, progress=progress, restart=restart,
                  strict=strict, other_data=other_data, measures=measures)
    return run


def train_run(config: ConfigDict, dataset: Dataset, run: Path, device: torch.device, name: str,
              kept: Mapping[str, Any] | None = None, preview: Preview | None = None, progress: bool = True,
              restart: bool = False, strict: bool = False, other_data: bool = False, measures: Measures | None = None
              ) -> Path | None:
    """Train in the folder `run`, which this process has opened (folder.py) and which holds this experiment; returns the last
    checkpoint, or None if training was done already.

    name  of the config
    kept  more fields for config.json, such as the origin of an import
    """
    world, steps = launched(), config.training.steps
    if config.training.batch_size % world.size:
        raise ArgumentError(f"training.batch_size={config.training.batch_size} must be divisible by {world.size}, the "
                            "number of processes", "training.batch_size")
    say = partial(print, flush=True) if progress and world.first else _silence
    # Every error is raised before anything is written, but for encoded data, which lie elsewhere.
    codec = codec_to_train(config.data, dataset, run, device, say)
    stored = described(config, dataset, name) | latent_fields(codec) | dict(kept or {})
    if world.first:
        stored[FINGERPRINT] = fingerprint(dataset)
        start, keep = begin(run, stored, restart, strict, other_data, say)
    connect(device).any(False, device)      # the others look when the first process has gone back, if it was told to
    if not world.first:
        start, keep = newest_sound(run, strict), _nothing
    trainer = set_up(config, dataset, run, device, preview, progress, stored, start, measures, codec)
    del start      # the weights are the trainer's now
    if trainer.step >= steps:
        message = f"{trainer.checkpoint} is at step {trainer.step} already; to train further, raise training.steps"
        if trainer.step > steps:
            raise ArgumentError(f"{message}, which is {steps}", "training.steps")
        say(message)
        return None
    if world.first:
        keep()
        write_json(run / "config.json", stored)
        if trainer.machine is not None:
            trainer.machine.keep()
    parameters = sum(p.numel() for p in trainer.update.parameters)
    for note in [*trainer.update.notes, *doubts(config, dataset, trainer.model, codec)]:
        say(note)
    if slow := slow_arithmetic(config.training.precision, device):
        say(f"training.{slow}")
    say(f"{dataset.name}: {len(dataset.train)} examples of shape {dataset.shape}, {len(dataset.test)} held out; "
        f"{trainer.model.sde}; {parameters:,} parameters; {device}"
        + (f"; continues from {trainer.checkpoint}" if trainer.checkpoint else ""))
    began = time.perf_counter()
    checkpoint = trainer.train()
    say(f"wrote {checkpoint}, {run / 'stats.jsonl'} and {run / 'tensorboard'} in {time.perf_counter() - began:.0f} s")
    return checkpoint


def set_up(config: ConfigDict, dataset: Dataset, run: Path, device: torch.device, preview: Preview | None = None,
           progress: bool = False, stored: Mapping[str, Any] | None = None, start: Sound | None = None,
           measures: Measures | None = None, codec: Codec | None = None) -> Trainer:
    """The trainer of a config: builds the model, the objective and the batches, and goes on at `start`, or at the newest
    sound checkpoint of `run`. `stored` is what config.json is to hold; `codec` that of the run (latents.codec_to_train).

    Raises ArgumentError if the data lack what the model is told, such as labels, or have other classes.
    """
    settings, world = config.training, connect(device)
    if settings.compile:
        with renamed("training"):
            require_compiler(device)
    require_trackers(names_of(settings.trackers, "training.trackers"))
    codec = codec or codec_to_train(config.data, dataset, run, device, _silence)
    if world.size > 1 and settings.objective == "dsb":
        raise ArgumentError("objective dsb trains one of two networks at a time, which processes cannot share; choose dsbm, "
                            "or one process", "training.objective")
    keep_freed_memory(device)
    torch.manual_seed(settings.seed)
    model = build_denoiser(config, codec.event(dataset.shape)).to(device)
    model.autocast = autocast_dtype(settings.precision, device)
    own = codec_of_encoded(codec)
    ends = None if dataset.target is None else TrainingEnds(dataset, own, device)
    objective = build_objective(model, settings, own, teacher_of(config, dataset, device, codec),
                                perceptual_of(settings, dataset, device), ends)
    dataset = require_conditions(model, objective, config, dataset)
    data = encoded(codec, dataset)
    machine, share = Machine(run, device), settings.batch_size // world.size
    noise = partial(_loss_of_noise, model, dataset, codec, device)
    machine.memory_format(model, settings.memory_format, noise, share, world)
    batches = Batches(data, own, objective, settings.batch_size, settings.seed, device, world, settings.workers)
    meters = Meters(objective, settings.batch_size, device, world, lambda: batches.waited,
                    partial(_operations, config, dataset, codec, share),
                    partial(machine.peak, model.autocast or torch.float32))
    evaluate = partial(held_out, objective=objective, dataset=data, codec=own, batch_size=settings.batch_size,
                       device=device)
    shown = None if preview is None else lambda model: preview(model, dataset, codec)
    figures = measured_by(settings, measures, model, dataset, codec)
    new, sharded = start is None and newest_checkpoint(run) is None, settings.sharding == "fsdp" and world.size > 1
    _prepare(model, objective, new, sharded)      # after what needs gradients
    trainer = Trainer(model, meters.objective, batches, settings, run, device, world, evaluate, shown, progress, stored,
                      start, meters, figures)
    trainer.machine = machine
    return trainer


def _prepare(model: Denoiser, objective: Any, new: bool, sharded: bool) -> None:
    """Give the network of a new run the weights that its objective begins with, and freeze what the objective keeps."""
    if sharded and (dequantizer_of(model) is not None or hasattr(model.network, "schedule")):
        raise ArgumentError("a dequantizer and a learned schedule are called beside the network, which FSDP cannot do; "
                            "choose training.sharding=none", "training.sharding")
    if sharded and (autoencoder := autoencoder_of(model)) is not None and autoencoder.discriminator is not None:
        raise ArgumentError("a discriminator is called with constant weights, too, which FSDP cannot do; choose "
                            "training.sharding=none", "training.sharding", "model.discriminator")
    source, name = initial_of(objective)
    if source and new:
        begin_with(model, source, name)
    if getattr(objective, "frozen", False):
        flow = {id(parameter) for parameter in dequantizer_of(model).parameters()}      # type: ignore[union-attr]
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in flow)


def _loss_of_noise(model: Any, dataset: Dataset, codec: Codec, device: torch.device, n: int) -> Tensor:
    """A number whose gradient takes as long as that of the loss, for n examples of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *codec.event(dataset.shape), generator=generator).to(device)
    t = torch.full((n,), 0.5 * (model.sde.t_min + model.sde.t_max), dtype=torch.float32, device=device)
    condition = dataset.train[torch.zeros(n, dtype=torch.int64)][1] if model.takes.names else {}
    condition = {name: tensor.to(device) for name, tensor in condition.items()}
    if model.takes.guidance is not None:
        condition[GUIDANCE] = torch.full((n,), model.takes.guidance[0], device=device)
    output: Tensor = model(x, t, *told(model, condition))
    return output.square().mean()


def _operations(config: ConfigDict, dataset: Dataset, codec: Codec, examples: int) -> float:
    """Floating-point operations of the forward and backward passes of so many examples; 0 if they cannot be counted."""
    event = codec.event(dataset.shape)
    with torch.device("meta"):
        outline = build_denoiser(config, event)
    return examples * operations_of(outline.network, event)


def described(config: ConfigDict, dataset: Dataset, name: str) -> dict[str, Any]:
    """The content of a run's config.json: its config, with the config's name, and the shape, the levels, the standardisation
    (None without) and the names of the classes of the data ([] where these have no labels).
    """
    return config.to_dict() | {"config": name, "shape": list(dataset.shape), "levels": dataset.levels,
                               "class_names": list(dataset.class_names),
                               "standard": None if dataset.standard is None else dataset.standard.stored()}


def require_same_experiment(run: Path, resolved: Mapping[str, Any]) -> None:
    """ArgumentError unless `run` is empty, or holds a run of `resolved` (see `described`).

    The section `training` and the path of the data may differ, and the names of the classes where the model is told none.
    """
    if not (run / "config.json").exists():
        if not is_empty(run):
            raise ArgumentError(f"{run} is not empty and holds no run; choose another workdir", "workdir")
        return
    stored = read_config(run)
    there = all_fields(from_stored(stored, run / "config.json").to_dict())      # with fields that later versions added
    there |= {key: stored[key] for key in ("config", "shape", "levels")}
    there["class_names"] = compared_names(stored, resolved.get("class_names", []))
    here = {field: value for field, value in all_fields(resolved).items()
            if not field.startswith(("training.", "standard")) and field not in OF_THE_DATA}
    other = [field for field in here if here[field] != there.get(field)]
    if other:
        raise ArgumentError(f"{run} holds another experiment: {differences(other, there, here)}; change that or the workdir",
                            "workdir")


def _resolved(config: str | Path | ModuleType | ConfigDict, overrides: Mapping[str, Any]) -> tuple[str, ConfigDict]:
    """The name and the fields of a config, which are the caller's own."""
    if isinstance(config, str | Path):
        name, chosen = Path(config).stem, load_config(str(config))
    elif isinstance(config, ModuleType):
        name, chosen = config.__name__.rpartition(".")[2], config.get_config()
    elif isinstance(config, ConfigDict):
        name, chosen = "", copy.deepcopy(config)
    else:
        raise ArgumentError("config must be a path, a module with get_config() or a ConfigDict, got "
                            f"{type(config).__name__}", "config")
    apply(chosen, [(field, value if isinstance(value, str) else repr(value)) for field, value in overrides.items()])
    return name, chosen


def _silence(text: str) -> None:
    """Says nothing."""


def _nothing() -> None:
    """Does nothing."""
