"""Classification by likelihood: which class makes an example likeliest, by Bayes' rule.

    p(y given x) = p(x given y) p(y) / sum_k p(x given k) p(k)

with the model's own p(x given y) and the frequencies of the classes in the training data as p(y). The example is taken for
the likeliest class. That a class-conditional generative model is a classifier is old; with exact likelihoods of score models
it is Zimmermann et al. 2021, "Score-Based Generative Classifiers". Li et al. 2023, "Your Diffusion Model is Secretly a
Zero-Shot Classifier", and Clark and Jaini 2023 do it with bounds. Every class is scored with the same dequantisation and the
same probes, so that most of their noise cancels in the comparison.

How well the probabilities are calibrated, over n examples with true labels y_i:

    negative log-likelihood   -1/n sum_i log p(y_i given x_i), in nats
    Brier score               1/n sum_i sum_k (p(k given x_i) - [k = y_i])^2                            (Brier 1950)
    calibration error         sum_b n_b/n |accuracy_b - confidence_b| over equal bins of the confidence max_k p(k given x_i)
                              (Naeini et al. 2015; Guo et al. 2017, equation 3)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scorefield.data import Dataset
from scorefield.evaluation.score import Score
from scorefield.numerics.errors import ArgumentError

BINS = 15


@dataclass(frozen=True, eq=False)
class Classification:
    """What n examples of known classes are taken for.

        result = Classification(log_likelihood, label, prior=torch.full((10,), 0.1))
        print(result.accuracy, result.standard_error)

    log_likelihood  (n, classes): log p(x_i given y) in nats, float64
    label           (n,): the true classes
    prior           (classes,): p(y), which may be 0 for a class that never occurs

    Raises ArgumentError if the shapes do not fit.
    """

    log_likelihood: Tensor
    label: Tensor
    prior: Tensor

    def __post_init__(self) -> None:
        n, classes = self.log_likelihood.shape
        if self.label.shape != (n,) or self.prior.shape != (classes,) or not n:
            raise ArgumentError(f"need log_likelihood (n, classes), label (n,) and prior (classes,), got {(n, classes)}, "
                                f"{tuple(self.label.shape)} and {tuple(self.prior.shape)}", "label", "prior")
        if int(self.label.min()) < 0 or int(self.label.max()) >= classes:
            raise ArgumentError(f"labels go from 0 to {classes - 1}, got {int(self.label.min())} to "
                                f"{int(self.label.max())}", "label")

    @cached_property
    def log_joint(self) -> Tensor:
        """log p(x_i given y) + log p(y), (n, classes)."""
        return self.log_likelihood.double() + self.prior.double().log()

    @cached_property
    def log_posterior(self) -> Tensor:
        """log p(y given x_i), (n, classes)."""
        return self.log_joint.log_softmax(1)

    @property
    def predicted(self) -> Tensor:
        """(n,): the likeliest class."""
        return self.log_posterior.argmax(1)

    @property
    def right(self) -> Tensor:
        """(n,): whether it is the true one, as 0 or 1."""
        return (self.predicted == self.label).double()

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy p, as a share of n examples: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.label))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 % (Wilson 1927), which is right for shares near 0 and 1, too."""
        return wilson(self.accuracy, len(self.label))

    @property
    def confidence(self) -> Tensor:
        """(n,): the probability of the likeliest class."""
        return self.log_posterior.max(1).values.exp()

    @property
    def negative_log_likelihood(self) -> float:
        return -float(self.log_posterior.gather(1, self.label[:, None]).mean())

    @property
    def brier(self) -> float:
        one_hot = torch.nn.functional.one_hot(self.label, self.log_posterior.shape[1])
        return float((self.log_posterior.exp() - one_hot).square().sum(1).mean())

    @property
    def reliability(self) -> list[dict[str, float]]:
        """For each bin of the confidence that has examples: its ends, its number, mean confidence and accuracy."""
        bins = (self.confidence * BINS).long().clamp(max=BINS - 1)
        rows = []
        for b in bins.unique().tolist():
            own = bins == b
            rows.append({"from": b / BINS, "to": (b + 1) / BINS, "examples": int(own.sum()),
                         "confidence": float(self.confidence[own].mean()), "accuracy": float(self.right[own].mean())})
        return rows

    @property
    def calibration_error(self) -> float:
        return sum(row["examples"] * abs(row["accuracy"] - row["confidence"]) for row in self.reliability) / len(self.label)

    @property
    def confusion(self) -> Tensor:
        """(classes, classes): how many examples of the class of the row were taken for that of the column."""
        classes = len(self.prior)
        return torch.bincount(self.label * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def summary(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {"accuracy": self.accuracy, "standard_error": self.standard_error, "interval_95": list(self.interval),
                "num_images": len(self.label), "mean_confidence": float(self.confidence.mean()),
                "negative_log_likelihood_nats": self.negative_log_likelihood, "brier": self.brier,
                "calibration_error": self.calibration_error, "reliability": self.reliability,
                "prior": self.prior.tolist(), "confusion": self.confusion.tolist()}

    def rows(self, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """A row for each example, for CSV: its class, what it is taken for, how probable that is, log p of each class."""
        named = [names[y] if y < len(names) else str(y) for y in range(len(self.prior))]
        return [{"index": i, "label": named[y], "predicted": named[p], "probability": repr(float(c)),
                 **{f"log_prob_{name}": repr(float(value)) for name, value in zip(named, values, strict=True)}}
                for i, (y, p, c, values) in enumerate(zip(self.label.tolist(), self.predicted.tolist(), self.confidence,
                                                          self.log_likelihood, strict=True))]


def classify(scores: Sequence[Score], label: Tensor, prior: Tensor) -> Classification:
    """The classification of examples that were scored once for each class: scores[y] holds log p(x_i given y).

    Over several draws the mean of log p is taken, as in bits/dim.
    """
    return Classification(torch.stack([score.log_prob.mean(0) for score in scores], 1), label, prior)


def frequencies(dataset: Dataset, classes: int) -> Tensor:
    """The share of each class in the training split, float64 (classes,); ArgumentError if it has no labels."""
    label = labels_of(dataset.train, dataset.name)
    return torch.bincount(label, minlength=classes).double() / len(label)


def labels_of(split: Any, name: str, argument: str = "data.dataset", why: str = "") -> Tensor:
    """The labels (n,) of a split; ArgumentError if it has none, with the argument that gave the split, and the reason."""
    condition = getattr(split, "condition", None)      # without reading the pictures, if it knows them apart
    if condition is None:
        condition = split[torch.arange(len(split))][1]
    if "label" not in condition:
        raise ArgumentError(f"the examples of data set {name!r} have no labels, which this needs{why and f' ({why})'}",
                            argument)
    return condition["label"]


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
