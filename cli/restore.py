"""Mode restore: several answers for each measurement, such as a picture with a missing part, with their mean and spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.drawing import options as of_samplers
from scorefield.cli.drawing import parsed_options
from scorefield.cli.examples import own_data
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, EMA, SEED, STRICT, Flag
from scorefield.cli.labels import class_of
from scorefield.cli.low_res import rule_of
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.cli.command import Command
    from scorefield.evaluation.restore import Problem, Restored
    from scorefield.samplers import Sampler

DATA = "data"
LEARNED = "learned"      # the method of a model that was trained to restore
ROWS = 20                # measurements that one picture shows
SUMMARY = "writes restore/NAME.png, .npz and .json: answers for damaged pictures, their mean, spread and figures"
FLAGS = (
    CHECKPOINT,
    Flag("operator", str, None, "what was measured, such as mask:half=right, grey, downsample:factor=4, blur:std=1; not for "
                                "a run that has learned a degradation"),
    Flag("measurement", str, None, "a picture, a folder or an array: whole ones, which are degraded, or of the "
                                   "measurement's size; or data, the run's held-out examples"),
    Flag("degraded", bool, False, "the pictures are degraded already, also where they have the size of whole ones"),
    Flag("noise", float, 0.0, "standard deviation of the measurement's noise, in units of the data as the model sees them"),
    Flag("method", str, None, "how the measurement guides, with options after colons, by default tmpd"),
    Flag("sampler", str, None, "which sampler, by default twisted_smc, whose particles are weighted; auto for learned "
                               "degradations"),
    Flag("samples", int, 8, "answers for each measurement"),
    Flag("num_images", int, None, "restore only the first num_images; of data 8 unless given"),
    Flag("label", str, None, "the class of all pictures: a number or a name"),
    Flag("threshold", str, "static", "keep each predicted x_0 within the range of the data, where an operator guides, since "
         "the Jacobian of a network's x_0 is far off beside much noise; none: as it is", ("static", "none")),
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
OF_DATA, MOST = 8, 10**6      # how many measurements: of data unless said, and at most
RENAMED = {"method": "solver_method"}      # options of samplers that have the same name as a flag above


def options() -> Mapping[str, Mapping[str, Flag]]:
    """The options of each sampler, by flag name."""
    return {name: {RENAMED.get(option, option): dataclasses.replace(flag, name=RENAMED.get(option, option))
                   for option, flag in own.items()} for name, own in of_samplers().items()}


@dataclass(frozen=True, eq=False)
class Given:
    """What is to be restored: the measurements, a name for each, and the truth if it is known, as the model sees it."""

    problem: Problem
    names: Sequence[str]
    truth: Tensor | None


def run(command: Command) -> None:
    """Restore, and write restore/NAME.npz, .json and .png in the run's folder, and pictures of their own in restore/NAME."""
    from scorefield.data.latents import Latents
    from scorefield.data.measured import unit_of
    from scorefield.evaluation.latents import decoded, of_latents
    from scorefield.evaluation.names import changed
    from scorefield.evaluation.restore import restore
    from scorefield.guidance.guided import guided

    values = command.asked.values
    denoiser = command.denoiser()
    rule = rule_of(command) if "low_res" in denoiser.takes.names else None
    _check(command, rule is not None)
    latents = command.codec if isinstance(command.codec, Latents) else None
    name = values["sampler"] or ("twisted_smc" if rule is None else "auto")
    method = values["method"] or ("tmpd" if rule is None else LEARNED)
    sampler = _sampler(command, name)
    given = _learned(command, rule) if rule is not None else _measured(command)
    model = guided(denoiser, _label(command, denoiser), **_threshold(command, rule is not None))
    with renamed(names={"noise_std": "noise", "y": "measurement"}):
        problem = given.problem if latents is None else of_latents(given.problem, latents)
        restored = restore(model, problem, sampler, method, values["samples"], values["seed"], values["batch_size"],
                           command.device, progress=True)
    command.write_imported()
    restored = restored if latents is None else decoded(restored, latents)
    figures = restored.figures(given.problem, given.truth, lambda x: unit_of(x, command.codec.of_pictures))
    settings = {"operator": values["operator"] if rule is None else rule.text, "method": method, "sampler": name,
                "settings": vars(sampler), "options": changed(sampler), "noise": values["noise"],
                "threshold": values["threshold"] if rule is None and latents is None else "none"}
    _write(command, given, restored, figures, settings)


