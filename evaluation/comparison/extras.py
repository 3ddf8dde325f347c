"""What a comparison shows beside its figures: the denoising film, the plane, likelihoods and nearest training examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scorefield.data import Codec, Dataset
from scorefield.data.codec import Points
from scorefield.evaluation.evaluate import LIKELIHOOD, label_of
from scorefield.evaluation.likelihood import score
from scorefield.evaluation.metrics.distances import nearest
from scorefield.likelihood import log_prob
from scorefield.models import ScoreModel
from scorefield.models.conditions import LABEL
from scorefield.models.score_model import Given, evaluation_mode
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample, sample_seeds
from scorefield.sde_lib.sde import SDE

if TYPE_CHECKING:
    from scorefield.evaluation.comparison.compare import Row
    from scorefield.evaluation.comparison.recommend import Recommendation

AS_IT_IS = Points()      # where points are shown as the model sees them
FILMED, FRAMES, FILM_EVALUATIONS = 16, 24, 30
DENSITY, FIELD, FIELD_TIMES, PATHS = 72, 19, 7, 48
NEIGHBOURS, SEARCHED = 12, 20_000
DENSITY_TOLERANCE = 1e-3      # adaptive: away from the data a fixed number of steps is not enough
OF_POINTS = 1000      # points in the film of points


@dataclass(frozen=True)
class Film:
    """The way of the first samples: times (F,), x_t and the predicted x_0, (F, n, *event), x_t over its prior's spread
    at that time, sqrt(alpha^2 + sigma^2), which is 1 under VP.
    """

    name: str
    evaluations: float
    times: tuple[float, ...]
    noisy: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Field:
    """The score at a time on a grid: places and arrows (N, 2) as the model sees them, and perturbed data (n, 2)."""

    t: float
    places: Tensor
    arrows: Tensor
    data: Tensor


@dataclass(frozen=True)
class Extras:
    """Each None, or empty, where it does not apply; `notes` say why.

    density      log p of the model's flow, as it sees the data, on a grid of the window of Plane.around (DENSITY, DENSITY),
                 rows from the top
    fields       the score at several times
    paths        (times, n, 2), of the first samples
    of_class     the class whose density and score these are; "" if the model has none
    likelihood   bits/dim of examples by the name of their split
    neighbours   samples and their nearest training examples (n, *event), with the RMS distance per dimension
    """

    film: Film | None = None
    density: Tensor | None = None
    fields: tuple[Field, ...] = ()
    paths: Tensor | None = None
    of_class: str = ""
    likelihood: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    neighbours: tuple[Tensor, Tensor, Tensor] | None = None
    notes: tuple[str, ...] = ()


def extras_of(of: Callable[[range], ScoreModel], rows: Sequence[Row], recommendation: Recommendation, dataset: Dataset,
              codec: Codec, event: tuple[int, ...], seed: int, device: torch.device | str, likelihood: int) -> Extras:
    """All that applies to the model and the data."""
    notes: list[str] = []
    film, paths = _film(of, rows, recommendation, codec, event, seed, device)
    bits = _likelihood(of(range(1)), dataset, codec, seed, device, likelihood, notes) if likelihood else {}
    density: Tensor | None = None
    fields: tuple[Field, ...] = ()
    of_class = ""
    if event == (2,):
        model, of_class = _of_any_batch(of, len(rows[0].shown), dataset, notes)
        if model is not None:
            density = _density(model, dataset, codec, device, notes)
            fields = _fields(model, dataset, codec, device, notes)
    near = None
    if len(event) > 1 and recommendation.row is not None:
        near = _neighbours(recommendation.row.shown[:NEIGHBOURS], dataset, codec)
    return Extras(film, density, fields, paths, of_class, bits, near, tuple(notes))


# ---- film --------------------------------------------------------------------------------------------------------------


def _film(of: Callable[[range], ScoreModel], rows: Sequence[Row], recommendation: Recommendation, codec: Codec,
          event: tuple[int, ...], seed: int, device: torch.device | str) -> tuple[Film | None, Tensor | None]:
    """The recommended sampler, at the largest of its budgets that has about as many steps as a film has frames."""
    first = recommendation.row or rows[0]
    own = [row for row in rows if row.name == first.name and row.nfe <= FILM_EVALUATIONS] or [first]
    row = max(own, key=lambda row: row.nfe)
    sampler = row.sampler
    if hasattr(sampler, "points"):
        sampler = dataclasses.replace(sampler, points=FRAMES)      # type: ignore[call-arg]
    elif row.budget is None:
        sampler = make_sampler("auto", steps=FRAMES)
    n = min(FILMED if len(event) > 1 else OF_POINTS, len(first.shown))
    model, seeds = of(range(n)), sample_seeds(seed, 0, n)
    result = sampler(model, prior_sample(model.sde, event, seeds, device), seeds, trajectory=True)
    assert result.trajectory is not None
    chosen = torch.linspace(0, len(result.times) - 1, min(FRAMES, len(result.times))).round().long()
    noisy, clean, times = [], [], result.times[chosen].tolist()
    with evaluation_mode(model), torch.no_grad():
        for i, t in zip(chosen.tolist(), times, strict=True):
            x = result.trajectory[i]
            noisy.append(x / spread(model.sde, t))
            clean.append(model.project(model.x0(x, t)) if t > 0 else x)
    film = Film(row.name if sampler is row.sampler or row.budget is not None else "auto", result.nfe, tuple(times),
                torch.stack(noisy).cpu(), torch.stack(clean).cpu())
    paths = None
    if len(event) == 1:
        scale = torch.tensor([spread(model.sde, t) for t in result.times.tolist()])
        paths = result.trajectory[:, :PATHS].cpu() / scale[:, None, None]
    return film, paths


def spread(sde: SDE, t: float) -> float:
    """sqrt(alpha^2 + sigma^2): the standard deviation of x_t for data of standard deviation 1."""
    return math.hypot(float(sde.alpha(t)), float(sde.sigma(t)))


# ---- the plane ---------------------------------------------------------------------------------------------------------


def grid_of(window: tuple[float, float, float, float], side: int) -> Tensor:
    """The centres of side x side cells, (side^2, 2), rows from the top; window = left, right, bottom, top."""
    left, right, bottom, top = window
    cells = (torch.arange(side) + 0.5) / side
    x, y = left + cells * (right - left), top - cells * (top - bottom)
    return torch.stack([x.repeat(side), y.repeat_interleave(side)], 1)


def _of_any_batch(of: Callable[[range], ScoreModel], n: int, dataset: Dataset, notes: list[str]
                  ) -> tuple[ScoreModel | None, str]:
    """The model of the first n samples for batches of any size, and the name of their class; None if there are several."""
    bound = [label for part in of(range(n)).modules()
             if isinstance(part, Given) and (label := part.condition.get(LABEL)) is not None]
    classes = sorted({y for label in bound for y in label.reshape(-1).tolist()})
    if len(classes) > 1:
        notes.append(f"No density and no score are shown: the samples are of {len(classes)} classes, and each has its own.")
        return None, ""
    model = of(range(1))
    if not classes:
        return model, ""
    names = dataset.class_names
    return model.given(label=classes[0]), names[classes[0]] if classes[0] < len(names) else str(classes[0])


def _density(model: ScoreModel, dataset: Dataset, codec: Codec, device: torch.device | str, notes: list[str]
             ) -> Tensor | None:
    from scorefield.evaluation.page.sheets import Plane

    if model.density_problem:
        notes.append(f"No density is shown: {model.density_problem}.")
        return None
    window = Plane.around(codec, examples_of(dataset, codec, 2000)).reach
    points = grid_of(window, DENSITY).float().to(device)
    try:
        values = log_prob(model, points, rtol=DENSITY_TOLERANCE, atol=DENSITY_TOLERANCE).value
    except (ArgumentError, ArithmeticError) as error:
        notes.append(f"No density is shown: {error}.")
        return None
    return values.cpu().double().reshape(DENSITY, DENSITY)


def _fields(model: ScoreModel, dataset: Dataset, codec: Codec, device: torch.device | str, notes: list[str]
            ) -> tuple[Field, ...]:
    """The score at times from noise to data, equally spaced in the half log-SNR where structure appears."""
    from scorefield.evaluation.page.sheets import Plane

    sde, data = model.sde, examples_of(dataset, codec, 1500)
    low, high = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_sample))
    lam = torch.linspace(max(low, -2.5), min(high, 3.0), FIELD_TIMES, dtype=torch.float64)
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    fields = []
    for t in sde.time(lam).clamp(sde.t_sample, sde.t_max).tolist():
        moved = sde.perturb(data, t, noise)
        window = Plane.around(AS_IT_IS, moved).reach
        places = grid_of(window, FIELD)
        try:
            with evaluation_mode(model), torch.no_grad():
                arrows = model.score(places.to(device), t).cpu()
        except ArgumentError as error:      # as of a classifier, bound to the label of one sample
            notes.append(f"No score is shown: {error}.")
            return ()
        fields.append(Field(t, places, arrows, moved))
    return tuple(fields)


# ---- examples ----------------------------------------------------------------------------------------------------------


def examples_of(dataset: Dataset, codec: Codec, most: int) -> Tensor:
    """Training examples, evenly spaced, as the model sees them; in the middle of their bins where they are dequantised."""
    total = len(dataset.train)
    data = dataset.train[torch.arange(min(total, most)) * total // min(total, most)][0]
    return codec.encode(data, torch.full_like(codec.noise_like(data), 0.5) if codec.noisy else None)


def _likelihood(model: ScoreModel, dataset: Dataset, codec: Codec, seed: int, device: torch.device | str, n: int,
                notes: list[str]) -> dict[str, list[float]]:
    """Bits/dim of n held-out and n training examples, by the exponential solver; given their labels where the model needs
    one.
    """
    free = LABEL in model.takes.names and model.takes.label_dropout
    base, label = model.given(label=None) if free else model, label_of(model, dataset)
    try:
        settings = LIKELIHOOD
        if len(dataset.shape) == 1:
            settings = {"rtol": DENSITY_TOLERANCE, "atol": DENSITY_TOLERANCE, "divergence": "exact"}
        return {name: score(base, dataset, codec, split, n, seed, device=device, progress=False, label=label,
                            **settings).bits_per_dim.tolist()
                for split, name in (("test", "held-out examples"), ("train", "training examples"))}
    except (ArgumentError, ArithmeticError) as error:
        notes.append(f"No likelihood is shown: {error}.")
        return {}


def _neighbours(samples: Tensor, dataset: Dataset, codec: Codec) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's nearest training example, by the RMS distance per dimension."""
    data = examples_of(dataset, codec, SEARCHED)
    distance, index = nearest(samples.flatten(1), data.flatten(1), 1, torch.device("cpu"))
    return samples, data[index[:, 0]], distance[:, 0] / math.sqrt(samples[0].numel())
