"""The Inception Score (Salimans et al. 2016, "Improved Techniques for Training GANs", section 4), of a network with classes.

    IS = exp(E KL(p(y given x) || p(y)))

p(y given x) are the network's probabilities and p(y) their mean over the samples. It is 1 at the least and the number of
classes at the most, and it compares with no data: the score of held-out examples stands beside it, which is no bound. It
grows with the number of samples, so it is the mean over groups of 5,000, as in the literature (10 groups of 50,000 samples),
or of all samples where they are fewer than 10,000.

With the logarithm's own mean, sample i has the influence IS (KL_i - log IS): the derivative through p(y) is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.evaluation.metrics.metric import BOOTSTRAP, Metric
from scorefield.evaluation.metrics.reference import Reference
from scorefield.numerics.errors import ArgumentError

GROUP = 5000


class InceptionScore(Metric):
    """Higher is better."""

    name, space, better, minimum, whole = "inception_score", "logits", "higher", 50, False

    def __init__(self, reference: Reference, seed: int = 0, bootstrap: int = BOOTSTRAP):
        super().__init__(reference, seed, bootstrap)
        if reference.features is None or reference.features.classes is None:
            raise ArgumentError("inception_score needs a feature network with classes: inception, or one of the project's "
                                "classifiers", "features")

    def measure(self, x: Tensor) -> tuple[float, Tensor]:
        scores, influences = [], []
        for logits in x.tensor_split(max(1, len(x) // GROUP)):
            log_p = logits.double().log_softmax(1)
            p = log_p.exp()
            divergence = torch.where(p > 0, p * (log_p - p.mean(0).log()), 0).sum(1)
            score = divergence.mean().exp()
            scores.append(float(score))
            influences.append(score * (divergence - divergence.mean()))
        return sum(scores) / len(scores), torch.cat(influences)
