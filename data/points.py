"""Points in the plane, with standard deviations near 1: the swiss roll and two mixtures of Gaussians."""

from __future__ import annotations

import numpy as np


def sample_swiss_roll(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2), float64: a (cos a, sin a) / 7 + 0.05 eps, a = 3 pi/2 (1 + 2u), u ~ U[0, 1), eps ~ N(0, I).

    The spiral of Sohl-Dickstein et al., "Deep Unsupervised Learning using Nonequilibrium Thermodynamics",
    2015, figure 1: one and a half turns, the arms 2 pi/7 = 0.9 apart, standard deviation about 1 overall.
    """
    a = 1.5 * np.pi * (1 + 2 * rng.random((n, 1)))
    return a * np.hstack([np.cos(a), np.sin(a)]) / 7 + 0.05 * rng.standard_normal((n, 2))


def sample_mixture(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2), float64: independent draws from the mixture of that name."""
    means, variances, weights = mixture_parameters(name)
    component = rng.choice(len(weights), size=n, p=weights)
    return means[component] + np.sqrt(variances)[component, None] * rng.standard_normal((n, 2))


def mixture_parameters(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (K, 2), variances (K,) and weights (K,), float64, of a mixture of K isotropic Gaussians.

    `gaussians8`: on a circle of radius sqrt 2, standard deviation 0.1. `gaussians25`: on a 5 x 5 grid of
    spacing 1/sqrt 2, standard deviation 0.05. All weights are equal, and the means give each coordinate
    variance 1. Raises ValueError for any other name.
    """
    if name == "gaussians8":
        a = np.arange(8) * np.pi / 4
        means, std = np.sqrt(2) * np.stack([np.cos(a), np.sin(a)], axis=1), 0.1
    elif name == "gaussians25":
        grid = np.arange(-2, 3) / np.sqrt(2)
        means, std = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(25, 2), 0.05
    else:
        raise ValueError(f"unknown mixture {name!r}; known: gaussians8, gaussians25")
    return means, np.full(len(means), std**2), np.full(len(means), 1 / len(means))
