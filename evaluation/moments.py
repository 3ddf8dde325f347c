"""Fit the variance of x_0 given x_t: moments of a model's errors on training examples (models/variance.py).

    from scorefield.evaluation import fit_moments

    moments = fit_moments(model, dataset, codec, n=1000)
    model = FittedVariance(model, moments)
"""

from __future__ import annotations

import torch

from scorefield.data import Codec, Dataset
from scorefield.evaluation.given import given_of, unbound
from scorefield.evaluation.progress import Progress
from scorefield.models import ScoreModel
from scorefield.models.conditions import LABEL
from scorefield.models.score_model import evaluation_mode
from scorefield.models.variance import Moments
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import PRIOR, NoiseStream
from scorefield.samplers import sample_seeds

POINTS, EXAMPLES = 100, 1000


def fit_moments(model: ScoreModel, dataset: Dataset, codec: Codec, n: int = EXAMPLES, points: int = POINTS, seed: int = 0,
                batch_size: int = 128, device: torch.device | str = "cpu", labelled: bool = False, progress: bool = False
                ) -> Moments:
    """The moments at `points` times, equally spaced in half log-SNR from t_max to t_min, of n training examples.

    n         examples, evenly spaced among the training examples; at most all of them are taken
    labelled  give the model the examples' labels

    A chain's first and last index are among the times, since t_min is the first one's. It takes n * points evaluations.
    Raises ArgumentError for fewer than 2 points or examples, and for labels that are not there.
    """
    if points < 2 or n < 2:
        raise ArgumentError(f"moments need at least 2 points and 2 examples, got {points} and {n}", "points", "num_samples")
    sde, total = model.sde, len(dataset.train)
    n = min(n, total)
    first, last = (float(sde.half_log_snr(torch.tensor(t, dtype=torch.float64))) for t in (sde.t_max, sde.t_min))
    nodes = torch.linspace(first, last, points, dtype=torch.float64)
    times = sde.time(nodes).clamp(sde.t_min, sde.t_max)
    times[0], times[-1] = sde.t_max, sde.t_min
    event = codec.event(dataset.shape)
    residual, score = (torch.zeros(points, *event, dtype=torch.float64) for _ in range(2))
    index = torch.arange(n) * total // n
    with evaluation_mode(model), torch.no_grad(), Progress(n * points, "evaluation", progress, "evaluations",
                                                           n * points) as bar:
        for begin in range(0, n, batch_size):
            data, condition = dataset.train[index[begin:begin + batch_size]]
            noise = NoiseStream(sample_seeds(seed, begin, begin + len(data)), PRIOR)
            x = codec.encode(data, noise.uniform(codec.noise_like(data)) if codec.noisy else None).to(device)
            told = unbound(model, condition)
            if labelled:
                if LABEL not in condition:
                    raise ArgumentError(f"the examples of data set {dataset.name!r} have no labels", "label")
                told[LABEL] = condition[LABEL]
            own = given_of(model, told, device)
            for i, t in enumerate(times):
                eps = noise.normal(x)
                predicted = own.eps(sde.perturb(x, t, eps), t)
                residual[i] += (eps - predicted).cpu().double().square().sum(0)      # not every accelerator has float64
                score[i] += predicted.cpu().double().square().sum(0)
                bar.at(begin * points + (i + 1) * len(data))
                bar.show(lambda: int(bar.bar.n))
    return Moments(nodes, residual / n, score / n, n)
