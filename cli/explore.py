"""Mode explore: the pictures by which the papers show what a diffusion model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scorefield.cli.drawing import PRECISION
from scorefield.cli.drawing import options as sampler_flags
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, COMPILE, EMA, SEED, STRICT, Flag, words
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.likelihood import SPLITS
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.stopping import keeping
from scorefield.numerics.text import choose

if TYPE_CHECKING:
    from scorefield.cli.command import Command


@dataclass(frozen=True)
class Picture:
    """What one picture takes from the command line.

    shows    a line of help
    takes    names of flags of the mode, beside those of the run
    sampler  its sampler unless one is chosen, with `options`; None if it takes no sampler
    owner    the sampler or estimator whose options it takes, where none can be chosen
    one_label  whether a label is one for all that is drawn
    """

    shows: str
    takes: Sequence[str]
    sampler: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None
    one_label: bool = False

    @property
    def flags(self) -> set[str]:
        return {*self.takes, *(["sampler"] if self.sampler else [])}


_MODEL = (*(flag.name for flag in (PRECISION, COMPILE, EMA, AVERAGE, BATCH_SIZE)), "seed")
_GUIDED = (*_MODEL, *(flag.name for flag in GUIDANCE))
_EXAMPLES = ("examples", "split", "images")
_NOISY = {"eta": 1.0, "steps": 100}
PICTURES: Mapping[str, Picture] = {
    "progressive": Picture("a film of the x_0 predicted along a sampler's path",
                           (*_GUIDED, "num_samples", "frames"), "auto"),
    "interpolate": Picture("the way from one example to another through several t",
                           (*_GUIDED, *_EXAMPLES, "times", "frames"), "auto", one_label=True),
    "shared_latents": Picture("completions of one x_t at several t",
                              (*_GUIDED, *_EXAMPLES, "times", "num_samples"), "ddim", _NOISY),
    "slerp": Picture("samples between latents", (*_GUIDED, "num_samples", "frames"), "ddim", one_label=True),
    "inversion": Picture("examples encoded to latents and decoded", (*_GUIDED, *_EXAMPLES, "step_counts"), "ddim",
                         one_label=True),
    "rate_distortion": Picture("rate and distortion of the chain by t",
                               (*_MODEL, *_EXAMPLES, "num_samples", "label", "clip_x0"), owner="chain_elbo"),
    "forward": Picture("x_t of examples at equally spaced t", ("seed", "frames", *_EXAMPLES)),
    "swiss_roll": Picture("points of the forward and the reverse process, and the drift",
                          (*_GUIDED, "num_samples", "frames"), "ddim", _NOISY, one_label=True),
    "langevin": Picture("naive against annealed Langevin dynamics", (*_GUIDED, "num_samples"), owner="langevin"),
    "schedule": Picture("alpha, sigma, log-SNR and beta of the run's process", ()),
}
FLAGS = (
    CHECKPOINT,
    Flag("what", str, None, "which pictures: " + "; ".join(f"{name}, {picture.shows}" for name, picture in PICTURES.items())
         + "; several with commas between them"),
    Flag("sampler", str, None, "which sampler; by default that of each picture"),
    Flag("num_samples", int, None, "how many samples, completions or examples; by default as the picture has room"),
    Flag("frames", int, None, "how many times of a strip or film, or points of an interpolation, by default 11"),
    Flag("times", tuple, None, "the times t of interpolate and shared_latents, such as 0.25,0.5,1"),
    Flag("examples", tuple[int, ...], None, "numbers of the examples in their split, such as 0,1"),
    Flag("split", str, "test", "which split of the data has the examples", SPLITS),
    Flag("images", str, None, "examples instead of the run's own: a folder of pictures, or an .npy, .npz or .csv"),
    Flag("step_counts", tuple[int, ...], None, "numbers of steps that inversion compares, by default 10,20,50,100,200"),
    Flag("clip_x0", bool, None, "keep the x_0 that rate_distortion predicts for pictures within the range of the data, as "
                                "it does by default; --noclip_x0 gives the bound of mode likelihood"),
    PRECISION, COMPILE,
    *GUIDANCE,
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
SUMMARY = "writes explore/WHAT_SETTINGS.png, .json and of films .gif: the pictures of the papers"
ALWAYS = ("what", "checkpoint", "strict")      # flags of the run, which every picture takes


def options() -> Mapping[str, Mapping[str, Flag]]:
    """The options of each sampler, and of the chain's bound, whose draws are `bound_draws` as in mode likelihood."""
    from scorefield.cli.likelihood import options as estimator_flags

    return {**sampler_flags(), "chain_elbo": estimator_flags()["chain_elbo"]}


def chosen(command: Command) -> list[str]:
    """The pictures that the command line asks for; ArgumentError unless every given flag belongs to one of them."""
    asked = command.asked
    if asked.values["what"] is None:
        raise ArgumentError(f"no picture is named; give what, one or several of {', '.join(PICTURES)}", "what")
    names = list(dict.fromkeys(words("what", asked.values["what"])))
    pictures = {name: choose("picture", PICTURES, name, "what") for name in names}
    own = {flag.name for flag in FLAGS} - {*ALWAYS}
    for name in sorted(own & asked.given):
        if not any(name in picture.flags for picture in pictures.values()):
            takers = [other for other, picture in PICTURES.items() if name in picture.flags]
            raise ArgumentError(f"{' and '.join(names)} {'takes' if len(names) == 1 else 'take'} no {name}; it belongs to "
                                f"{', '.join(takers)}", name, "what")
    if asked.values["images"] is not None and "split" in asked.given:
        raise ArgumentError("images are the examples instead of a split; leave out split", "images", "split")
    every = options()
    owners = {owner for picture in pictures.values() if (owner := _owner(command, picture))}
    for name in asked.texts:
        if not any(name in every.get(owner, {name: None}) for owner in owners):      # an unknown sampler is told of later
            able = "; ".join(f"{owner} takes {', '.join(every[owner])}" for owner in sorted(owners)) or "no sampler is used"
            raise ArgumentError(f"{' and '.join(names)} {'takes' if len(names) == 1 else 'take'} no {name}: {able}", name,
                                "what")
    return names


def _owner(command: Command, picture: Picture) -> str | None:
    """The class whose options a picture takes."""
    return picture.owner or (picture.sampler and (command.asked.values["sampler"] or picture.sampler))


def run(command: Command) -> None:
    """Draw the pictures one after the other, each with its files in explore/ of the run's folder."""
    from scorefield.cli.explore_pictures import DRAW
    from scorefield.cli.explore_task import Source, Task

    names, source = chosen(command), Source(command)
    tasks = [Task.of(source, name, PICTURES[name], _owner(command, PICTURES[name])) for name in names]
    command.write_imported()
    done: list[str] = []

    def kept() -> str:
        return "" if not done else (f"{len(done)} of {len(names)} pictures are done and kept: {', '.join(done)}; the same "
                                    f"command with --what {','.join(names[len(done):])} draws the rest")

    with keeping(kept):
        for task in tasks:
            print(task.draw(DRAW[task.name]), flush=True)
            done.append(f"{task.stem}.png")
