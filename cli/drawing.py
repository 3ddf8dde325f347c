"""What a command line says of drawing samples: the sampler, its options, the guide, and where the samples lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.direction import bound, identity_of, suffix_of, way_of
from scorefield.cli.flags import COMPILE, Flag, flags_of
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.guide import Guide
from scorefield.cli.tuned import require_tuned, tuned_for
from scorefield.numerics import stopping
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.data import Codec
    from scorefield.evaluation.fitted import Fit
    from scorefield.evaluation.sample_set import SampleSet, Stored
    from scorefield.models import Denoiser, ScoreModel
    from scorefield.numerics.processes import World
    from scorefield.samplers import Result, Sampler

SAMPLER = Flag("sampler", str, "auto", "which sampler; of a student by default its own")
PRECISION = Flag("precision", str, "fp32", "precision of the network's arithmetic", ("auto", "fp32", "bf16"))
FLAGS = (SAMPLER, PRECISION, COMPILE, *GUIDANCE)
POINTS = 65      # number of times at which the trajectory of an adaptive solver is plotted


def options() -> Mapping[str, Mapping[str, Flag]]:
    """The options of each sampler, without `points`, which is set for plots of trajectories."""
    from scorefield.samplers import EVERY

    return {name: flags_of(sampler, without=("points",)) for name, sampler in EVERY.items()}


def settings_of(command: Command) -> dict[str, Any]:
    """The given options of the chosen sampler; ArgumentError for options of other samplers."""
    return parsed_options(command.asked.values["sampler"], command.asked.texts)


def parsed_options(name: str, given: Mapping[str, str | bool]) -> dict[str, Any]:
    """Options of a sampler from their texts; ArgumentError for those of other samplers."""
    from scorefield.samplers import GRIDS, sampler_options

    texts = dict(given)
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


def precision_of(command: Command) -> str:
    """fp32 or bf16, what auto chose, and whether the network is compiled, which rounds otherwise: fp32_compiled."""
    from scorefield.numerics.devices import autocast_dtype

    values = command.asked.values
    word = "fp32" if autocast_dtype(values["precision"], command.device) is None else "bf16"
    return f"{word}_compiled" if values["compile"] else word


def prepare(network: Any, command: Command, batched: bool = False) -> None:
    """Make a network ready to draw in the arithmetic that the command line asks for; say so if that is slow here.

    batched  see prepare_sampling
    """
    from scorefield.numerics.devices import prepare_sampling, require_compiler, slow_arithmetic

    values, device = command.asked.values, command.device
    if values["compile"]:
        require_compiler(device)
    if slow := slow_arithmetic(values["precision"], device):
        command.say(slow)
    prepare_sampling(network, values["precision"], device, values["compile"], batched)


@dataclass(frozen=True, eq=False)
class Drawing:
    """Samples as a command line asks for them, from one model of its run.

    model  with the precision that was asked for
    step   of the checkpoint, if it is not the newest
    """

    command: Command
    sampler: Sampler
    guide: Guide
    model: Denoiser
    step: int | None = None

    @property
    def checkpoint(self) -> Path:
        """The file whose weights the model has; the run must have been written."""
        from scorefield.checkpoints.formats.run import checkpoints_of

        return self.command.newest if self.step is None else dict(checkpoints_of(self.command.run))[self.step]

    @cached_property
    def fit(self) -> Fit | None:
        """The fitted variance of the checkpoint, if the sampler needs one."""
        from scorefield.cli.fit_variance import fit_for

        own = None if self.step is None else self.checkpoint
        return fit_for(self.command, vars(self.sampler), self.model, self.guide.labels is not None, own)

    @property
    def known(self) -> ScoreModel:
        """The model, with its variance if the sampler needs that."""
        return self.model if self.fit is None else self.fit.model(self.model)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as data."""
        return self.command.shape

    @property
    def codec(self) -> Codec:
        return self.command.codec

    @property
    def precision(self) -> str:
        """fp32, bf16, or one of these with _compiled."""
        return precision_of(self.command)

    @property
    def stem(self) -> Path:
        """The path of the samples' files without their suffixes."""
        from scorefield.evaluation.names import stem_of_samples

        values = self.command.asked.values
        return self.command.run / "samples" / stem_of_samples(
            values["sampler"], self.sampler, suffix_of(self.command) + self.guide.suffix, seed=values["seed"],
            ema=values["ema"], precision=self.precision, step=self.step, batch_size=values["batch_size"])

    @property
    def folder(self) -> Path:
        """Where finished batches lie until all are done."""
        return self.file(".parts")

    def file(self, suffix: str) -> Path:
        from scorefield.evaluation.names import with_suffix

        return with_suffix(self.stem, suffix)

    @cached_property
    def identity(self) -> list[Any]:
        """All that the samples depend on, beside what `generate` adds itself."""
        from scorefield.numerics.files import sha256_of

        values = self.command.asked.values
        of = [sha256_of(self.checkpoint), self.command.stored, self.precision, values["ema"], self.guide.identity]
        of += identity_of(self.command)
        return of if self.fit is None else [*of, self.fit.digest]

    @cached_property
    def key(self) -> str:
        """The identity of the set of samples."""
        from scorefield.evaluation.generate import identity_of

        values = self.command.asked.values
        return identity_of(self.sampler, self.codec.event(self.shape), self.codec, values["seed"], values["batch_size"],
                           self.command.device, self.identity)

    @property
    def described(self) -> dict[str, Any]:
        """The settings, for a record of the samples."""
        from scorefield.evaluation.names import changed

        values, way = self.command.asked.values, way_of(self.command)
        settings = {name: value for name, value in self.sampler.settings.items() if name != "points"}
        return {"sampler": values["sampler"], "settings": settings,
                "options": changed(self.sampler, without=("points",)), **({"direction": way} if way else {}),
                **self.guide.described, "seed": values["seed"],
                "ema": values["ema"], "precision": self.precision, "batch_size": values["batch_size"]}

    def weights(self) -> Denoiser:
        """The model of this drawing's checkpoint in float32."""
        from scorefield.checkpoints import read_checkpoint

        model = read_checkpoint(self.checkpoint).denoiser(self.command.asked.values["ema"]).to(self.command.device)
        return bound(self.command, model)

    def with_weights(self) -> Drawing:
        """This drawing with the model of its checkpoint."""
        from scorefield.samplers import FITTED

        if self.step is None:
            return self
        if self.command.asked.values["sampler"] in FITTED:
            require_tuned(self.sampler, self.command, self.guide, self.checkpoint)
        model = self.weights()
        prepare(model.network, self.command)
        return replace(self, model=model)

    def existing(self) -> Stored | None:
        """The finished samples of this drawing, however many."""
        from scorefield.evaluation.sample_set import find_stored

        return find_stored(self.file(".npz"), self.key, self.command.asked.values["batch_size"])

    def begun(self, n: int, stored: Stored | None) -> SampleSet:
        """The first n samples, with what is there of them in `stored` and in the folder.

        Processes that share them must meet after this (numerics.processes.meet), before one of them draws: the first one
        removes the batches once it has them all.
        """
        from scorefield.evaluation.generate import begin

        return begin(n, self.key, self.command.asked.values["batch_size"], self.folder, stored)

    def draw(self, samples: SampleSet, world: World, first: Callable[[Result], None] | None = None) -> SampleSet:
        """The set that has begun, with this process's share of what was missing; the first process waits for the rest."""
        from scorefield.evaluation.generate import generate

        values, device = self.command.asked.values, self.command.device
        return generate(self.guide.of(self.known, device), self.sampler, self.codec.event(self.shape), self.codec,
                        len(samples), values["seed"], values["batch_size"], device, self.folder, world,
                        self.guide.of_samples, self.identity, first=first, begun=samples)

    def write(self, samples: SampleSet) -> None:
        """Write the finished set as one .npz, unless one holds it already, and its record; say what they replace."""
        from scorefield.evaluation.generate import kept, saying
        from scorefield.numerics.files import write_json

        path, stored = self.file(".npz"), samples.stored
        if stored is None or stored.n < len(samples):
            lost = "" if stored is not None or not path.exists() else self._described_there()
            try:
                with stopping.keeping(lambda: kept(samples)):
                    samples.write(path)
            except OSError as error:
                raise saying(error, kept(samples)) from error
            if lost:
                print(f"{path} held {lost}; these samples have replaced them")
            n, nfe, seconds = len(samples), samples.nfe, samples.seconds
        else:
            n, nfe, seconds = stored.n, float(stored.nfe.mean()), float(stored.seconds.sum())
        write_json(self.file(".json"), {**self.described, "num_samples": n, "nfe": nfe, "seconds": round(seconds, 3),
                                        "checkpoint": str(self.checkpoint)})

    def _described_there(self) -> str:
        """What the file of samples of another identity holds, in words."""
        from scorefield.evaluation.sample_set import Stored
        from scorefield.numerics.files import read_json

        try:
            n = Stored(self.file(".npz"), 1).n
        except Exception:      # the parsers of damaged files raise errors of every type
            return "a damaged set of samples"
        try:
            of = f", drawn from {read_json(self.file('.json'))['checkpoint']} as it was then"
        except (OSError, ValueError, KeyError, TypeError):
            of = ""
        return f"{n} samples of other weights or settings{of}"

    def clear(self) -> None:
        """Remove the batches; the .npz holds them now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def drawing_of(command: Command) -> Drawing:
    """The drawing of a command line from its run's newest checkpoint; ArgumentError for what does not fit together."""
    from scorefield.cli.guide import guide_of
    from scorefield.evaluation.array_plots import in_plane
    from scorefield.samplers import FITTED, make_sampler

    values, own = command.asked.values, _of_student(command)
    settings = own | settings_of(command)
    if values["sampler"] == "ode" and in_plane(command.shape):
        settings["points"] = POINTS
    tuned = values["sampler"] in FITTED
    sampler, model = None if tuned else make_sampler(values["sampler"], **settings), command.denoiser()
    prepare(model.network, command)
    guide = guide_of(command, model)
    sampler = sampler or tuned_for(command, guide, values["sampler"], settings)
    drawing = Drawing(command, sampler, guide, model)
    sampler.check(model, sampler.times(drawing.known))      # refuses a grid that does not fit
    return drawing


def _of_student(command: Command) -> dict[str, Any]:
    """Of a student's run: the options of its own sampler, which is the one to use if the command line names none."""
    from scorefield.models.build import build_sde
    from scorefield.models.student import student_of

    values, stored = command.asked.values, command.stored
    assert stored is not None
    student = student_of(stored.get("training") or {}, build_sde(stored))
    if student is None or "sampler" in command.asked.given:
        return {}
    values["sampler"] = student.sampler      # type: ignore[index]      # a dict, as resolve_average takes it
    return dict(student.options)
