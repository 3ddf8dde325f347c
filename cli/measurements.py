"""The flags of measurements, and what they name: held-out examples, a user's pictures or arrays, whole or degraded.

Modes restore and compare have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorefield.cli.examples import own_data
from scorefield.cli.flags import Flag
from scorefield.cli.labels import class_of
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.cli.command import Command
    from scorefield.evaluation.restore import Problem

DATA = "data"
LEARNED = "learned"      # the method of a model that was trained to restore
FLAGS = (
    Flag("operator", str, None, "what was measured, such as mask:half=right, grey, downsample:factor=4, blur:std=1; not for "
                                "a run that has learned a degradation"),
    Flag("measurement", str, None, "a picture, a folder or an array: whole ones, which are degraded, or of the "
                                   "measurement's size; or data, the run's held-out examples"),
    Flag("degraded", bool, False, "the pictures are degraded already, also where they have the size of whole ones"),
    Flag("noise", float, 0.0, "standard deviation of the measurement's noise, in units of the data as the model sees them"),
    Flag("num_images", int, None, "restore only the first num_images; of data 8 unless given"),
)
THRESHOLD = Flag("threshold", str, "static", "keep each predicted x_0 within the range of the data, where an operator "
                 "guides, since the Jacobian of a network's x_0 is far off beside much noise; none: as it is",
                 ("static", "none"))
OF_DATA, MOST = 8, 10**6      # how many measurements: of data unless said, and at most


@dataclass(frozen=True, eq=False)
class Given:
    """What is to be restored: the measurements, a name for each, and the truth if it is known, as the model sees it."""

    problem: Problem
    names: Sequence[str]
    truth: Tensor | None


def check(command: Command, learned: bool) -> None:
    """ArgumentError for flags that do not fit together."""
    values = command.asked.values
    if not values["measurement"]:
        raise ArgumentError("give what is to be restored: a picture, a folder, an array, or data, the run's held-out "
                            "examples", "measurement")
    if learned:
        for name in ("operator", "method", "methods", "noise"):
            if name in command.asked.given:
                raise ArgumentError(f"the run has learned to restore from its own degradation; leave out {name}", name)
    elif values["operator"] is None:
        raise ArgumentError("say what was measured, such as operator mask:half=right, grey or downsample:factor=2",
                            "operator")
    if not values["noise"] >= 0:
        raise ArgumentError(f"noise must not be negative, got {values['noise']:g}", "noise")
    if (values["num_images"] or 1) > MOST:
        raise ArgumentError(f"num_images must lie in 1 .. {MOST}, got {values['num_images']}", "num_images")


def guided_of(command: Command, denoiser: Any, learned: bool) -> Any:
    """The model of the class that the command line names, within the range of the data if it says so."""
    from scorefield.guidance.guided import guided

    return guided(denoiser, label_of(command, denoiser), **_threshold(command, learned))


def given_of(command: Command, rule: Any) -> Given:
    """What is to be restored, as the command line says; `rule` is the degradation that the run has learned, or None."""
    return _measured(command) if rule is None else _learned(command, rule)


def name_of(measurement: str, *texts: str) -> str:
    """What a file's name says of the measurement, the operator and the method."""
    from scorefield.evaluation.names import name_of_place, short

    place = DATA if measurement == DATA else name_of_place(measurement)
    return "_".join([place, *(short(text.replace(":", "-").replace("=", "")) for text in texts)])


def label_of(command: Command, model: Any) -> int | None:
    """The class that the command line names; ArgumentError for a model without labels."""
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
