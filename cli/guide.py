"""The flags of labels and guidance, and the score models that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scorefield.cli.flags import Flag
from scorefield.cli.labels import class_of
from scorefield.cli.low_res import DATA, Source, source_of
from scorefield.cli.low_res import FLAGS as LOW_RES_FLAGS
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.cli.command import Command
    from scorefield.models import Denoiser, ScoreModel

ALL = "all"
FLAGS = (
    Flag("label", str, None, "the class of the samples: a number or a name, several such as 0,1,2 in turn, or all; the "
                             "picture has a row for each"),
    Flag("guidance", float, None, "scale of classifier-free guidance: 1 is the class, 0 no class, above 1 more than the "
                                  "class; needs label. With autoguidance 1 is the run, and above 1 is beyond it"),
    Flag("guidance_interval", tuple, None, "LO,HI: guide at times LO <= t <= HI only; elsewhere the scale is 1"),
    Flag("autoguidance", str, None, "a smaller or less trained run of the same data, away from which guidance leads"),
    Flag("classifier", str, None, "a run of a classifier of noisy examples, which guides to the label"),
    Flag("classifier_scale", float, None, "scale of the classifier's gradient, by default 1"),
    Flag("threshold", str, None, "keep each predicted x_0 within the range of the data", ("static", "dynamic")),
    Flag("quantile", float, None, "of |x_0| that threshold dynamic takes for the range, by default 0.995"),
    *LOW_RES_FLAGS,
)
# What the arguments of guidance.guided are called here.
NAMES = {"scale": "guidance", "interval": "guidance_interval"}
MODELS = ("classifier", "autoguidance")      # settings that are models
LONGEST = 40      # characters of a list of classes in a file's name


@dataclass(frozen=True)
class Guide:
    """What the flags ask for: the classes, sample i being of class labels[i mod their number], and settings of guidance.

    labels    the classes, or None for no label
    names     of the model's classes, where they are known
    settings  the keyword arguments of guidance.guided, but for the label
    text      of the flag label
    source    of the classifier
    weaker    the run of autoguidance
    low_res   where that comes from, for a model that takes one
    """

    labels: Sequence[int] | None = None
    names: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    source: str | None = None
    weaker: str | None = None
    low_res: Source | None = None

    def of(self, model: ScoreModel, device: Any) -> Callable[[range], ScoreModel]:
        """The function from the numbers of samples to their score model (evaluation/draw.py)."""
        from scorefield.guidance import guided

        def of_batch(batch: range) -> ScoreModel:
            label, own, spent, settings = self.of_samples(batch), model, 0, self.settings
            if self.low_res is not None:
                condition, spent = self.low_res.condition(batch, label, device)
                own = model.given(**condition)
                if (other := settings.get("autoguidance")) is not None:
                    both = {name: value for name, value in condition.items() if name in other.takes.names}
                    settings = {**settings, "autoguidance": other.given(**both) if both else other}
            with renamed(names=NAMES):
                made = guided(own, None if label is None else label.to(device), **settings)
            if spent:
                made.spent = spent
            return made

        return of_batch

    def of_samples(self, samples: range) -> Tensor | None:
        """The classes (n,) of the samples with these numbers, or None."""
        import torch

        if self.labels is None:
            return None
        return torch.tensor(self.labels)[torch.tensor(samples) % len(self.labels)]

    @property
    def identity(self) -> list[Any]:
        """All that samples depend on through this guide: of the classifier, what its files hold."""
        from scorefield.cli.origin import contents

        settings = {name: value for name, value in self.settings.items() if name not in MODELS}
        settings |= {} if self.weaker is None else {"autoguidance": contents(self.weaker)}
        of = [self.labels, settings, None if self.source is None else contents(self.source)]
        return of if self.low_res is None else [*of, self.low_res.identity]

    @property
    def suffix(self) -> str:
        """What a file's name says of the labels and the guidance."""
        from scorefield.evaluation.names import digits_of, name_of_place

        parts = []
        if self.labels is not None:
            classes = ALL if self.text == ALL else "-".join(map(str, self.labels))
            parts.append(f"label_{classes if len(classes) <= LONGEST else digits_of(classes)}")
        for name, value in self.described.items():
            if name not in ("label", *MODELS, "low_res", "low_res_noise"):
                numbers = value if isinstance(value, tuple) else (value,)
                parts.append(f"{name}_{'-'.join(str(number).removesuffix('.0') for number in numbers)}")
            elif name in MODELS:
                parts.append(f"{name}_{name_of_place(value)}")      # there may be several
        if self.low_res is not None:
            text, noise = self.low_res.text, self.low_res.noise
            parts.append(f"low_res_{text if text == DATA else name_of_place(text)}")
            parts += [f"low_res_noise_{noise:g}"] if noise else []
        return "".join(f"_{part}" for part in parts)

    @property
    def described(self) -> dict[str, Any]:
        """The flags that were given, by name, for a record of the samples."""
        flags = {NAMES.get(name, name): value for name, value in self.settings.items() if name not in ("low", "high")}
        flags |= {} if self.weaker is None else {"autoguidance": self.weaker}
        flags |= {} if self.source is None else {"classifier": self.source}
        if self.low_res is not None:
            flags |= {"low_res": self.low_res.text, **({"low_res_noise": self.low_res.noise} if self.low_res.noise else {})}
        return ({} if self.labels is None else {"label": [self.name(y) for y in self.labels]}) | flags

    def name(self, label: int) -> str:
        """The name of a class, or its number."""
        return self.names[label] if label < len(self.names) else str(label)


