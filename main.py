"""Scorefield's command line: train a score model, draw samples from it, compute its bits/dim.

Flags are absl's, the config an ml_collections ConfigDict; `python main.py --help` shows them. One function a mode.
"""

import hashlib
import json
import math
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags

from scorefield.checkpoints import read_checkpoint
from scorefield.checkpoints.formats.run import newest_checkpoint
from scorefield.checkpoints.load import FORMATS, SUFFIXES
from scorefield.cli.command import Command
from scorefield.cli.start import describe, untouched
from scorefield.configs.loading import all_fields, config_names
from scorefield.data import DATASETS, Dataset, load_dataset, load_images, quantize
from scorefield.evaluation import Evaluation, Score, auroc, draw, plots
from scorefield.evaluation.likelihood import ESTIMATORS, write_csv
from scorefield.evaluation.report import report
from scorefield.likelihood import CLOCKS, DIVERGENCES, METHODS, PROBE_KINDS
from scorefield.models.build import effective
from scorefield.numerics.devices import prepare_sampling, set_memory_format
from scorefield.numerics.files import write_atomically
from scorefield.numerics.processes import World, connect, launched
from scorefield.samplers import GRIDS, SAMPLERS, make_sampler, sampler_options
from scorefield.sde_lib import SDES
from scorefield.sde_lib.transition import VARIANCES
from scorefield.training.trainer import Interrupted, Trainer

SPLITS = ("train", "test")

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "a config file, such as configs/vp_digits.py")
flags.DEFINE_enum("mode", None, ["train", "sample", "likelihood", "convert", "report"], "what to do")
flags.DEFINE_string("workdir", None, "the run's folder")
flags.DEFINE_string("checkpoint", None, "a file, a folder or a model of the Hugging Face hub to start from")
flags.DEFINE_string("output", None, "the file or folder to write")
flags.DEFINE_enum("format", None, list(FORMATS), "of --output; by its suffix unless given")
flags.DEFINE_string("device", "auto", "auto, cuda, mps or cpu")
flags.DEFINE_integer("seed", 0, "of samples, dequantisation and probes", lower_bound=0)
flags.DEFINE_bool("ema", True, "use the averaged weights")
flags.DEFINE_integer("batch_size", 128, "of sampling and likelihood; adaptive steps depend on it", lower_bound=1)
flags.DEFINE_bool("debug", False, "show the traceback of an error")
flags.DEFINE_string("sampler", "auto", "which sampler")
flags.DEFINE_integer("num_samples", 64, "how many samples", lower_bound=1, upper_bound=10_000_000)
flags.DEFINE_string("precision", "fp32", "of the network in sampling: fp32, bf16, auto")
# What samplers take, a flag each; `points` is for the trajectories that this file draws.
SAMPLER_FLAGS = sorted({option for name in SAMPLERS for option in sampler_options(name)} - {"points"})
_DEFINE: dict[type, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float,
                           str: flags.DEFINE_string}
for _option in SAMPLER_FLAGS:
    _values = [sampler_options(name)[_option].default for name in SAMPLERS if _option in sampler_options(name)]
    _kinds = {"t_end": float, "lower_order_final": bool}
    _DEFINE[_kinds.get(_option, type(_values[0]))](_option, None, "an option of some samplers")
flags.DEFINE_string("divergence", "hutchinson", "hutchinson or exact")
flags.DEFINE_integer("probes", None, "probes of the Hutchinson estimator")
flags.DEFINE_float("t_min", None, "where the likelihood's ODE starts")
flags.DEFINE_string("clock", None, "what the adaptive solver steps in")
flags.DEFINE_string("probe_kind", None, "distribution of the probes")
flags.DEFINE_enum("estimator", "ode", list(ESTIMATORS), "what computes the likelihood")
flags.DEFINE_integer("draws", 1, "dequantisations of each example", lower_bound=1)
flags.DEFINE_integer("bound_draws", None, "draws of the estimators elbo and chain_elbo", lower_bound=1)
flags.DEFINE_bool("float64", False, "the likelihood's state in float64")
flags.DEFINE_string("images", None, "a folder of pictures or an .npz to score instead of the run's own data")
flags.DEFINE_string("compare", None, "train, test, a folder or an .npz: a second set to score")
flags.DEFINE_enum("split", "test", SPLITS, "which examples to score")
flags.DEFINE_integer("num_images", None, "score the first so many examples", lower_bound=1)