def _check(command: Command, learned: bool) -> None:
    """ArgumentError for flags that do not fit together."""
    values = command.asked.values
    if not values["measurement"]:
        raise ArgumentError("give what is to be restored: a picture, a folder, an array, or data, the run's held-out "
                            "examples", "measurement")
    if learned:
        for name in ("operator", "method", "noise"):
            if name in command.asked.given:
                raise ArgumentError(f"the run has learned to restore from its own degradation; leave out {name}", name)
    elif values["operator"] is None:
        raise ArgumentError("say what was measured, such as operator mask:half=right, grey or downsample:factor=2",
                            "operator")
    if not values["noise"] >= 0:
        raise ArgumentError(f"noise must not be negative, got {values['noise']:g}", "noise")
    if (values["num_images"] or 1) > MOST:
        raise ArgumentError(f"num_images must lie in 1 .. {MOST}, got {values['num_images']}", "num_images")


def _sampler(command: Command, name: str) -> Sampler:
    from scorefield.samplers import make_sampler

    back = {flag: option for option, flag in RENAMED.items()}
    with renamed(names=RENAMED):
        return make_sampler(name, **parsed_options(name, {back.get(flag, flag): text
                                                          for flag, text in command.asked.texts.items()}))


def _label(command: Command, model: Any) -> int | None:
    text = command.asked.values["label"]
    if text is None:
        return None
    if model.takes.classes is None:
        raise ArgumentError("the model takes no label: it was trained without classes (model.classes)", "label")
    assert command.stored is not None
    return class_of(text, model.takes.classes, command.stored.get("class_names") or ())


def _threshold(command: Command, learned: bool) -> dict[str, Any]:
    """The arguments of guidance.guided that keep x_0 within the range of pictures; none for other data."""
    from scorefield.data import Pixels
    from scorefield.data.latents import Latents

    codec = command.codec
    if isinstance(codec, Latents) and "threshold" in command.asked.given and command.asked.values["threshold"] != "none":
        raise ArgumentError("latents have no range to keep to; leave out threshold", "threshold")
    if learned or not isinstance(codec, Pixels) or command.asked.values["threshold"] == "none":
        return {}
    return {"threshold": "static", "low": codec.low, "high": codec.high}


# ---- what is to be restored --------------------------------------------------------------------------------------------


def _examples(command: Command, channels: int) -> tuple[Tensor, Sequence[str]]:
    """The examples that the flag measurement names, as the model sees them, and their names."""
    import torch

    from scorefield.data import Pixels
    from scorefield.data.measured import load_measured, placed

    values, codec = command.asked.values, command.codec.of_pictures
    if values["measurement"] == DATA:
        test = own_data(command).test
        numbers = torch.arange(min(values["num_images"] or OF_DATA, len(test)))
        data = test[numbers][0]
        x = placed(data, codec) if isinstance(codec, Pixels) else codec.encode(data)
        return x, [f"{i:05d}" for i in numbers.tolist()]
    background = command.config.data.get("background") or "white"
    found = load_measured(values["measurement"], codec, channels, "measurement", background)
    x, n = found.x, values["num_images"] or len(found.x)
    if not isinstance(codec, Pixels) and tuple(x.shape[1:]) == command.shape:
        x = codec.encode(x)
    return x[:n], found.names[:n]


