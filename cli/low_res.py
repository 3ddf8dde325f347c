"""The flags of low_res, and where it comes from: held-out examples, a user's pictures, or the first stage of a cascade.

    --low_res data             that of the run's held-out examples, in turn
    --low_res small.png        a picture, a folder or an array, of the size of low_res; or whole pictures, which are degraded
    --low_res runs/first       samples of that run (Ho et al. 2022, "Cascaded Diffusion Models"), sample i of its sample i
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import Flag
from scorefield.numerics.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.cli.command import Command
    from scorefield.data.degradations import LowRes
    from scorefield.models import Denoiser
    from scorefield.samplers import Sampler

DATA = "data"
GOLDEN = 0x9E3779B97F4A7C15      # added to the seed: the noise of the two stages has nothing in common
FLAGS = (
    Flag("low_res", str, None, "what a model of low_res is given: data (held-out examples), a picture, a folder, an array, "
                               "or a run that draws it, the first stage of a cascade"),
    Flag("low_res_noise", float, None, "standard deviation of noise added to low_res, which the model is told; by default "
                                       "0"),
)


@dataclass(frozen=True)
class Source:
    """Where the low_res of samples comes from.

    of        from the numbers of samples, and their classes or None, to low_res (n, *event) on the CPU, and the evaluations
              that each one took
    identity  of all that it depends on
    """

    of: Callable[[range, Any], tuple[Tensor, int]]
    identity: Any
    rule: LowRes
    noise: float
    seed: int
    text: str

    def condition(self, numbers: range, label: Any, device: Any) -> tuple[dict[str, Tensor], int]:
        """The conditions of the samples with these numbers, with noise if that is asked for."""
        import torch

        from scorefield.data.degradations import LOW_RES, LOW_RES_NOISE, noisy
        from scorefield.numerics.noise import CONDITION, NoiseStream, sample_seeds

        low_res, spent = self.of(numbers, label)
        if not self.rule.noise:
            return {LOW_RES: low_res.to(device)}, spent
        level = torch.full((len(low_res),), self.noise)
        if self.noise:
            eps = NoiseStream(sample_seeds(self.seed, numbers.start, numbers.stop), CONDITION).normal(low_res)
            low_res = noisy(low_res, level, eps)
        return {LOW_RES: low_res.to(device), LOW_RES_NOISE: level.to(device)}, spent


def rule_of(command: Command) -> LowRes | None:
    """How the run's pictures become low_res; None if its data have none."""
    from scorefield.data.degradations import LowRes

    data, stored = command.config.data, command.stored
    assert stored is not None
    if not data.get("degradation"):
        return None
    return LowRes(data.degradation, tuple(stored["shape"]), stored["levels"], data.low, data.high, data.low_res_noise)


def source_of(command: Command, model: Denoiser) -> Source | None:
    """The source that a command line names; None for a model that takes no low_res. ArgumentError for what does not fit."""
    from scorefield.models.conditions import LOW_RES

    values = command.asked.values
    if LOW_RES not in model.takes.names:
        for name in ("low_res", "low_res_noise"):
            if values[name] is not None:
                raise ArgumentError(f"the model takes no low_res: it was trained without a degradation; leave out "
                                    f"{name}", name)
        return None
    rule = rule_of(command)
    if rule is None:
        raise ArgumentError("the model takes low_res, and its run does not say how that is made (data.degradation); use it "
                            "in Python, by model.given(low_res=...)", "low_res")
    noise = values["low_res_noise"] or 0.0
    if not 0 <= noise <= rule.noise:
        raise ArgumentError(f"low_res_noise must lie in [0, {rule.noise:g}], what the model has learned, got {noise:g}",
                            "low_res_noise")
    text = values["low_res"] or (DATA if command.mode != "sample" else None)
    if text is None:
        raise ArgumentError(f"the model draws pictures given low_res, {_size(rule.event)}; give data, a picture, a folder, "
                            "an array, or a run that draws it", "low_res")
    if text == DATA:
        of, identity = _of_data(command)
    elif (Path(os.path.expanduser(text)) / "config.json").exists():
        of, identity = _of_run(command, text, rule)
    else:
        of, identity = _of_pictures(command, text, rule)
    return Source(of, [text if text == DATA else "", identity, noise], rule, noise, values["seed"], text)