ESTIMATOR_FLAGS = {
    "ode": ("method", "rtol", "atol", "max_evaluations", "steps", "divergence", "probes", "probe_kind", "t_min", "draws",
            "clock"),
    "elbo": ("bound_draws", "t_min", "draws"),
    "chain_elbo": ("bound_draws", "variance", "steps", "draws"),
}
MODE_FLAGS: dict[str, tuple[str, ...]] = {
    "train": ("checkpoint",),
    "sample": ("checkpoint", "sampler", "num_samples", "precision", "seed", "ema", "batch_size", *SAMPLER_FLAGS),
    "likelihood": ("checkpoint", "estimator", *sorted({flag for names in ESTIMATOR_FLAGS.values() for flag in names}),
                   "float64", "split", "images", "compare", "num_images", "seed", "ema", "batch_size"),
    "convert": ("checkpoint", "output", "format", "ema"),
    "report": (),
}


def usage() -> str:
    """The text of --help."""
    hidden = ("points", "t_end", "denoise", "grid")
    shown = {name: {k: v.default for k, v in sampler_options(name).items() if k not in hidden} for name in SAMPLERS}
    takes = "\n".join(textwrap.fill(f"{name:<20}" + " ".join(f"--{k}={v}" for k, v in options.items()), 118,
                                    initial_indent="    ", subsequent_indent=" " * 24, break_on_hyphens=False)
                      for name, options in shown.items())
    configs = textwrap.fill(" ".join(config_names()), 118, initial_indent=" " * 24, subsequent_indent=" " * 24)
    return f"""\
Scorefield: score-based generative models, trained, sampled and scored.

  python main.py --config configs/vp_digits.py --mode train
  python main.py --config configs/vp_digits.py --mode sample --sampler dpm_solver++ --steps 20 --num_samples 64
  python main.py --config configs/vp_digits.py --mode likelihood --method exponential

Every mode
  --config FILE         configs/NAME.py, and NAME one of
{configs}
  --config.FIELD=VALUE  any field of configs/default.py, e.g. --config.training.batch_size=64
                        SDEs (--config.sde.name): {', '.join(SDES)}
                        data (--config.data.dataset, --config.data.path): {', '.join(DATASETS)}
  --mode MODE           train        train, or go on where the folder's run stopped
                        sample       writes samples/<sampler>.png, .npz (array x) and .json
                        likelihood   writes likelihood/summary.json, .csv and .png: bits/dim, standard error, evaluations
                        convert      writes a run or --checkpoint to --output in another format
                        report       prints the table of what the folder holds
  --workdir DIR         the run's folder; runs/<config's name> unless given. It is enough without --config
  --checkpoint SOURCE   start from a .safetensors, a .pth of score_sde_pytorch, a folder of diffusers' UNet2DModel, or
                        owner/name of the Hugging Face hub: it becomes the run's folder, runs/<its name> unless given
  --device DEVICE       auto (cuda, else mps, else cpu), or one of them
  --seed N  --[no]ema  --batch_size N  --[no]debug

Mode sample
  --sampler NAME  --num_samples N  --precision fp32|bf16|auto, and what the sampler takes, with its defaults:
{takes}
  and --t_end T (the SDE's own); --denoise (end with a denoising step; not edm); --grid NAME (not ode and torchsde):
    {', '.join(GRIDS)}, or times such as 1,0.5,0.1

Mode likelihood
  --estimator ode     --method {'|'.join(METHODS)}
                      --rtol --atol --max_evaluations as above  --clock {'|'.join(CLOCKS)}
                      or, with --method exponential, --steps N (30)
                      --divergence {'|'.join(DIVERGENCES)}  --probes N  --probe_kind {'|'.join(PROBE_KINDS)}  --t_min T
              elbo    --bound_draws N --t_min T  chain_elbo  --bound_draws N --steps N --variance {'|'.join(VARIANCES)}
  --draws K (dequantisations of each example)  --[no]float64  --split test|train  --num_images N
  --images PATH         a folder of pictures or an .npz, instead of the split    --compare test|train|PATH  a second set

Mode convert
  --output PATH         a new .safetensors, .pth or folder   --format {'|'.join(FORMATS)}  --[no]ema

Under torchrun the processes share the work: mode train each batch, mode likelihood the batches."""