def _measured(command: Command) -> Given:
    """Measurements by an operator; ArgumentError for what does not fit."""
    from scorefield.data import Pixels
    from scorefield.data.transforms import require_within
    from scorefield.evaluation.restore import Measured, with_noise
    from scorefield.guidance.operators import Selection, make_operator

    values, codec = command.asked.values, command.codec.of_pictures
    shape, noise, degraded = codec.event(command.shape), values["noise"], values["degraded"]
    operator = make_operator(values["operator"], shape, values["seed"])
    measured = operator.measured
    x, names = _examples(command, measured[0] if degraded and len(measured) == 3 else shape[0])
    got = tuple(x.shape[1:])
    if degraded and values["measurement"] == DATA:
        raise ArgumentError("the run's held-out examples are whole; leave out degraded", "degraded")
    if got == shape and not degraded:
        y = with_noise(operator(x), noise, values["seed"])
        return Given(Measured(operator.to(command.device), y.to(command.device), noise), names, x)
    if got == measured:
        y = x
    elif got == shape and isinstance(operator, Selection):      # a picture in which the missing pixels have any value
        y = operator(x)
    else:
        wanted = [_sizes(measured)] if degraded else [_sizes(shape), *([_sizes(measured)] if measured != shape else [])]
        raise ArgumentError(f"measurement={values['measurement']!r} has examples {_sizes(got)}; the run and the operator "
                            f"take {' (whole) or '.join(wanted)}{' (degraded)' if len(wanted) > 1 or degraded else ''}; "
                            "crop or resize them", "measurement", "operator")
    if isinstance(codec, Pixels) and (len(measured) == 3 or isinstance(operator, Selection)):
        slack = (codec.high - codec.low) / 4 + 4 * noise
        require_within(y, codec.low - slack, codec.high + slack, f"measurement={values['measurement']!r}",
                       f"the data lie in [{codec.low:g}, {codec.high:g}], and the noise is {noise:g}; give levels, or "
                       "floats as the model sees them")
    return Given(Measured(operator.to(command.device), y.to(command.device), noise), names, None)


def _learned(command: Command, rule: Any) -> Given:
    """Measurements by the degradation that the run has learned."""
    from scorefield.data.measured import unit_of
    from scorefield.evaluation.restore import LearnedMeasured

    values, degraded = command.asked.values, command.asked.values["degraded"]
    x, names = _examples(command, rule.event[0] if degraded else rule.shape[0])
    got = tuple(x.shape[1:])
    if degraded and values["measurement"] == DATA:
        raise ArgumentError("the run's held-out examples are whole; leave out degraded", "degraded")
    unit = unit_of(x, command.codec.of_pictures).float()
    if got == rule.shape and not degraded:
        low_res = rule.of_pictures(unit.clamp(0, 1), list(range(len(unit))))
        return Given(LearnedMeasured(rule, low_res.to(command.device)), names, x)
    if got != rule.event:
        wanted = [_sizes(rule.event)] if degraded else list(dict.fromkeys([_sizes(rule.shape), _sizes(rule.event)]))
        raise ArgumentError(f"measurement={values['measurement']!r} has pictures {_sizes(got)}; the run takes "
                            f"{' (whole) or '.join(wanted)}; crop or resize them", "measurement")
    return Given(LearnedMeasured(rule, rule.placed(unit).to(command.device)), names, None)


def _sizes(shape: Sequence[int]) -> str:
    """A shape in words."""
    if len(shape) == 3:
        return f"of {shape[2]}x{shape[1]} pixels and {shape[0]} channel{'s' * (shape[0] != 1)}"
    return f"of shape {tuple(shape)}"


# ---- files -------------------------------------------------------------------------------------------------------------


