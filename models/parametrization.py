"""What a network's output F means, as linear maps between F, x_t, x_0 and eps.

With x_t = alpha x_0 + sigma eps every prediction is a combination of x_t and F, and every regression target one of
x_0 and eps (Salimans and Ho 2022, section 4; Kingma and Gao 2023, appendix). A parametrisation is therefore three
pairs of coefficients, functions of alpha and sigma:

    x_0 = a x_t + b F        eps = a x_t + b F        target for F = a x_0 + b eps

and d eps / d F, the second coefficient of the middle one, turns an error in F into an error in eps.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, ones_like, zeros_like

Pair = tuple[Tensor, Tensor]
Coefficients = Callable[[Tensor, Tensor], Pair]      # of (alpha, sigma)


@dataclass(frozen=True)
class Parametrization:
    name: str
    x0: Coefficients
    eps: Coefficients
    target: Coefficients

    def coefficients(self, kind: str, alpha: Tensor, sigma: Tensor) -> Pair:
        """(a, b) such that the prediction of `kind`, one of x0, eps, v and score, is a x_t + b F."""
        if kind == "x0":
            return self.x0(alpha, sigma)
        a, b = self.eps(alpha, sigma)
        if kind == "eps":
            return a, b
        if kind == "score":
            return -a / sigma, -b / sigma
        if kind == "v":
            c, d = self.x0(alpha, sigma)
            return alpha * a - sigma * c, alpha * b - sigma * d
        raise ValueError(f"unknown kind of prediction {kind!r}; choose from x0, eps, v, score")



PARAMETRIZATIONS = {
    p.name: p for p in (
        Parametrization(
            "eps",
            x0=lambda alpha, sigma: (1 / alpha, -sigma / alpha),
            eps=lambda alpha, sigma: (zeros_like(sigma), ones_like(sigma)),
            target=lambda alpha, sigma: (zeros_like(sigma), ones_like(sigma)),
        ),
        Parametrization(
            "x0",
            x0=lambda alpha, sigma: (zeros_like(sigma), ones_like(sigma)),
            eps=lambda alpha, sigma: (1 / sigma, -alpha / sigma),
            target=lambda alpha, sigma: (ones_like(sigma), zeros_like(sigma)),
        ),
        Parametrization(
            "v",
            x0=lambda alpha, sigma: (alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)),
            eps=lambda alpha, sigma: (sigma / (alpha**2 + sigma**2), alpha / (alpha**2 + sigma**2)),
            target=lambda alpha, sigma: (-sigma, alpha),
        ),
        Parametrization(
            "score",
            x0=lambda alpha, sigma: (1 / alpha, sigma**2 / alpha),
            eps=lambda alpha, sigma: (zeros_like(sigma), -sigma),
            target=lambda alpha, sigma: (zeros_like(sigma), -1 / sigma),
        ),
    )
}