def check_flags() -> None:
    """ValueError where the flags do not go together, whatever the run."""
    if FLAGS.mode is None:
        raise ValueError("say what to do with --mode train, sample, likelihood, convert or report (--help shows more)")
    if FLAGS.mode not in ("train", "likelihood") and launched().size > 1:
        raise ValueError(f"--mode {FLAGS.mode} runs in one process; torchrun is for --mode train and likelihood")
    if FLAGS.workdir == "":
        raise ValueError("--workdir must name a folder, got ''")
    if FLAGS.config is None and not FLAGS.workdir and not FLAGS.checkpoint:
        raise ValueError("give --config FILE, the --workdir of a run or a --checkpoint (--help shows more)")
    for name in sorted({flag for names in MODE_FLAGS.values() for flag in names}):
        if FLAGS[name].present and name not in MODE_FLAGS[FLAGS.mode]:
            modes = [mode for mode, names in MODE_FLAGS.items() if name in names]
            raise ValueError(f"--mode {FLAGS.mode} takes no --{name}; it belongs to --mode {' and '.join(modes)}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping; numbers that are not finite, which JSON does not know, become null."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: known(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_atomically(path, lambda file: file.write((json.dumps(known(content), indent=2) + "\n").encode()))


def train(command: Command) -> None:
    """Train in the run's folder, or go on there."""
    config, run = command.config, command.run
    dataset = command.dataset()
    resolved = config.to_dict() | {"config": command.name, "shape": list(dataset.shape), "levels": dataset.levels}
    experiment = {f: v for f, v in all_fields(effective(resolved)).items() if not f.startswith("training.")}
    world = launched()
    if world.first:      # it alone, since under torchrun the others may already see what it writes
        command.refuse_other_experiment(experiment)
    if config.training.batch_size % world.size:
        raise ValueError(f"--config.training.batch_size={config.training.batch_size} must be divisible by "
                         f"the number of processes, {world.size}")

    sampler = make_sampler("euler_maruyama", steps=config.training.sample_steps)
    if command.checkpoint is not None and command.checkpoint.step >= config.training.steps:
        raise ValueError(f"{FLAGS.checkpoint} is at step {command.checkpoint.step} already; to train on, raise "
                         f"--config.training.steps, which is {config.training.steps}")
    command.write_imported()

    def preview(model: Any) -> torch.Tensor:
        n = 64 if dataset.levels is not None else 2000
        samples = draw(model, sampler, dataset.shape, n, seed=0, batch_size=n, device=command.device, progress=False)
        return picture(samples.x, dataset.levels, config.data)

    # Setting up reads the newest checkpoint and finds what is wrong before anything is written.
    trainer = Trainer(config, dataset, run, command.device, preview)
    if trainer.step >= config.training.steps:
        message = f"{trainer.checkpoint} is at step {trainer.step} already; to train on, raise --config.training.steps"
        if trainer.step > config.training.steps:
            raise ValueError(f"{message}, which is {config.training.steps}")
        print(message)
        return
    if world.first:
        run.mkdir(parents=True, exist_ok=True)
        stored = command.stored or {}
        kept = {key: stored[key] for key in ("origin", "num_scales", "reduce_mean") if key in stored}      # of an import
        write_json(run / "config.json", resolved | kept)
        parameters = sum(p.numel() for p in trainer.parameters)
        print(f"{dataset.name}: {len(dataset.train)} examples of shape {dataset.shape}, {len(dataset.test)} held out; "
              f"{trainer.denoiser.sde}; {parameters:,} parameters; {command.device}"
              + (f"; goes on from {trainer.checkpoint}" if trainer.checkpoint else ""), flush=True)
    start = time.perf_counter()
    try:
        checkpoint = trainer.train()
    except Interrupted as stopped:
        print(f"\ninterrupted: {run} holds step {stopped.step} of {config.training.steps}; the same command goes on",
              file=sys.stderr)
        sys.exit(130)
    if world.first:
        print(f"wrote {checkpoint}, {run / 'stats.jsonl'} and {run / 'tensorboard'} in "
              f"{time.perf_counter() - start:.0f} s")


def picture(x: torch.Tensor, levels: int | None, data: Any) -> torch.Tensor:
    """Samples as one picture: a grid of images, or points over the data."""
    if levels is None:
        train = load_dataset(data).train
        return plots.points_over_data(x, train[torch.arange(min(len(train), 2000))])
    return plots.image_grid(quantize(x, levels, data.low, data.high, data.dequantize), levels)


def sample(command: Command) -> None:
    """Draw samples: samples/<sampler>.npz, .png and .json in the run's folder."""
    options = command.given(*SAMPLER_FLAGS)
    if "," in options.get("grid", ""):
        options["grid"] = parse_times(options["grid"])
        if "steps" in options:
            raise ValueError("a list of times fixes the number of steps; leave out --steps")
    assert command.stored is not None
    shape, levels = tuple(command.stored["shape"]), command.stored["levels"]
    points = levels is None
    if points and FLAGS.sampler == "ode":
        options["points"] = 65
    sampler = make_sampler(FLAGS.sampler, **options)
    denoiser = command.denoiser()
    prepare_sampling(denoiser.network, FLAGS.precision, command.device)
    sampler.times(denoiser)                                 # refuses a grid that does not fit
    command.write_imported()
    stem = command.run / "samples" / FLAGS.sampler
    stem.parent.mkdir(exist_ok=True)
    samples = draw(denoiser, sampler, shape, FLAGS.num_samples, FLAGS.seed, FLAGS.batch_size,
                   command.device, trajectory=points)
    write_atomically(stem.with_suffix(".npz"), lambda file: np.savez_compressed(file, x=samples.x.numpy()))
    plots.save_png(stem.with_suffix(".png"), picture(samples.x, levels, command.config.data))
    written = [".npz", ".png", ".json"]
    if samples.first.trajectory is not None:
        panels = plots.trajectory_panels(samples.first.trajectory.cpu(), samples.first.times.tolist())
        plots.save_png(stem.with_name(f"{stem.name}_trajectory.png"), panels)
        written.append("_trajectory.png")
    write_json(stem.with_suffix(".json"), {
        "sampler": FLAGS.sampler, "settings": {k: v for k, v in vars(sampler).items() if k != "points"},
        "num_samples": FLAGS.num_samples, "nfe": samples.nfe, "seconds": round(samples.seconds, 3), "seed": FLAGS.seed,
        "ema": FLAGS.ema, "precision": FLAGS.precision, "checkpoint": str(newest_checkpoint(command.run)),
    })
    print(f"{FLAGS.num_samples} samples by {FLAGS.sampler}: {samples.nfe:g} evaluations each, {samples.seconds:.1f} s; "
          f"wrote {stem}{{{','.join(written)}}}")


def parse_times(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--grid takes a name ({', '.join(GRIDS)}) or a list of times such as 1,0.5,0.1; got {text!r}"
                         ) from None


def likelihood_settings(command: Command) -> dict[str, Any]:
    """What the estimator takes of the command line; ValueError for flags that are not its own."""
    own = ESTIMATOR_FLAGS[FLAGS.estimator]
    for name in sorted({flag for names in ESTIMATOR_FLAGS.values() for flag in names} - set(own)):
        if FLAGS[name].present:
            takers = " and ".join(estimator for estimator, names in ESTIMATOR_FLAGS.items() if name in names)
            raise ValueError(f"--estimator {FLAGS.estimator} takes no --{name}; it belongs to --estimator {takers}")
    settings = command.given(*(name for name in own if name != "draws"))
    if FLAGS.images is not None and FLAGS["split"].present:
        raise ValueError("--images are scored instead of a split; leave out --split, or give it to --compare")
    if FLAGS.images in ("", *SPLITS) or FLAGS.compare == "":
        raise ValueError(f"--images={FLAGS.images!r} must be a folder of pictures or an .npz, and --compare one too or "
                         f"{' or '.join(SPLITS)}")
    if FLAGS.float64 and command.device.type == "mps":
        raise ValueError("device 'mps' has no float64; leave out --float64 or choose another --device")
    return settings


def likelihood(command: Command) -> None:
    """Bits/dim of a split or of a user's images: likelihood/summary.json, .csv and .png in the run's folder.

    Batches that are done stay in likelihood/partial until all are, so a killed evaluation goes on where it stopped, and
    the processes of torchrun meet there.
    """
    settings = likelihood_settings(command)
    command.write_imported()
    checkpoint, denoiser = newest_checkpoint(command.run), command.denoiser()
    set_memory_format(denoiser, command.device, denoiser.autocast)
    assert checkpoint is not None
    identity = likelihood_identity(command, settings, checkpoint)
    world = launched()
    sources = [FLAGS.images or FLAGS.split, *([FLAGS.compare] if FLAGS.compare else [])]
    evaluations, names = [], []
    for source in sources:
        dataset, files = scored_data(command, source)
        key = hashlib.sha256(json.dumps([identity, place(source)], sort_keys=True).encode()).hexdigest()[:16]
        # A model of dequantised data fills each level's cell: there the chain's bound is that of the density.
        dense = dataset.levels is None or command.config.data.dequantize
        more = {"discrete": not dense} if FLAGS.estimator == "chain_elbo" else {}
        evaluations.append(Evaluation(
            denoiser, dataset, command.config.data.low, command.config.data.high,
            split="train" if source == "train" else "test", n=FLAGS.num_images, seed=FLAGS.seed,
            batch_size=FLAGS.batch_size, device=command.device, draws=FLAGS.draws, estimator=FLAGS.estimator,
            float64=FLAGS.float64, folder=command.run / "likelihood" / "partial" / key, world=world, **settings, **more))
        names.append(files)
    meet(world, [e.folder for e in evaluations if e.folder], command.device)

    steps, note = getattr(denoiser.sde, "steps", None), None
    if steps is not None and FLAGS.estimator != "chain_elbo":
        start = f"1/{steps}" if FLAGS.t_min is None else f"{FLAGS.t_min:g}"
        note = f"trained on a discrete chain of {steps} steps, scored through the chain's SDE, t from {start}"
    for e in evaluations:
        if world.first and e.resumed:
            print(f"goes on: {e.resumed} of {len(e.units)} batches were done", flush=True)
        try:
            e.run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(e.kept()) from None
    if world.first:
        write_scores([e.result() for e in evaluations], sources, names, {
            "estimator": FLAGS.estimator, "levels": evaluations[0].dataset.levels, "settings": settings,
            "float64": FLAGS.float64, "batch_size": FLAGS.batch_size, "seed": FLAGS.seed, "ema": FLAGS.ema,
            "checkpoint": str(checkpoint), "processes": world.size, **({"note": note} if note else {}),
        }, command.run / "likelihood")
        for e in evaluations:
            e.clear()


def likelihood_identity(command: Command, settings: dict[str, Any], checkpoint: Path) -> list[Any]:
    """All that a score depends on but the data, whose contents each batch remembers."""
    with open(checkpoint, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    results = {k: v for k, v in settings.items() if k != "max_evaluations"}      # which may be raised on the way
    return [weights, command.stored, command.config.data.dequantize, command.device.type, results, FLAGS.estimator,
            FLAGS.draws, FLAGS.float64, FLAGS.seed, FLAGS.ema, FLAGS.batch_size, FLAGS.num_images]


def scored_data(command: Command, source: str) -> tuple[Dataset, list[str] | None]:
    """A split's data set, or the images at a path with their file names; ValueError where they do not fit the network."""
    stored, data = command.stored, command.config.data
    assert stored is not None
    if source not in SPLITS:
        flag = "--images" if source == FLAGS.images else "--compare"
        return load_images(source, tuple(stored["shape"]), stored["levels"], data.low, data.high, data.dequantize, flag)
    try:
        dataset = command.dataset()
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{error}; or score pictures of your own by --images") from None
    other_levels = dataset.levels != stored["levels"] and not untouched(stored, command.run)      # an import's were assumed
    if list(dataset.shape) != stored["shape"] or other_levels:
        raise ValueError(f"data set {dataset.name!r} has examples of shape {dataset.shape} and {dataset.levels} levels, the "
                         f"run's network takes {tuple(stored['shape'])} and {stored['levels']} (--config.data.path)")
    return dataset, None


def place(source: str) -> str:
    """The absolute path of images; a split's name stays."""
    return source if source in SPLITS else str(Path(os.path.expanduser(source)).resolve())


def write_scores(scores: list[Score], sources: list[str], names: list[list[str] | None], described: dict[str, Any],
                 folder: Path) -> None:
    """The .csv, .png and .json of one or two scored sets, and a line of each."""
    labels = [source if source in SPLITS else f"images_{Path(place(source)).stem}" for source in sources]
    name = "_".join([FLAGS.estimator] * (FLAGS.estimator != "ode") + ["_vs_".join(labels)])
    stem = folder / ("summary" if name == "test" else name)
    folder.mkdir(exist_ok=True)
    rows = [({"set": source} if len(scores) > 1 else {}) | row
            for score, source, files in zip(scores, sources, names, strict=True) for row in score.rows(files)]
    write_csv(Path(f"{stem}.csv"), rows)
    titles = labels if len(set(labels)) == len(labels) else sources
    plots.save_png(Path(f"{stem}.png"), plots.histogram(
        {title: score.bits_per_dim for title, score in zip(titles, scores, strict=True)}, "bits/dim"))
    first, compared = scores[0], {}
    if len(scores) > 1:
        compared = {"compare": {"source": sources[1], **scores[1].summary()},
                    "auroc": auroc(first.bits_per_dim, scores[1].bits_per_dim)}
    write_json(Path(f"{stem}.json"), first.summary() | {"images" if FLAGS.images else "split": sources[0]}
               | compared | described)
    for score, source in zip(scores, sources, strict=True):
        iw = score.bits_per_dim_iw
        tighter = "" if iw is None else f" ({float(iw.mean()):.4f} importance-weighted)"
        what = f"{source} examples" if source in SPLITS else f"examples of {source}"
        print(f"{len(score.bits_per_dim)} {what}: {score.mean:.4f} +- {score.standard_error:.4f} bits/dim{tighter}, "
              f"{score.nfe:g} evaluations, {score.seconds:.1f} s")
    notes = [described["note"]] if "note" in described else []
    notes += [f"AUROC {compared['auroc']:.4f}"] if compared else []
    print("; ".join([*notes, f"wrote {stem}{{.csv,.png,.json}}"]))


def meet(world: World, folders: list[Path], device: torch.device) -> None:
    """Under torchrun, wait until all have read what is done, before any adds to it; ValueError where they do not agree.

    The group is left again at once: one may work far longer than another, and a group gives up waiting after minutes.
    """
    if world.size == 1:
        return
    group = connect(device)
    if group.first:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    group.any(False, device)
    apart = group.any(not all(folder.is_dir() for folder in folders), device)
    group.leave()
    if apart:
        raise ValueError("the processes of torchrun must share the run's folder and see one newest checkpoint (--workdir)")


def convert(command: Command) -> None:
    """Write a run or --checkpoint to --output: a .safetensors, a .pth, a folder of diffusers or of a run."""
    if not FLAGS.output:
        raise ValueError("say where to with --output: a .safetensors, a .pth, or a folder with --format diffusers or run")
    output = Path(os.path.expanduser(FLAGS.output))
    kind = FLAGS.format or SUFFIXES.get(output.suffix)
    if kind is None:
        raise ValueError(f"--output={FLAGS.output!r} does not tell its format; give --format {', '.join(FORMATS)}")
    if SUFFIXES.get(output.suffix, kind) != kind or (kind in SUFFIXES.values() and output.suffix not in SUFFIXES):
        ends = {kind: f"a name that ends in {suffix}" for suffix, kind in SUFFIXES.items()}
        raise ValueError(f"--format {kind} writes {ends.get(kind, 'a folder')}, got --output={FLAGS.output!r}")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"{output} is there already; choose another --output")
    checkpoint = command.checkpoint or read_checkpoint(command.run)
    lost = FORMATS[kind].write(checkpoint, output, FLAGS.ema)
    one = "averaged" if FLAGS.ema or checkpoint.raw is None else "raw"
    sets = "raw and averaged" if kind in ("run", "score_sde") and FLAGS.ema and checkpoint.raw is not None else one
    print(f"wrote {output} ({kind}, {sets} weights) from {describe(checkpoint)}{lost and '; '}{lost}")


def show_report(command: Command) -> None:
    """Print the table of what the run's folder holds."""
    print(report(command.run))


MODES = {"train": train, "sample": sample, "likelihood": likelihood, "convert": convert, "report": show_report}


def split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The command line without its --config.FIELD=VALUE (or --config.FIELD VALUE), and those as pairs."""
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        if word.lstrip("-").startswith("config.") and word.startswith("-"):
            field, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
            if not equals:
                value = next(words, "")
            overrides.append((field, value))
        else:
            rest.append(word)
    return rest, overrides


def main(argv: list[str]) -> None:
    """One command. Raises what it meets; `run` turns the errors of users into one line."""
    words, overrides = split_overrides(argv)
    unexpected = FLAGS(words)[1:]
    if unexpected:
        raise ValueError(f"unexpected argument {unexpected[0]!r}; flags start with -- (--help shows them)")
    check_flags()
    MODES[FLAGS.mode](Command(overrides))


def run() -> None:
    """The entry point: exit code 0, 1 after an error of the user's, 130 after Ctrl-C."""
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(sys.argv[1:]):
        print(usage())
        return
    try:
        main(sys.argv)
    except KeyboardInterrupt as stopped:
        print(": ".join(["\ninterrupted", *map(str, filter(None, stopped.args))]), file=sys.stderr)
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: out of memory on the device ({str(error).splitlines()[0]}); lower --batch_size, or in "
                 "training --config.training.batch_size")
    except (ValueError, OSError, ArithmeticError, RuntimeError, flags.Error) as error:
        if "--debug" in sys.argv or (type(error) is RuntimeError and "DefaultCPUAllocator" not in str(error)):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    run()
