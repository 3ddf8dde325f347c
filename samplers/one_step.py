"""Rules of one evaluation a step: x_s = keep x_t + of_eps eps(x_t, t) + of_noise z, for s the next time of the grid.

With a, v and V as in sde_lib/transition.py:

    Euler-Maruyama      x - h [f x - (1 + eta^2)/2 g^2 score] + eta g sqrt(h) z         h = t - s
    reverse diffusion   (2 - a) x + v score + sqrt(v) z
    ancestral           a sigma_s^2 / sigma_t^2 x + alpha_s v / sigma_t^2 x_0 + sqrt(V) z
    DDIM                alpha_s x_0 + sqrt(sigma_s^2 - V) eps + sqrt(V) z,              V = eta^2 beta_tilde

where score = -eps / sigma_t and x_0 = (x - sigma_t eps) / alpha_t. With the analytic variance the noise of the last two has
V + b^2 Var[x_0 given x_t], b being the coefficient of x_0 where x_s is written in x_t and x_0: x_0 is not known, and its
uncertainty is that of x_s, too (Bao et al. 2022, "Analytic-DPM", theorem 1). Then DDIM draws noise with eta = 0, too. With
the learned variance V of ancestral sampling is a number for each element, between beta_tilde and v.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.score_model import MeanGuidance, ScoreModel, evaluation_mode
from scorefield.models.student import Student
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import ETA, STEPS, CountedModel, GridSampler
from scorefield.sde_lib.sde import SDE
from scorefield.sde_lib.transition import (
    FIXED,
    VARIANCES,
    Transition,
    check_variance,
    known_variance,
    learned_between,
    reverse_variance,
)
from scorefield.sde_lib.ve import VESDE
from scorefield.sde_lib.vp import VariancePreserving

LAST_NOISE = "with variance analytic, largest mean size of the last step's noise; in Analytic-DPM 2/255 or 4/255"

Coefficients = tuple[Tensor, Tensor, Tensor]      # keep, of_eps and of_noise, float64 (steps,)


@dataclass(frozen=True, kw_only=True)
class OneStepSampler(GridSampler):
    """A subclass defines its three coefficients."""

    steps: int = option(1000, STEPS)
    order = 1

    @abstractmethod
    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """keep, of_eps and of_noise of every step of the grid, float64; ValueError for an SDE that cannot be."""

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        keep, of_eps, of_noise = (c.tolist() for c in self.coefficients(model.sde, times))
        for i in range(len(keep)):
            eps = model.eps(x, times[i])
            own = i > 0 and not torch.is_grad_enabled()      # from the first step on, the tensor is this loop's
            x = x.mul_(keep[i]) if own else x.mul(keep[i])
            x.add_(eps, alpha=of_eps[i])
            if noise is not None:
                x.add_(noise.normal(x), alpha=of_noise[i])
            yield x


    def solve_with_posterior(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream, eta: float,
                             last_noise: float | None) -> Iterator[Tensor]:
        """The steps of DDIM, those of ancestral sampling for eta = 1, with the variance that the model's posterior gives.

        last_noise  bounds E |noise| in the last step, which is (2/pi)^(1/2) of its standard deviation
        """
        step, alpha = Transition.along(model.sde, times), model.sde.alpha(times)
        fixed = reverse_variance("beta_tilde", step, eta)
        keep = (step.sigma_s.square() - fixed).clamp(min=0).sqrt() / step.sigma_t      # of x_t, where eps is written in it
        of_x0 = alpha[1:] - keep * alpha[:-1]
        for i, (a, b, v) in enumerate(zip(keep.tolist(), of_x0.tolist(), fixed.tolist(), strict=True)):
            posterior = model.posterior(x, times[i])
            std = (v + b**2 * known_variance(posterior.variance)).sqrt()
            if last_noise is not None and i == len(alpha) - 2:
                std = std.clamp(max=last_noise * math.sqrt(math.pi / 2))
            x = a * x + b * posterior.mean + std * noise.normal(x)
            yield x


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(OneStepSampler):
    """Euler-Maruyama on the reverse-time family (Song et al. 2021, appendix D); weak order 1."""

    eta: float = option(1.0, ETA)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 100:
            raise ArgumentError(f"eta must lie in [0, 100], got {self.eta}", "eta")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        t, h = times[:-1], -times.diff()
        g2 = sde.g2(t)
        return 1 - h * sde.drift(t), -h * (1 + self.eta**2) / 2 * g2 / sde.sigma(t), self.eta * (h * g2).sqrt()


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(OneStepSampler):
    """The reverse diffusion predictor (Song et al. 2021, appendix E, equation 46): the forward step, reversed."""

    stochastic = True

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        step = Transition.along(sde, times)
        return 2 - step.scale, -step.variance / step.sigma_t, step.variance.sqrt()


@dataclass(frozen=True, kw_only=True)
class Ancestral(OneStepSampler):
    """Ancestral sampling of DDPM (Ho et al. 2020, algorithm 2) and SMLD (Song et al. 2021, appendix F).

    For variance-preserving and variance-exploding SDEs, those of chains included; ValueError for others. With `mean_shift` a
    model that has a classifier is guided in each step by N(mean + V gradient, V I), V the step's variance and the mean that
    of the unguided model (Dhariwal and Nichol 2021, algorithm 1). Without it the guided score makes the mean, as under
    every other sampler: the gradient's weight is then v / a, in the symbols above. With the learned variance a step to the
    data (t = 0) draws no noise.
    """

    steps: int | None = option(  # type: ignore[assignment]      # of a base whose subclasses know their number
        None, f"{STEPS}; by default every index of a chain, which is algorithm 2, or else 100")
    variance: str = option("beta_tilde", "of a step: beta; beta_tilde, that of x_s given x_t and x_0; analytic, for a model "
                                         "that knows that of x_0; learned, for one that has it")
    last_noise: float | None = option(None, LAST_NOISE)
    mean_shift: bool = option(False, "guide by a classifier as algorithm 1 of Dhariwal and Nichol: move each step's mean by "
                                     "its variance times the gradient")
    stochastic = True

    def __post_init__(self) -> None:
        check_variance(self.variance)
        _check_last_noise(self.last_noise, self.variance)
        if self.mean_shift and self.variance == "analytic":
            raise ArgumentError("mean_shift is for the variances beta, beta_tilde and learned; leave it out, or choose one "
                                "of these", "mean_shift", "variance")

    def times(self, model: ScoreModel) -> Tensor:
        return self.grid_of(model, (model.sde.steps or 100) if self.steps is None else self.steps)

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        assert noise is not None
        if self.variance == "analytic":
            _require_chain(model.sde)
            yield from self.solve_with_posterior(model, x, times, noise, 1.0, self.last_noise)
            return
        guidance = model.model.mean_guidance() if self.mean_shift else None
        if not self.mean_shift and self.variance in FIXED:
            yield from super().solve(model, x, times, noise)
            return
        if self.mean_shift and guidance is None:
            raise ArgumentError("mean_shift moves the mean of a step by the gradient of a classifier, and the model has "
                                "none; sample classifier_guided(model, classifier), or leave mean_shift out", "mean_shift")
        yield from self._solve_in_parts(model, x, times, noise, guidance)

    def _solve_in_parts(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream,
                        guidance: MeanGuidance | None) -> Iterator[Tensor]:
        """The steps where the variance is learned, or a gradient moves the mean."""
        keep, of_eps, of_noise = self.coefficients(model.sde, times)
        step, of_mean = Transition.along(model.sde, times), None if guidance is None else guidance.unguided
        beta, beta_tilde = (reverse_variance(kind, step) for kind in FIXED)
        for i, (a, b, std) in enumerate(zip(keep.tolist(), of_eps.tolist(), of_noise.tolist(), strict=True)):
            variance = std**2
            if self.variance == "learned":
                eps, share = model.with_share(x, times[i], "eps", of_mean)
                if step.sigma_s[i] > 0:
                    variance = learned_between(share, beta_tilde[i], beta[i])
                    std = learned_between(share, beta_tilde[i].sqrt(), beta[i].sqrt())
            else:
                eps = model.predict(x, times[i], "eps", of_mean)
            mean = x.mul(a).add_(eps, alpha=b)
            if guidance is not None:
                mean = _add(mean, model.gradient(guidance, x, times[i]), variance)
            x = _add(mean, noise.normal(x), std)
            yield x

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """As OneStepSampler's; of_noise of the learned variance is the least, that of beta_tilde."""
        _require_chain(sde)
        step = Transition.along(sde, times)
        kind = "beta_tilde" if self.variance == "learned" else self.variance
        # mean = x / a - v / (a sigma_t) eps, from x_0 = (x - sigma_t eps) / alpha_t (Ho et al. 2020, equation 11)
        of_eps = -step.variance / (step.scale * step.sigma_t)
        return 1 / step.scale, of_eps, reverse_variance(kind, step).sqrt()


