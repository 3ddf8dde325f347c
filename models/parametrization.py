"""What a network's output F means, as linear maps between F, x_t, x_0 and eps.

With x_t = alpha x_0 + sigma eps every prediction is a combination of x_t and F, and every regression target one of
x_0 and eps (Salimans and Ho 2022, section 4; Kingma and Gao 2023, appendix). A parametrisation is therefore three
pairs of coefficients, functions of alpha and sigma:

    x_0 = a x_t + b F        eps = a x_t + b F        target for F = a x_0 + b eps

and d eps / d F, the second coefficient of the middle one, turns an error in F into an error in eps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, ones_like, zeros_like

from scorefield.numerics.errors import ArgumentError

Pair = tuple[Tensor, Tensor]

KINDS = ("x0", "eps", "v", "score", "flow")      # what a score model can predict


def check_kind(kind: str) -> None:
    """ArgumentError unless `kind` is one of KINDS."""
    if kind not in KINDS:
        raise ArgumentError(f"unknown kind of prediction {kind!r}; choose from {', '.join(KINDS)}", "kind")


class Parametrization(ABC):
    """Three pairs of coefficients, each of the shape of alpha and sigma, which are scalars or (batch,)."""

    name: ClassVar[str]

    @abstractmethod
    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        """(a, b) such that x_0 = a x_t + b F."""

    @abstractmethod
    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        """(a, b) such that eps = a x_t + b F."""

    @abstractmethod
    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        """(a, b) such that F should be a x_0 + b eps."""

    def coefficients(self, kind: str, alpha: Tensor, sigma: Tensor) -> Pair:
        """(a, b) such that the prediction of `kind`, one of KINDS, is a x_t + b F; ArgumentError for another word."""
        check_kind(kind)
        if kind == "x0":
            return self.x0(alpha, sigma)
        a, b = self.eps(alpha, sigma)
        if kind == "eps":
            return a, b
        if kind == "score":
            return -a / sigma, -b / sigma
        c, d = self.x0(alpha, sigma)
        if kind == "flow":
            return a - c, b - d
        return alpha * a - sigma * c, alpha * b - sigma * d


@dataclass(frozen=True)
class Eps(Parametrization):
    """F = eps (Ho et al. 2020)."""

    name: ClassVar[str] = "eps"

    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return 1 / alpha, -sigma / alpha

    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return zeros_like(sigma), ones_like(sigma)

    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return zeros_like(sigma), ones_like(sigma)


@dataclass(frozen=True)
class X0(Parametrization):
    """F = x_0, a denoiser."""

    name: ClassVar[str] = "x0"

    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return zeros_like(sigma), ones_like(sigma)

    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return 1 / sigma, -alpha / sigma

    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return ones_like(sigma), zeros_like(sigma)


@dataclass(frozen=True)
class V(Parametrization):
    """F = alpha eps - sigma x_0 (Salimans and Ho 2022, section 4)."""

    name: ClassVar[str] = "v"

    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)

    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return sigma / (alpha**2 + sigma**2), alpha / (alpha**2 + sigma**2)

    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return -sigma, alpha


@dataclass(frozen=True)
class Score(Parametrization):
    """F = grad log p_t(x_t) = -eps / sigma (Song et al. 2021)."""

    name: ClassVar[str] = "score"

    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return 1 / alpha, sigma**2 / alpha

    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return zeros_like(sigma), -sigma

    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return zeros_like(sigma), -1 / sigma


@dataclass(frozen=True)
class Flow(Parametrization):
    """F = eps - x_0, the velocity dx_t/dt where alpha = 1 - t and sigma = t (Lipman et al. 2023; Liu et al. 2023).

    No coefficient divides by alpha or by sigma, so both ends of every SDE are fine: alpha + sigma is positive.
    """

    name: ClassVar[str] = "flow"

    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)

    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return 1 / (alpha + sigma), alpha / (alpha + sigma)

    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        return -ones_like(sigma), ones_like(sigma)


@dataclass(frozen=True)
class EDM(Parametrization):
    """The preconditioning of EDM for data of standard deviation s (Karras et al. 2022, table 1 and appendix B.6).

    Theirs is for z = x / alpha at the noise level l = sigma / alpha: D(z) = c_skip z + c_out F(c_in z) is x_0, with
    c_skip = s^2 / (l^2 + s^2), c_out = l s / sqrt(l^2 + s^2) and c_in = 1 / sqrt(l^2 + s^2). With V = alpha^2 s^2 +
    sigma^2, the variance of x_t, c_in z is x_t / sqrt V (which is what the Denoiser's input_std does), and

        x_0 = alpha s^2 / V x_t + sigma s / sqrt V F      F = (sigma x_0 - alpha s^2 eps) / (s sqrt V), of unit variance
    """

    data_std: float
    name: ClassVar[str] = "edm"

    def x0(self, alpha: Tensor, sigma: Tensor) -> Pair:
        s, std = self.data_std, self._std(alpha, sigma)
        return alpha * s**2 / std.square(), sigma * s / std

    def eps(self, alpha: Tensor, sigma: Tensor) -> Pair:
        std = self._std(alpha, sigma)
        return sigma / std.square(), -alpha * self.data_std / std

    def target(self, alpha: Tensor, sigma: Tensor) -> Pair:
        s, std = self.data_std, self._std(alpha, sigma)
        return sigma / (s * std), -alpha * s / std

    def _std(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha * self.data_std).square() + sigma.square()).sqrt()


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {p.name: p for p in (Eps, X0, V, Score, Flow, EDM)}


def make_parametrization(name: str, data_std: float | None = None) -> Parametrization:
    """The parametrisation of that name; ArgumentError for an unknown one, and for "edm" without `data_std`."""
    if name not in PARAMETRIZATIONS:
        raise ArgumentError(f"unknown parametrization {name!r}; choose from {', '.join(PARAMETRIZATIONS)}",
                            "parametrization")
    if name != EDM.name:
        return PARAMETRIZATIONS[name]()
    if data_std is None:
        raise ArgumentError(f"parametrization {name!r} needs the standard deviation of the data", "input_std")
    return EDM(data_std)
