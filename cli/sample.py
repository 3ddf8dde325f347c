"""Mode sample: draw samples from a run or a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorefield.cli.direction import DRAWN, end_of
from scorefield.cli.drawing import PRECISION, SAMPLER, Drawing, drawing_of
from scorefield.cli.drawing import options as options
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, COMPILE, EMA, SEED, STRICT, Flag
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.data import Dataset
    from scorefield.evaluation.sample_set import SampleSet
    from scorefield.samplers import Result

SUMMARY = "writes samples/NAME.png (of points _trajectory.png, too), .npz and .json; NAME says what is no default"
FLAGS = (
    CHECKPOINT,
    SAMPLER,
    DRAWN,
    Flag("num_samples", int, 64, "how many samples; more of the same settings go on from those that are there"),
    Flag("png", bool, False, "write each picture to a file of its own, too: samples/NAME/00000000.png and so on; of "
                             "samples with labels, in a folder for each class"),
    PRECISION, COMPILE,
    *GUIDANCE,
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)


def run(command: Command) -> None:
    """Draw samples and write samples/NAME.npz, .png and .json in the run's folder.

    Finished batches stay in samples/NAME.parts until all are done. So a killed command continues where it stopped, and the
    processes of torchrun share the work there.
    """
    from scorefield.evaluation.pictures import refuse_foreign
    from scorefield.numerics.processes import launched, meet

    values, world, drawing = command.asked.values, launched(), drawing_of(command)
    if values["png"]:
        if drawing.codec.levels is None or drawing.shape[0] not in (1, 3):
            raise ArgumentError(f"examples of shape {drawing.shape} and {drawing.codec.levels or 'no'} levels are no "
                                "pictures in grey or colour; leave out png", "png")
        refuse_foreign(drawing.stem)
    command.write_imported()
    stored = drawing.existing()
    have = 0 if stored is None else stored.n
    begun = drawing.begun(max(values["num_samples"], have), stored)
    meet(world, [drawing.folder], command.device, drawing.key)
    samples = drawing.draw(begun, world, _plot_trajectory(drawing, have))
    if world.first:
        _write(drawing, samples, have)


def _plot_trajectory(drawing: Drawing, have: int) -> Any:
    """What plots the trajectories of the first batch of points; None if there is nothing to plot, or it is there."""
    from scorefield.evaluation import plots
    from scorefield.evaluation.array_plots import in_plane

    path = drawing.file("_trajectory.png")
    if not in_plane(drawing.shape) or (have and path.exists()):
        return None

    def plot(first: Result) -> None:
        assert first.trajectory is not None
        states = first.trajectory.cpu()
        states = drawing.codec.decode(states.flatten(0, 1)).reshape(states.shape)
        plots.save_png(path, plots.trajectory_panels(states, first.times.tolist()))

    return plot


def _data_of(command: Command) -> Dataset | None:
    """The run's data, to be shown beside samples; None, said in a line, if they cannot be read: samples do not need them."""
    if command.config.data.dataset == "arrays":
        return None
    try:
        return end_of(command, command.dataset())
    except (OSError, ValueError) as error:
        print(f"the picture of the samples has no data beside them: {error}")
        return None


def _write(drawing: Drawing, samples: SampleSet, have: int) -> None:
    """Write the files of a whole set, of which `have` were there before, and print a line."""
    from scorefield.evaluation.pictures import write_pictures
    from scorefield.evaluation.plots import save_png
    from scorefield.evaluation.preview import picture_of_data, shown

    values, guide, n = drawing.command.asked.values, drawing.guide, len(samples)
    drawing.write(samples)
    command = drawing.command
    behind = _data_of(command) if drawing.codec.levels is None else None
    x, label = samples.first(shown(drawing.codec, drawing.shape))
    save_png(drawing.file(".png"), picture_of_data(x, drawing.codec, behind, label, guide.names))
    written = [".npz", ".png", ".json"] + ["_trajectory.png"] * drawing.file("_trajectory.png").exists()
    if values["png"]:
        assert drawing.codec.levels is not None
        write_pictures(drawing.stem, samples, drawing.codec.levels, guide.names)
        written.append("/")
    drawing.clear()
    before = f", {have} of them drawn before" if 0 < have < n else ", drawn before" if have else ""
    print(f"{n} samples by {values['sampler']}{before}: {samples.nfe:g} evaluations each, {samples.seconds:.1f} s; "
          f"wrote {drawing.stem}{{{','.join(written)}}}")
    if n > values["num_samples"]:
        print(f"{n} samples of these settings were there and stay; the first {values['num_samples']} are those asked for")
