"""Methods that differentiate the model's x_0: with J = d x_0 / d x_t and r = y - A(x_0),

    shift = sigma^2 / alpha J^T A^T (A C A^T + noise_std^2 I)^-1 r        psi = N(y; A(x_0), A C A^T + noise_std^2 I)

where C stands for the covariance of x_0 given x_t.

    PiGDM    C = r_t^2 I, that of data N(mean, s^2 I): r_t^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2). Song et al. 2023,
             "Pseudoinverse-Guided Diffusion Models for Inverse Problems"
    TMPD     C = sigma^2 / alpha J, which is the covariance (Tweedie's second moment). Boys et al. 2023, "Tweedie Moment
             Projected Diffusions for Inverse Problems"; Rozet et al. 2024, "Learning Diffusion Priors from
             Observations by Expectation Maximization" (MMPS), which solves by conjugate gradients
    DPS      C = 0: psi is the likelihood of the mean. Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy
             Inverse Problems", theorem 1 and algorithm 1

Exact for Gaussian data are TMPD, whatever their covariance, and PiGDM where it is s^2 I: then psi is p(y given x_t) itself.
DPS is exact for none. The shift of TMPD leaves out how C depends on x_t: for other data it is near the gradient of psi, no
more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.guidance.posterior.base import TINY, Method, Situation
from scorefield.numerics.divergence import products
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option
from scorefield.sde_lib.sde import expand_as

WEIGHTS = ("step", "score", "likelihood")
CHUNK = 32      # products with the Jacobian at once


@dataclass(frozen=True)
class PiGDM(Method):
    """Pseudo-inverse guided diffusion."""

    data_std: float = option(1.0, "standard deviation s of the data, from which the covariance of x_0 is guessed")

    def __post_init__(self) -> None:
        if not 0 < self.data_std < 1e9:
            raise ArgumentError(f"data_std must be positive, got {self.data_std:g}", "method")

    def guide(self, at: Situation) -> tuple[Tensor, Tensor]:
        s2, sigma2 = self.data_std**2, at.sigma.square()
        variance = s2 * sigma2 / (at.alpha.square() * s2 + sigma2)
        _, log_twist = at.gaussian((at.per_measurement(variance) * at.eigenvalues + at.noise_std**2).clamp(min=TINY))
        return expand_as(at.sigma.square() / at.alpha, at.x) * at.slope(log_twist), log_twist


@dataclass(frozen=True)
class DPS(Method):
    """Diffusion posterior sampling.

    The paper's step of zeta' / |r| grad |r|^2, of which a chain of 1000 takes 1000, is as a score 1000 zeta' / (g^2 |r|)
    grad |r|^2. Here |r| is the root of the mean square, so that zeta does not depend on the number of elements: zeta' of the
    paper's pictures, with 3 x 256 x 256 of them, is 0.44 zeta. That is weak beside much noise and strong beside little. With
    weight "score" the strength is the same at all times, as in deepinv.
    """

    zeta: float = option(1.0, "strength, a factor of log psi")
    weight: str = option("step", "of m elements: step, log psi = -2 m^(1/2) |r| / g(t)^2, the paper's; score, -m^(1/2) |r|; "
                                 "likelihood, -|r|^2 / (2 noise_std^2), which needs many steps")
    linear = False

    def __post_init__(self) -> None:
        if not 0 < self.zeta < 1e9:
            raise ArgumentError(f"zeta must be positive, got {self.zeta:g}", "method")
        if self.weight not in WEIGHTS:
            raise ArgumentError(f"unknown weight {self.weight!r}; choose from {', '.join(WEIGHTS)}", "method")

    def guide(self, at: Situation) -> tuple[Tensor, Tensor]:
        squares = at.residual.flatten(1).square().sum(1)
        if self.weight != "likelihood":
            by_time = 2 / at.sde.g2(at.t) if self.weight == "step" else torch.ones_like(at.sigma)
            strength = (self.zeta * math.sqrt(at.operator.size) * by_time).to(squares)
            log_twist = -strength * squares.clamp(min=TINY).sqrt()
        elif at.noise_std == 0:
            raise ArgumentError("dps with weight=likelihood needs a measurement with noise; give noise_std above 0",
                                "noise_std", "method")
        else:
            log_twist = -self.zeta * squares / (2 * at.noise_std**2)
        return expand_as(at.sigma.square() / at.alpha, at.x) * at.slope(log_twist), log_twist


@dataclass(frozen=True)
class TMPD(Method):
    """Tweedie moment projected diffusion, whose covariance is the model's own."""

    dense: int = option(128, "elements of a measurement up to which A C A^T is a matrix, of exact determinant; beyond, "
                            "conjugate gradients")
    iterations: int = option(8, "of conjugate gradients, at most")
    linear = False

    def __post_init__(self) -> None:
        if self.dense < 0 or self.iterations < 1:
            raise ArgumentError("dense must not be negative and iterations at least 1, got "
                                f"{self.dense} and {self.iterations}", "method")

    def guide(self, at: Situation) -> tuple[Tensor, Tensor]:
        scale = at.sigma.square() / at.alpha
        solve = self._by_matrix if at.operator.size <= self.dense else self._by_gradients
        slope, log_twist = solve(at, scale)
        return expand_as(scale, at.x) * slope, log_twist

    def _by_matrix(self, at: Situation, scale: Tensor) -> tuple[Tensor, Tensor]:
        """J^T A^T S^-1 r and log N(r; 0, S), S = A C A^T + noise_std^2 I as a matrix (batch, m, m)."""
        residual, m = at.residual.flatten(1), at.operator.size
        rows, covariance = _products(at)
        covariance = expand_as(scale, covariance) * (covariance + covariance.mT) / 2
        values, basis = torch.linalg.eigh(covariance)
        # A network's Jacobian is no covariance: eigenvalues below 0 count by their size, and no shift is larger than r asks
        values = values.abs()
        least = 10 * torch.finfo(values.dtype).eps * values.amax(1, keepdim=True)
        values = torch.maximum(values, least) + max(at.noise_std**2, TINY)
        coefficients = (residual[:, None] @ basis)[:, 0]
        log_twist = -0.5 * ((coefficients.square() / values).sum(1) + values.log().sum(1) + m * math.log(2 * math.pi))
        solved = (basis @ (coefficients / values)[:, :, None])[:, :, 0]
        return torch.einsum("bk,kb...->b...", solved, rows), log_twist

    def _by_gradients(self, at: Situation, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As `_by_matrix`, with S^-1 r by conjugate gradients, and the determinant of c I for that of S, where c = r^T r /
        r^T S^-1 r.

        For r ~ N(0, S) that is on average about the mean eigenvalue, so log psi is too low by about m/2 times the logarithm
        of their arithmetic over their geometric mean. The shift does not depend on it, and the weights of twisted_smc make
        up for any twist. Exact are one element, eigenvalues that are all equal, and `dense` of at least m.
        """
        measured, m = at.operator(at.x0), at.operator.size
        factor = expand_as(scale, at.residual)

        def pulled(v: Tensor) -> Tensor:
            """J^T A^T v, (batch, *event)."""
            slope, = torch.autograd.grad(measured, at.x, v, retain_graph=True, create_graph=at.again)
            return slope

        def product(v: Tensor) -> Tensor:
            """S v. A network's Jacobian is no covariance, so that S v may point against v: `_conjugate_gradients` stops
            there.
            """
            return factor * at.pushed(pulled(v)) + (at.noise_std**2 + TINY) * v

        solved = _conjugate_gradients(product, at.residual, self.iterations)
        squares = (solved * at.residual).flatten(1).sum(1).clamp(min=0)
        size = at.residual.flatten(1).square().sum(1)
        mean_variance = size.clamp(min=TINY) / squares.clamp(min=TINY)
        return pulled(solved), -0.5 * (squares + m * torch.log(2 * math.pi * mean_variance))


def _conjugate_gradients(product: Callable[[Tensor], Tensor], r: Tensor, iterations: int) -> Tensor:
    """An approximation of S^-1 r, each sample by itself; a sample stops where it is exact or S is not positive along the
    search.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    u, direction, size = torch.zeros_like(r), r, dot(r, r)
    first, running = size, size > 0
    for _ in range(iterations):
        image = product(direction)
        curvature = dot(direction, image)
        running = running & (curvature > 0) & (size > 1e-20 * first)
        if not bool(running.any()):
            break
        step = expand_as(torch.where(running, size / curvature.where(running, 1), 0), r)
        u, r = u + step * direction, r - step * image
        left = dot(r, r)
        direction = r + expand_as(torch.where(running, left / size.where(running, 1), 0), r) * direction
        size = left
    return u


def _products(at: Situation) -> tuple[Tensor, Tensor]:
    """The rows of A J, (m, batch, *event), and A J A^T, (batch, m, m)."""
    measured, m = at.operator(at.x0).flatten(1), at.operator.size
    rows: list[Tensor] = []
    linearised: list[Tensor] = []      # the rows of the operator's own Jacobian, where it is not linear
    for start in range(0, m, CHUNK):
        stop = min(start + CHUNK, m)
        basis = torch.zeros(stop - start, m, dtype=at.x.dtype, device=at.x.device)
        basis[:, start:stop].fill_diagonal_(1.0)
        basis = basis[:, None].expand(-1, len(at.x), -1)
        rows.append(products(measured, at.x, basis, at.again))
        if not at.operator.linear:
            linearised.append(products(measured, at.x0, basis, at.again))
    every = torch.cat(rows)
    if at.operator.linear:
        covariance = at.operator(every.flatten(0, 1)).reshape(m, len(at.x), m).transpose(0, 1)
    else:
        covariance = torch.einsum("kbd,jbd->bkj", every.flatten(2), torch.cat(linearised).flatten(2))
    return every, covariance
