"""Fitted variances in a run's folder: variance/step_00003000.npz, one for each checkpoint, average and use of labels.

A file holds the moments (evaluation/moments.py), which of them to use, and what they belong to, under a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scorefield.checkpoints.formats.run import OF_THE_DATA
from scorefield.models import FittedVariance, Moments, ScoreModel
from scorefield.models.variance import from_stored, stored
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import json_digest, known_to_json, read_arrays, seal, sha256_of, write_arrays

AGAIN = "fit it again with mode fit_variance"


@dataclass(frozen=True, eq=False)
class Fit:
    """Moments of the model of a checkpoint, and how they make a variance.

    covariance, estimate, span  arguments of FittedVariance
    of                          what the moments are of: `belongs_to`
    settings                    how they were estimated: n, points, seed
    """

    moments: Moments
    covariance: str = "diagonal"
    estimate: str = "residual"
    span: float | None = None
    of: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moments.shares(self.estimate, self.covariance)      # refuses other words

    @property
    def digest(self) -> str:
        """Of all that a variance depends on."""
        return json_digest([seal(stored(self.moments)), self.covariance, self.estimate, self.span])

    def model(self, model: ScoreModel) -> FittedVariance:
        """`model`, to which the moments belong, with its variance."""
        return FittedVariance(model, self.moments, self.estimate, self.covariance, self.span)

    def using(self, covariance: str, estimate: str) -> Fit:
        """The same moments, used in another way."""
        return replace(self, covariance=covariance, estimate=estimate)


def path_of(run: Path, checkpoint: Path, average: str | bool, labelled: bool) -> Path:
    """The file of a checkpoint's fit; `average` as in Checkpoint.denoiser."""
    from scorefield.evaluation.names import words_of_weights

    parts = [checkpoint.stem, *words_of_weights(average), *(["labels"] if labelled else [])]
    return run / "variance" / f"{'_'.join(parts)}.npz"


def belongs_to(checkpoint: Path, config: Mapping[str, Any], average: str | bool, labelled: bool) -> dict[str, Any]:
    """What moments depend on, beside their settings: the weights, the process, the model, and the codec of the data."""
    sections = {name: known_to_json(dict(config[name])) for name in ("sde", "model", "data") if name in config}
    for name in OF_THE_DATA:
        sections["data"].pop(name.removeprefix("data."), None)
    return {"weights": sha256_of(checkpoint), **sections, "average": average, "labelled": labelled}


def write(path: Path, fit: Fit) -> None:
    """Write a fit; the file is whole or not there."""
    described = {name: known_to_json(value) for name, value in vars(fit).items() if name != "moments"}
    arrays = {**stored(fit.moments), "described": json.dumps(described, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays)


def read(path: Path, of: Mapping[str, Any]) -> Fit:
    """The fit in a file that belongs to `of`.

    Raises FileNotFoundError if there is none, ArgumentError if it is damaged or belongs to another model.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no fitted variance {path}; fit it first with mode fit_variance"
                                + (" and label true" if of["labelled"] else ""))
    try:
        arrays = read_arrays(path)
        described = json.loads(str(arrays.pop("described")))
        fit = Fit(from_stored(arrays), **described)
    except Exception as error:      # the parsers of damaged files raise errors of every type
        raise ArgumentError(f"{path} is damaged ({str(error) or type(error).__name__}); {AGAIN}", "variance") from None
    wanted = known_to_json(dict(of))
    if other := [name for name in wanted if fit.of.get(name) != wanted[name]]:
        raise ArgumentError(f"{path} was fitted to another model: its {' and '.join(other)} differ; {AGAIN}", "variance")
    return fit