def _add(x: Tensor, other: Tensor, by: float | Tensor) -> Tensor:
    """x + by * other in x itself, by a number or one for each element, with the same roundings."""
    return x.addcmul_(by, other) if isinstance(by, Tensor) else x.add_(other, alpha=by)


@dataclass(frozen=True, kw_only=True)
class DDIM(OneStepSampler):
    """DDIM (Song, Meng and Ermon 2021, equation 12), for any SDE."""

    steps: int = option(50, STEPS)
    eta: float = option(0.0, "noise in [0, 1]: 0 is deterministic, 1 has the variance of x_s given x_t and x_0")
    variance: str = option("beta_tilde", "of a step: eta^2 beta_tilde; with eta 1 also beta, sigma-hat; analytic, for a "
                                         "model that knows the variance of x_0")
    last_noise: float | None = option(None, LAST_NOISE)

    def __post_init__(self) -> None:
        check_variance(self.variance, [kind for kind in VARIANCES if kind != "learned"])
        _check_last_noise(self.last_noise, self.variance)
        if not 0 <= self.eta <= 1:
            raise ArgumentError(f"eta of DDIM must lie in [0, 1], got {self.eta}", "eta")
        if self.variance == "beta" and self.eta != 1:
            raise ArgumentError(f"variance beta of DDIM is for eta 1, got eta {self.eta:g}", "variance", "eta")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0 or self.variance not in FIXED

    def takes(self, student: Student | None, times: Tensor) -> bool:
        if student is None or student.times is None:
            return super().takes(student, times)
        same = times.shape == student.times.shape and torch.allclose(times, student.times, rtol=1e-9, atol=0)
        return same and not self.stochastic and not self.denoise

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        if self.variance in FIXED:
            yield from super().solve(model, x, times, noise)
            return
        assert noise is not None
        yield from self.solve_with_posterior(model, x, times, noise, self.eta, self.last_noise)

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        step, alpha = Transition.along(sde, times), sde.alpha(times)
        variance = reverse_variance("beta_tilde", step, self.eta)
        keep = alpha[1:] / alpha[:-1]
        of_eps = (step.sigma_s.square() - variance).clamp(min=0).sqrt() - keep * step.sigma_t
        return keep, of_eps, reverse_variance(self.variance, step, self.eta).sqrt()