def guide_of(command: Command, model: Denoiser) -> Guide:
    """The guide of a command line; ArgumentError for what does not fit the run's model, before anything is computed."""
    from scorefield.guidance import guided

    values, stored = command.asked.values, command.stored
    assert stored is not None
    back = {flag: name for name, flag in NAMES.items()}
    given = {name: values[name] for name in (flag.name for flag in FLAGS) if values[name] is not None}
    text, low_res = given.pop("label", None), source_of(command, model)
    settings = {back.get(name, name): value for name, value in given.items() if not name.startswith("low_res")}
    if (interval := settings.get("interval")) is not None and len(interval) != 2:
        raise ArgumentError(f"guidance_interval must be two times LO,HI, got {interval}", "guidance_interval")
    if "threshold" in settings:
        if stored["levels"] is None or stored.get("latents"):
            what = "latents" if stored.get("latents") else "points"
            raise ArgumentError(f"{what} have no range to keep to; leave out threshold", "threshold")
        settings |= {"low": command.config.data.get("low", -1.0), "high": command.config.data.get("high", 1.0)}
    if "autoguidance" in settings:
        settings["autoguidance"] = _weaker(command, model, settings["autoguidance"])
    classes, names = model.takes.classes, tuple(stored.get("class_names") or ())
    if "classifier" in settings:
        settings["classifier"], theirs, its_names = _classifier(command, settings["classifier"])
        if (classes or theirs) != theirs or (names or its_names) != its_names:
            raise ArgumentError(f"the classifier {values['classifier']} has {theirs} classes ({', '.join(its_names)}), the "
                                f"model {classes} ({', '.join(names)}); they must be the same", "classifier")
        classes, names = theirs, its_names
    if text is not None and classes is None:
        raise ArgumentError("the model takes no label: it was trained without classes (model.classes)", "label")
    labels = None if text is None or classes is None else _labels(text, classes, names)
    guide = Guide(labels, names, settings, text, values["classifier"], values["autoguidance"], low_res)
    first = None if labels is None else labels[0]
    with renamed(names=NAMES):
        guided(model, first, **settings)      # refuses what cannot be combined
    return guide


def _weaker(command: Command, model: Denoiser, source: str) -> Denoiser:
    """The model of autoguidance; ArgumentError unless it is a score model of data as the run's, and of its SDE."""
    from scorefield.checkpoints import read_checkpoint
    from scorefield.cli.drawing import prepare

    checkpoint = read_checkpoint(source)
    if checkpoint.config["model"]["network"] == "classifier":
        raise ArgumentError(f"{source} is a classifier; name the run of a score model, or give it as classifier",
                            "autoguidance", "classifier")
    _require_same_data(command, checkpoint.config, f"the model {source}", "autoguidance")
    other = checkpoint.denoiser(bool(command.asked.values["ema"])).to(command.device)
    ours, theirs = ((m.takes.classes, tuple(c.get("class_names") or ())) for m, c in (
        (model, command.stored or {}), (other, checkpoint.config)))
    if other.takes.classes is not None and ours != theirs:
        raise ArgumentError(f"the model {source} has {theirs[0]} classes ({', '.join(theirs[1])}), and the run {ours[0]} "
                            f"({', '.join(ours[1])}); they must have the same", "autoguidance")
    prepare(other.network, command)
    return other


def _require_same_data(command: Command, config: Any, what: str, flag: str) -> None:
    from scorefield.data.datasets import CODEC_FIELDS

    ours = command.stored
    assert ours is not None
    for name, here, there in [(name, ours.get(name), config.get(name)) for name in ("shape", "levels")] + [
            (f"data.{name}", command.config.data.get(name), config["data"].get(name)) for name in CODEC_FIELDS] + [
            ("the autoencoder", *((stored.get("latents") or {}).get("digest") for stored in (ours, config)))]:
        if here != there:
            raise ArgumentError(f"{what} was trained on data of another kind: {name} is {there} there and {here} in the run",
                                flag)


def _classifier(command: Command, source: str) -> tuple[Denoiser, int, tuple[str, ...]]:
    """A classifier, the number of its classes and their names; ArgumentError unless it is one of data as the run's."""
    from scorefield.checkpoints import read_checkpoint
    from scorefield.cli.drawing import prepare
    from scorefield.models.build import complete

    checkpoint = read_checkpoint(source)
    config = checkpoint.config
    if config["model"]["network"] != "classifier":
        raise ArgumentError(f"{source} is no classifier, but a {config['model']['network']}; train one, as with "
                            "configs/digits_classifier.py", "classifier")
    _require_same_data(command, config, f"the classifier {source}", "classifier")
    model = checkpoint.denoiser(bool(command.asked.values["ema"])).to(command.device)
    prepare(model.network, command)
    classes = int(complete(config)["model"]["classes"])
    return model, classes, tuple(config.get("class_names") or map(str, range(classes)))


def _labels(text: str, classes: int, names: Sequence[str]) -> list[int]:
    """The classes that the flag label names."""
    if text == ALL and ALL not in names:
        return list(range(classes))
    if text in names:      # a name may hold commas
        return [class_of(text, classes, names)]
    return [class_of(word.strip(), classes, names) for word in text.split(",")]
