"""Mode sample: draw samples from a run or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import BATCH_SIZE, CHECKPOINT, EMA, SEED, Flag, flags_of
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "writes samples/<sampler>.png, .npz (array x) and .json; labels and guidance become a part of the name"
FLAGS = (
    CHECKPOINT,
    Flag("sampler", str, "auto", "which sampler"),
    Flag("num_samples", int, 64, "how many samples"),
    Flag("precision", str, "fp32", "precision of the network's arithmetic", ("auto", "fp32", "bf16")),
    *GUIDANCE,
    SEED, EMA, BATCH_SIZE,
)
POINTS = 65      # number of times at which the trajectory of an adaptive solver is plotted


def options() -> Mapping[str, Mapping[str, Flag]]:
    """The options of each sampler, without `points`, which this mode sets for its plots of trajectories."""
    from scorefield.samplers import SAMPLERS

    return {name: flags_of(sampler, without=("points",)) for name, sampler in SAMPLERS.items()}


def settings_of(command: Command) -> dict[str, Any]:
    """The given options of the chosen sampler; ArgumentError for options of other samplers."""
    from scorefield.samplers import GRIDS, sampler_options

    name, texts = command.asked.values["sampler"], dict(command.asked.texts)
    sampler_options(name)      # refuses an unknown name
    own = options()[name]
    for option in texts:
        if option not in own:
            raise ArgumentError(f"sampler {name!r} takes no {option!r}; it takes {', '.join(own)}", option)
    grid = texts.pop("grid", None)
    settings = {option: text if isinstance(text, bool) else own[option].value(text) for option, text in texts.items()}
    if isinstance(grid, str) and "," in grid:
        try:
            settings["grid"] = Flag("grid", tuple, (), "").value(grid)
        except ArgumentError:
            raise ArgumentError(f"grid must be a name ({', '.join(GRIDS)}) or a list of times such as 1,0.5,0.1; got "
                                f"{grid!r}", "grid") from None
        if "steps" in settings:
            raise ArgumentError("the grid is a list of times, which fixes the number of steps; leave out steps", "steps")
    elif grid is not None:
        settings["grid"] = grid
    return settings


def run(command: Command) -> None:
    """Draw samples and write samples/<sampler>.npz, .png and .json in the run's folder."""
    import numpy as np

    from scorefield.checkpoints.formats.run import newest_checkpoint
    from scorefield.cli.guide import guide_of
    from scorefield.data import codec_of
    from scorefield.evaluation import plots
    from scorefield.evaluation.draw import draw
    from scorefield.evaluation.preview import picture
    from scorefield.numerics.devices import prepare_sampling
    from scorefield.numerics.files import write_atomically, write_json
    from scorefield.samplers import make_sampler

    values, name = command.asked.values, command.asked.values["sampler"]
    settings = settings_of(command)
    assert command.stored is not None
    shape, levels = tuple(command.stored["shape"]), command.stored["levels"]
    points = levels is None
    if points and name == "ode":
        settings["points"] = POINTS
    sampler = make_sampler(name, **settings)
    denoiser = command.denoiser()
    prepare_sampling(denoiser.network, values["precision"], command.device)
    sampler.times(denoiser)                                 # refuses a grid that does not fit
    guide = guide_of(command, denoiser)
    command.write_imported()
    stem = command.run / "samples" / f"{name}{guide.suffix}"
    stem.parent.mkdir(exist_ok=True)
    samples = draw(guide.of(denoiser, command.device), sampler, shape, values["num_samples"], values["seed"],
                   values["batch_size"], command.device, trajectory=points)
    label = guide.of_samples(range(values["num_samples"]))
    arrays: dict[str, Any] = {"x": samples.x.numpy()} | ({} if label is None else {"label": label.numpy()})
    write_atomically(_file(stem, ".npz"), lambda file: np.savez_compressed(file, **arrays))
    data = command.config.data
    behind = command.dataset() if points and data.dataset != "arrays" else None
    plots.save_png(_file(stem, ".png"), picture(samples.x, codec_of(data, command.stored), behind, label, guide.names))
    written = [".npz", ".png", ".json"]
    if samples.first.trajectory is not None:
        panels = plots.trajectory_panels(samples.first.trajectory.cpu(), samples.first.times.tolist())
        plots.save_png(stem.with_name(f"{stem.name}_trajectory.png"), panels)
        written.append("_trajectory.png")
    write_json(_file(stem, ".json"), {
        "sampler": name, "settings": {k: v for k, v in vars(sampler).items() if k != "points"}, **guide.described,
        "num_samples": values["num_samples"], "nfe": samples.nfe, "seconds": round(samples.seconds, 3),
        "seed": values["seed"], "ema": values["ema"], "precision": values["precision"],
        "checkpoint": str(newest_checkpoint(command.run)),
    })
    print(f"{values['num_samples']} samples by {name}: {samples.nfe:g} evaluations each, {samples.seconds:.1f} s; "
          f"wrote {_with(stem, written)}")


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)      # a scale such as 2.5 has a point, too


def _with(stem: Path, suffixes: list[str]) -> str:
    return f"{stem}{{{','.join(suffixes)}}}"
