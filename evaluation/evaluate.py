"""How good a model is: figures of its samples against data, and bits/dim of held-out examples.

    from scorefield.evaluation import evaluate

    quality = evaluate("runs/vp_digits", n=1000)
    print(quality)                       # sliced_wasserstein 0.061 [0.052, 0.071], floor 0.043 ...
    quality.figures["fid"].value
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.checkpoints.latents import codec_of
from scorefield.data import Codec, Dataset, from_arrays, in_units_of, load_dataset, make_codec
from scorefield.data.datasets import cache_folder
from scorefield.data.degradations import pictures_as_said
from scorefield.evaluation.classes import classes_of, compared_with
from scorefield.evaluation.generate import generate
from scorefield.evaluation.given import of_held_out
from scorefield.evaluation.likelihood import OWN, score
from scorefield.evaluation.metrics import Features, Figure, Metric, Reference, default_metrics, features_of, make_metrics
from scorefield.evaluation.metrics.metric import BOOTSTRAP
from scorefield.evaluation.score import Score
from scorefield.evaluation.starts import joined
from scorefield.models import ScoreModel
from scorefield.models.bridge import BridgeModel
from scorefield.models.conditions import LABEL
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import Sampler, make_sampler

# of bits/dim beside samples: a fixed number of evaluations, and what mode likelihood's exponential method takes
LIKELIHOOD: dict[str, Any] = {"method": "exponential", "divergence": "hutchinson"}
ALL = "all"


@dataclass(frozen=True, eq=False)
class Quality:
    """What `evaluate` found.

    figures     by the metric's name: each with its 95 % interval, its floor, and what went into it
    likelihood  of held-out examples, if asked for; `likelihood.mean` is their bits/dim
    samples     how many, with `nfe` evaluations each and `seconds` to draw them
    features    the name of the feature network, or None
    classes     the names of those whose examples the samples are compared with, or None: all examples
    """

    figures: Mapping[str, Figure]
    likelihood: Score | None = None
    samples: int = 0
    nfe: float = math.nan
    seconds: float = 0.0
    features: str | None = None
    classes: Sequence[str] | None = None

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        bits = {} if self.likelihood is None else {"likelihood": self.likelihood.summary()}
        return {"num_samples": self.samples, "nfe": self.nfe, "seconds": round(self.seconds, 3),
                "metrics": {name: dataclasses.asdict(figure) for name, figure in self.figures.items()}, **bits}

    def __str__(self) -> str:
        return "\n".join(lines_of(self.summary()))


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """A line for each figure of a summary."""
    lines = [f"{name} {figure_of(figure)}" for name, figure in summary["metrics"].items()]
    if (bits := summary.get("likelihood")) is not None:
        error = bits["standard_error"]
        lines.append(f"bits/dim {bits['bits_per_dim']:.4f} +- {math.nan if error is None else error:.4f}, "
                     f"{bits['num_images']} held-out examples")
    return lines


def figure_of(figure: Mapping[str, Any]) -> str:
    """A figure in words: 12.3 [11.9, 12.8], floor 3.1 of 360 held out."""
    ends = [figure["low"], figure["high"]]
    known = all(end is not None and math.isfinite(end) for end in ends)
    interval = f" [{ends[0]:.4g}, {ends[1]:.4g}]" if known else ""
    floor = "" if figure["floor"] is None else f", floor {figure['floor']:.4g} of {figure['floor_samples']} held out"
    note = f" ({figure['note']})" if figure.get("note") else ""
    return f"{figure['value']:.4g}{interval}{floor}{note}"


def measure(samples: Iterable[Any], metrics: Mapping[str, Metric], codec: Codec) -> dict[str, Figure]:
    """The figure of every metric, of samples as data in batches: tensors (B, *shape), or pairs (tensor, label).

    ArgumentError if there are fewer than a metric needs.
    """
    for batch in samples:
        x = batch if isinstance(batch, Tensor) else batch[0]
        x = x if codec.levels is not None else codec.encode(x)
        for metric in metrics.values():
            metric.update(x)
    return {name: metric.result() for name, metric in metrics.items()}


def require_enough(metrics: Mapping[str, Metric], n: int) -> None:
    """Raise ArgumentError unless n samples are enough for every metric; before they are drawn."""
    for name, metric in metrics.items():
        if n < metric.minimum:
            raise ArgumentError(f"{name} needs at least {metric.minimum} samples, got {n}", "num_samples")


def require_features(network: Features | None, dataset: Dataset, device: torch.device | str) -> None:
    """Raise ArgumentError unless the feature network takes the examples and gives features; before samples are drawn."""
    if network is not None:
        network.outputs(dataset.train[torch.arange(min(2, len(dataset.train)))][0].to(device), dataset.levels)


def statistics_folder() -> Path:
    """Where statistics of data sets are kept, by their content: beside downloaded data, ~/.cache/scorefield by default."""
    return cache_folder() / "statistics"


def label_of(model: ScoreModel, dataset: Dataset, labelled: bool = False) -> str | None:
    """The label with which held-out examples are scored: their own, if samples have labels or the model needs them."""
    needs = LABEL in model.takes.names and not model.takes.label_dropout
    if labelled and dataset.classes is None:
        raise ArgumentError(f"the examples of data set {dataset.name!r} have no labels, given which to be scored; "
                            "leave out likelihood", "likelihood")
    return OWN if labelled or (needs and dataset.classes is not None) else None


def evaluate(model: ScoreModel | Callable[[range], ScoreModel] | str | Path, dataset: Dataset | Any = None,
             codec: Codec | None = None, *, n: int = 10_000, sampler: Sampler | str = "auto",
             metrics: Sequence[str] | None = None, features: Features | str | None = None,
             label: int | Sequence[int] | str | None = None, likelihood: bool = False, seed: int = 0, batch_size: int = 128,
             device: torch.device | str = "cpu", bootstrap: int = BOOTSTRAP, folder: Path | None = None,
             identity: Any = None, cache: Path | None = None, progress: bool = True) -> Quality:
    """Draw n samples of a model and compare them with a data set.

        quality = evaluate("runs/vp_digits")
        quality = evaluate(model, dataset, sampler=make_sampler("auto", steps=50), metrics=["fid", "kid"])

    model       a score model; a function from the numbers of a batch's samples to one, as `draw` takes; or a run's folder, a
                checkpoint or a file, as `load_denoiser` takes
    dataset     a Dataset, or an array of examples; by default the run's own
    codec       of the model; by default the run's own, or `make_codec(dataset.levels)`
    metrics     names from METRICS; by default those that fit the data
    features    a feature network, or its name; by default the project's own for its data sets
    label       of the samples: a class, several in turn, or "all", which gives every class the same share. They are compared
                with the examples of these classes
    likelihood  also score the held-out examples, by the exponential method; given their own labels, if the samples have some
    folder      where drawn batches are kept, so that a second call goes on; it needs the `identity` of the model
    cache       a folder for statistics of the data

    Raises ArgumentError for what does not fit together, before anything is drawn.
    """
    if isinstance(model, str | Path):
        model, dataset, codec = of_run(model, dataset, codec, device)
    given, labels, reference, names = against(model, dataset, codec, features, label, cache, device)
    data, codec, network = reference.dataset, reference.codec, reference.features
    if likelihood:
        if not isinstance(model, ScoreModel):
            raise ArgumentError("a model that depends on the sample has no likelihood; leave out likelihood", "likelihood")
        own_label = label_of(model, data, label is not None)
    own = make_metrics(default_metrics(data, network) if metrics is None else metrics, reference, seed, bootstrap)
    require_enough(own, n)
    require_features(network, data, device)
    rule = make_sampler(sampler) if isinstance(sampler, str) else sampler
    samples = generate(given, rule, codec.event(data.shape), codec, n, seed, batch_size, device, folder, label=labels,
                       identity=None if identity is None else [identity, label], progress=progress)
    figures, bits = measure(samples, own, codec), None
    if likelihood:
        assert isinstance(model, ScoreModel)
        bits = score(model, data, codec, seed=seed, batch_size=batch_size, device=device, progress=progress,
                     label=own_label, **LIKELIHOOD)
    return Quality(figures, bits, n, samples.nfe, samples.seconds, None if network is None else network.name, names)


def of_run(source: str | Path, dataset: Any, codec: Codec | None, device: torch.device | str
           ) -> tuple[ScoreModel, Any, Codec]:
    """The model of a run, its data set unless another is given, and its codec."""
    from scorefield.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(source)
    data = load_dataset(checkpoint.config["data"]) if dataset is None else dataset
    data = in_units_of(data if isinstance(data, Dataset) else from_arrays(data), checkpoint.config)
    if dataset is not None:
        data = pictures_as_said(data, checkpoint.config["data"])
    if list(data.shape) != list(checkpoint.config["shape"]) or data.levels != checkpoint.config["levels"]:
        raise ArgumentError(f"data set {data.name!r} has examples of shape {data.shape} and {data.levels} levels, but the "
                            f"model draws {tuple(checkpoint.config['shape'])} and {checkpoint.config['levels']}", "dataset")
    return (checkpoint.denoiser().to(device), data, codec or codec_of(checkpoint.config["data"], checkpoint.config, device))


def against(model: ScoreModel | Callable[[range], ScoreModel], dataset: Any, codec: Codec | None,
            features: Features | str | None, label: int | Sequence[int] | str | None, cache: Path | None,
            device: torch.device | str
            ) -> tuple[Any, Callable[[range], Tensor] | None, Reference, list[str] | None]:
    """The model of each batch with its labels bound, the labels of samples, what these are compared with, and the names of
    the classes that this is of (None: all examples).
    """
    if dataset is None:
        raise ArgumentError("give the data set that the samples are to be compared with", "dataset")
    data = dataset if isinstance(dataset, Dataset) else from_arrays(dataset)
    if isinstance(model, BridgeModel):
        model, data = joined(model, data, codec or make_codec(data.levels, standard=data.standard))
    network = features if isinstance(features, Features) else features_of(features, data)
    asked = None if label is None else _asked(model, label, data)
    given, labels = (model, None) if asked is None else _given_labels(model, asked, device)
    if isinstance(model, ScoreModel):
        given = of_held_out(given, data, device)
    compared = compared_with(data, asked, _classes(model, data))
    reference = Reference(compared, codec or make_codec(data.levels, standard=data.standard), network, cache, device=device)
    return given, labels, reference, classes_of(data, asked)


def _given_labels(model: ScoreModel | Callable[[range], ScoreModel], asked: Sequence[int], device: torch.device | str
                  ) -> tuple[Callable[[range], ScoreModel], Callable[[range], Tensor]]:
    """The model of each batch, of which sample i is of class asked[i mod their number], and the labels of its samples."""
    if not isinstance(model, ScoreModel):
        raise ArgumentError("a model that depends on the sample has its labels already; leave out label", "label")
    known, every = model, torch.tensor(asked)

    def labels(batch: range) -> Tensor:
        return every[torch.tensor(batch) % len(every)]

    scale = {} if known.takes.guidance is None else {"guidance": 1.0}      # the class itself
    return (lambda batch: known.given(label=labels(batch).to(device), **scale)), labels


def _classes(model: Any, dataset: Dataset) -> int | None:
    """How many classes labels are of: the model's, or the data set's if it does not say."""
    own = model.takes.classes if isinstance(model, ScoreModel) else None
    return dataset.classes if own is None else own


def _asked(model: Any, label: int | Sequence[int] | str, dataset: Dataset) -> list[int]:
    """The classes that `label` names."""
    classes = _classes(model, dataset)
    if isinstance(label, str) and (label != ALL or classes is None):
        raise ArgumentError(f"label must be a class, several, or 'all' of a model with classes, got {label!r}", "label")
    return list(range(classes or 0)) if isinstance(label, str) else [label] if isinstance(label, int) else list(label)