def _size(event: tuple[int, ...]) -> str:
    return f"{event[1]}x{event[2]} with {event[0]} channel{'s' * (event[0] != 1)}"


def _of_data(command: Command) -> tuple[Any, Any]:
    """The low_res of held-out examples."""
    import torch

    from scorefield.cli.examples import own_data
    from scorefield.data.degradations import LOW_RES

    test = own_data(command).test
    return (lambda numbers, label: (test[torch.tensor(numbers) % len(test)][1][LOW_RES], 0)), "test"


def _of_pictures(command: Command, text: str, rule: LowRes) -> tuple[Any, Any]:
    """A user's pictures: of the size of low_res, or whole ones, which are degraded."""
    import torch

    from scorefield.data.codec import Pixels
    from scorefield.data.measured import load_measured, unit_of
    from scorefield.numerics.files import digest

    codec = Pixels(rule.levels, rule.low, rule.high)
    same = rule.event[1:] == rule.shape[1:]      # then the pictures are whole ones
    background = command.config.data.get("background") or "white"
    read = load_measured(text, codec, rule.shape[0], "low_res", background)
    unit = unit_of(read.x, codec).float()
    if tuple(read.x.shape[1:]) == rule.shape:
        numbers = torch.arange(len(unit)).tolist()
        low_res = rule.of_pictures(unit.clamp(0, 1), numbers)
    elif tuple(read.x.shape[1:]) == rule.event and not same:
        low_res = rule.placed(unit)
    else:
        raise ArgumentError(f"low_res={text!r} has pictures {_size(tuple(read.x.shape[1:]))}; the model takes "
                            f"{_size(rule.event) + ', or whole ones, ' if not same else ''}{_size(rule.shape)}", "low_res")
    return (lambda numbers, label: (low_res[torch.tensor(numbers) % len(low_res)], 0)), digest(low_res)


def _of_run(command: Command, text: str, rule: LowRes) -> tuple[Any, Any]:
    """The samples of another run by the same sampler: the first stage of a cascade."""
    from scorefield.checkpoints import read_checkpoint
    from scorefield.checkpoints.latents import codec_of
    from scorefield.cli.drawing import parsed_options, prepare
    from scorefield.cli.origin import contents
    from scorefield.data.transforms import to_unit
    from scorefield.evaluation.draw import draw_batch
    from scorefield.models.conditions import LABEL, LOW_RES
    from scorefield.numerics.errors import renamed
    from scorefield.samplers import make_sampler

    values = command.asked.values
    with renamed(names={"config": "low_res"}):
        checkpoint = read_checkpoint(text, strict=bool(values.get("strict")))
    config, first = checkpoint.config, checkpoint.denoiser(values["ema"]).to(command.device)
    if tuple(config["shape"]) != rule.event or config["levels"] is None:
        raise ArgumentError(f"{text} draws pictures of shape {tuple(config['shape'])}, and low_res has {rule.event}",
                            "low_res")
    if LOW_RES in first.takes.names:
        raise ArgumentError(f"{text} takes low_res itself; a cascade has two stages here, of which the first takes none",
                            "low_res")
    if LABEL in first.takes.names and not first.takes.label_dropout and values["label"] is None:
        raise ArgumentError(f"{text} was trained with labels and without label dropout; give a label", "label", "low_res")
    prepare(first.network, command)
    name = values.get("sampler", "auto")
    sampler: Sampler = make_sampler(name, **(parsed_options(name, command.asked.texts) if "sampler" in values else {}))
    codec, seed = codec_of(config["data"], config, command.device), (values["seed"] + GOLDEN) % 2**64

    def of(numbers: range, label: Any) -> tuple[Tensor, int]:
        model = first if label is None or LABEL not in first.takes.names else first.given(label=label.to(command.device))
        result = draw_batch(model, sampler, codec.event(rule.event), numbers, seed, command.device)
        levels = codec.decode(result.x).cpu()
        return rule.placed(to_unit(levels, config["levels"], 0.0, 1.0)), result.nfe

    return of, contents(text)
