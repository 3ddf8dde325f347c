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

from scorefield.numerics.errors import ArgumentError

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


def edm(data_std: float) -> Parametrization:
    """The preconditioning of EDM for data of standard deviation s (Karras et al. 2022, table 1 and appendix B.6).

    Theirs is for z = x / alpha at the noise level l = sigma / alpha: D(z) = c_skip z + c_out F(c_in z) is x_0, with
    c_skip = s^2 / (l^2 + s^2), c_out = l s / sqrt(l^2 + s^2) and c_in = 1 / sqrt(l^2 + s^2). With V = alpha^2 s^2 +
    sigma^2, the variance of x_t, c_in z is x_t / sqrt V (which is what the Denoiser's input_std does), and

        x_0 = alpha s^2 / V x_t + sigma s / sqrt V F      F = (sigma x_0 - alpha s^2 eps) / (s sqrt V), of unit variance
    """
    s = data_std

    def std(alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha * s).square() + sigma.square()).sqrt()

    return Parametrization(
        "edm",
        x0=lambda alpha, sigma: (alpha * s**2 / std(alpha, sigma).square(), sigma * s / std(alpha, sigma)),
        eps=lambda alpha, sigma: (sigma / std(alpha, sigma).square(), -alpha * s / std(alpha, sigma)),
        target=lambda alpha, sigma: (sigma / (s * std(alpha, sigma)), -alpha * s / std(alpha, sigma)),
    )


# By name, a parametrisation, or what makes it from the standard deviation of the data.
PARAMETRIZATIONS: dict[str, Parametrization | Callable[[float], Parametrization]] = {
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
} | {"edm": edm}


def make_parametrization(name: str, data_std: float | None = None) -> Parametrization:
    """The parametrisation of that name; ValueError for an unknown one, and for "edm" without `data_std`."""
    if name not in PARAMETRIZATIONS:
        raise ArgumentError(f"unknown parametrization {name!r}; choose from {', '.join(PARAMETRIZATIONS)}",
                            "parametrization")
    known = PARAMETRIZATIONS[name]
    if isinstance(known, Parametrization):
        return known
    if data_std is None:
        raise ArgumentError(f"parametrization {name!r} needs the standard deviation of the data", "input_std")
    return known(data_std)