def _write(command: Command, given: Given, restored: Restored, figures: dict[str, list[float]],
           settings: dict[str, Any]) -> None:
    import numpy as np

    from scorefield.data import Pixels
    from scorefield.evaluation.names import with_suffix
    from scorefield.evaluation.restore import means
    from scorefield.numerics.files import write_arrays, write_json

    values, codec = command.asked.values, command.codec.of_pictures
    stem = command.run / "restore" / _stem(command, settings)
    stem.parent.mkdir(exist_ok=True)
    answers = codec.decode(restored.x.flatten(0, 1)).unflatten(0, restored.x.shape[:2])
    arrays = {"x": answers, "mean": restored.mean, "std": restored.std, "y": given.problem.y.cpu()}
    arrays |= {} if given.truth is None else {"truth": given.truth}
    write_arrays(with_suffix(stem, ".npz"), {name: np.asarray(value) for name, value in arrays.items()})
    record = {**settings, "measurement": values["measurement"], "samples": values["samples"], "seed": values["seed"],
              "label": values["label"], "ema": values["ema"], "checkpoint": str(command.newest),
              "measurements": len(given.names), "evaluations": restored.evaluations, "seconds": round(restored.seconds, 3),
              "means": means(figures), "names": list(given.names), "figures": figures}
    written = [".npz", ".json"]
    if isinstance(codec, Pixels) and restored.x.ndim == 5 and restored.x.shape[2] in (1, 3):
        _write_pictures(command, given, restored, stem)
        written += [".png"] + ["/"] * (values["measurement"] != DATA)
    write_json(with_suffix(stem, ".json"), record)
    known = {name: value for name, value in record["means"].items() if value is not None}
    print(f"{len(given.names)} measurement{'s' * (len(given.names) != 1)}, {values['samples']} answers each by "
          f"{settings['sampler']} and {settings['method']}: {restored.evaluations:g} evaluations each, "
          f"{restored.seconds:.1f} s; " + ", ".join(f"{name} {value:.4g}" for name, value in known.items()))
    print(f"wrote {stem}{{{','.join(written)}}}")


def _stem(command: Command, settings: Mapping[str, Any]) -> str:
    """The name of the files: what was measured and of what, and how it was restored."""
    from scorefield.evaluation.names import name_of_place, short, suffix_of, suffix_of_drawing, whole

    values = command.asked.values
    place = DATA if values["measurement"] == DATA else name_of_place(values["measurement"])
    said = {"noise": values["noise"]} if values["noise"] else {}
    said |= {"threshold": "none"} if "threshold" in command.asked.given and values["threshold"] == "none" else {}
    said |= {"samples": values["samples"]} | ({"degraded": True} if values["degraded"] else {})
    said |= {} if values["num_images"] is None else {"num_images": values["num_images"]}
    said |= {} if values["label"] is None else {"label": values["label"]}
    drawing = suffix_of_drawing(values["seed"], values["ema"], "fp32", None, values["batch_size"])
    words = [short(settings[name].replace(":", "-").replace("=", "")) for name in ("operator", "method")]
    return whole("_".join([place, *words, settings["sampler"]])
                 + suffix_of(settings["options"]) + suffix_of(said) + drawing)


def _write_pictures(command: Command, given: Given, restored: Restored, stem: Path) -> None:
    """The picture with a row for each measurement; and each picture as a file of its own, of a user's measurements."""
    import torch

    from scorefield.data import Pixels
    from scorefield.data.measured import unit_of
    from scorefield.evaluation.names import with_suffix
    from scorefield.evaluation.plots import encode_png, image_grid, save_png
    from scorefield.numerics.files import write_atomically

    codec = command.codec.of_pictures
    assert isinstance(codec, Pixels)

    def levels(x: Tensor) -> Tensor:
        return (255 * unit_of(x.cpu(), codec).clamp(0, 1)).round().to(torch.uint8)

    std = (255 * (2 * restored.std / (codec.high - codec.low)).clamp(0, 1)).round().to(torch.uint8)
    simple = given.problem.simple()
    columns = {"truth": None if given.truth is None else levels(given.truth),
               "measured": None if simple is None else levels(simple), "mean": levels(restored.mean), "std": std}
    columns |= {f"{i:02d}": levels(restored.x[:, i]) for i in range(restored.x.shape[1])}
    shown = {name: tiles for name, tiles in columns.items() if tiles is not None}
    rows = min(ROWS, len(given.names))
    tiles = torch.stack([tile[:rows] for tile in shown.values()], 1).flatten(0, 1)
    save_png(with_suffix(stem, ".png"), image_grid(tiles, 256, torch.arange(rows).repeat_interleave(len(shown))))
    if command.asked.values["measurement"] == DATA:
        return
    for name in ("mean", "std", *(f"{i:02d}" for i in range(restored.x.shape[1]))):
        for of, picture in zip(given.names, shown[name], strict=True):
            path = stem / f"{of}_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = encode_png(picture)
            write_atomically(path, lambda file, content=content: file.write(content))