def _check_last_noise(last_noise: float | None, variance: str) -> None:
    if last_noise is not None and not (variance == "analytic" and 0 < last_noise < math.inf):
        raise ArgumentError(f"last_noise is a positive number for variance analytic, got {last_noise} for {variance}",
                            "last_noise", "variance")


def _require_chain(sde: SDE) -> None:
    if not isinstance(sde, VariancePreserving | VESDE):
        raise ArgumentError(f"ancestral sampling belongs to the DDPM and SMLD chains, and {sde} is the limit of "
                            "neither; use reverse_diffusion, euler_maruyama, or ddim with eta 1", "sampler")


@torch.no_grad()
def ddim_invert(model, x: Tensor, sampler: DDIM) -> Tensor:
    """The latent at t_max of x (batch, *event) at the sampler's last time: DDIM's steps taken backwards.

    Song, Meng and Ermon 2021, section 4.3 and equation 14. Exact as steps grow; `sampler` must have eta = 0, and carries
    the latent back to (nearly) x.
    """
    if sampler.stochastic:
        raise ArgumentError("only deterministic DDIM can be inverted; set eta to 0", "eta")
    with evaluation_mode(model):
        *_, latent = sampler.solve(CountedModel(model), x, sampler.times(model).flip(0), None)
    return latent


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Spherical interpolation from a (weight 0) to b (weight 1), each sample of (batch, *event) by itself.

    Song, Meng and Ermon 2021, appendix D.5 (Shoemake 1985): keeps the norm that Gaussian latents have.
    """
    u, v = a.flatten(1), b.flatten(1)
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    angle = torch.acos(cosine.clamp(-1, 1))
    near = angle < 1e-4      # where sines cancel, the straight line is exact to 1e-9
    sine = torch.where(near, torch.ones_like(angle), angle.sin())
    of_a = torch.where(near, torch.full_like(angle, 1 - weight), torch.sin((1 - weight) * angle) / sine)
    of_b = torch.where(near, torch.full_like(angle, weight), torch.sin(weight * angle) / sine)
    return (of_a[:, None] * u + of_b[:, None] * v).reshape(a.shape)
