"""Averages of weights that nobody tracked, from snapshots of those that were: Karras et al. 2024 (EDM2), section 3.2.

A power-function average after t updates has the profile, a density of the time tau at which weights were seen,

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)    on [0, t]

The sum over the snapshots i of x_i p_i(tau) is nearest to another profile p(tau), in the mean square over tau, if

    sum_j <p_i, p_j> x_j = <p_i, p>,
    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * m^(gamma_a + gamma_b + 1)
                 / (t_a^(gamma_a + 1) t_b^(gamma_b + 1)),    m = min(t_a, t_b)

(algorithm 3 of the paper). The average is then the sum of x_i times the weights of snapshot i.
"""

import math
from collections.abc import Sequence

import numpy as np

Profile = tuple[int, float]      # t, gamma


def inner_product(a: Profile, b: Profile) -> float:
    """<p_a, p_b>: `inner_product((100, 6.94), (80, 16.97))`. In logarithms, since t^gamma overflows."""
    (t_a, gamma_a), (t_b, gamma_b) = a, b
    both, m = gamma_a + gamma_b + 1, math.log(min(t_a, t_b))
    return (gamma_a + 1) * (gamma_b + 1) / both * math.exp(
        both * m - (gamma_a + 1) * math.log(t_a) - (gamma_b + 1) * math.log(t_b))


def combination(stored: Sequence[Profile], wanted: Profile, rounding: float = 6e-8) -> tuple[np.ndarray, float]:
    """The factors x_i of the snapshots, and the distance of the profiles, relative to the wanted one in the mean square.

    rounding  relative error of the stored weights. Coefficients so large that they would enlarge it are avoided: the sum of
              squares that is minimised has (rounding x_i)^2 times the mean square of the profiles, too

        x, distance = combination([(t, gamma) for t in (50, 100) for gamma in (6.94, 16.97)], (100, gamma_of(0.08)))
    """
    size = inner_product(wanted, wanted)
    gram = np.array([[inner_product(a, b) for b in stored] for a in stored]) / size
    right = np.array([inner_product(a, wanted) for a in stored]) / size
    scale = 1 / np.sqrt(np.diag(gram))      # narrow profiles of early snapshots are large
    normal = gram * scale[:, None] * scale + rounding**2 * np.eye(len(stored))
    x = np.linalg.lstsq(normal, right * scale, rcond=1e-15)[0] * scale
    x = x / x.sum()      # weights that stay as they are have themselves as their average
    return x, math.sqrt(max(0.0, float(1 - 2 * x @ right + x @ gram @ x)))
