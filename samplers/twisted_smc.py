"""Twisted sequential Monte Carlo: samples of p(x_0 given y) that are exact as particles and steps grow, with p(y).

Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models" (TDS), algorithm 1; Cardoso et
al. 2023, "Monte Carlo guided Diffusion for Bayesian linear inverse problems". Particles x_t move from t to s by

    q(x_s given x_t, y) = N(m + b shift, V I)        p(x_s given x_t) = N(m, V I)        m = a x_t + b x_0

with the coefficients a and b of a step back (sde_lib/transition.py), where the measurement's guidance shifts x_0
(models/twist.py). With psi_t the twist, each has the weight

    w_T = psi_T(x_T)        w_s = w_t p(x_s given x_t) psi_s(x_s) / (q(x_s given x_t, y) psi_t(x_t))

and at the data psi_0 is the likelihood p(y given x_0) itself. So whatever the twist and the guidance, the weighted particles
are those of p(x_0) p(y given x_0) for the chain that the model is, and the mean weight estimates p(y) without bias.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from scorefield.models.score_model import ScoreModel, evaluation_mode
from scorefield.models.twist import Twist, TwistedModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import RESAMPLING, NoiseStream, Seed
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, Callback, CountedModel, GridSampler, Result
from scorefield.sde_lib.sde import SDE
from scorefield.sde_lib.transition import Transition, check_variance, reverse_variance

VARIANCES = ("jacobian", "beta", "beta_tilde")


@dataclass(frozen=True)
class WeightedResult(Result):
    """Particles x (measurements * particles, *event), measurement by measurement, and how much each counts.

    log_weights        (measurements, particles), normalised: those of a measurement are the logarithms of numbers of sum 1
    effective_samples  (measurements,), 1 / sum of the squared weights
    log_evidence       (measurements,), the estimate of log p(y) in nats
    log_evidence_error (measurements,), its standard error, from how the weight is shared by the first ancestors (Chan and
    Lai
                       2013, "A general theory of particle filters in hidden Markov models")
    """

    log_weights: Tensor = field(kw_only=True)
    effective_samples: Tensor = field(kw_only=True)
    log_evidence: Tensor = field(kw_only=True)
    log_evidence_error: Tensor = field(kw_only=True)

    def chosen(self, n: int, seed: int = 0) -> Tensor:
        """n of the particles of each measurement in proportion to their weights, (measurements, n, *event).

        Systematic resampling: a particle of weight w is among them n w times, rounded up or down. In random order.
        """
        m, particles = self.log_weights.shape
        noise = NoiseStream([(seed, i) for i in range(m)], RESAMPLING)
        place = systematic(self.log_weights.exp(), noise.uniform(self.log_weights[:, :1]), n)
        order = noise.uniform(place.double()).argsort(1).to(place.device)
        every = self.x.reshape(m, particles, *self.x.shape[1:])
        place = place.gather(1, order).to(every.device)
        return every[torch.arange(m, device=every.device)[:, None], place]

    def mean(self) -> Tensor:
        """The posterior mean of each measurement, (measurements, *event)."""
        return self._weighted(self.x)

    def std(self) -> Tensor:
        """The posterior standard deviation of each element, (measurements, *event)."""
        mean = self.mean().repeat_interleave(self.log_weights.shape[1], 0)
        return self._weighted((self.x - mean).square()).sqrt()

    def _weighted(self, values: Tensor) -> Tensor:
        m, particles = self.log_weights.shape
        weights = self.log_weights.exp().to(values)
        return torch.einsum("mp,mp...->m...", weights, values.reshape(m, particles, *values.shape[1:]))


def systematic(weights: Tensor, uniform: Tensor, n: int) -> Tensor:
    """Indices (groups, n) of weights (groups, particles) of sum 1, ascending: those in whose share u + j lies, j = 0 .. n -
    1.

    uniform  (groups, 1), in [0, 1)
    """
    ends = weights.double().cumsum(1)
    ends = ends / ends[:, -1:]
    points = (torch.arange(n, device=weights.device) + uniform.double()) / n
    return torch.searchsorted(ends, points, right=True).clamp(max=weights.shape[1] - 1)


def along_main_axis(x: Tensor, weights: Tensor) -> Tensor:
    """Where the particles x (groups, particles, D) lie along the axis of their group on which they differ most, (groups,
    particles), by a few power iterations from the one that is farthest from the mean.
    """
    weights = weights[:, :, None].to(x)
    x = x - (weights * x).sum(1, keepdim=True)
    farthest = (weights[:, :, 0] * x.square().sum(2)).argmax(1)
    axis = x[torch.arange(len(x), device=x.device), farthest][:, :, None]
    for _ in range(10):
        axis = x.mT @ (weights * (x @ axis))
        axis = axis / axis.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (x @ axis)[:, :, 0]


@dataclass
class Cloud:
    """The particles of all measurements on their way.

    log_weights   since the last resampling, (measurements, particles)
    log_evidence  of the resamplings before, (measurements,)
    eve           the first ancestor of each particle, (measurements, particles)
    here          the last evaluation
    """

    log_weights: Tensor
    log_evidence: Tensor
    eve: Tensor
    here: Twist | None = None

    def effective(self) -> Tensor:
        """1 / sum of the squared weights, (measurements,)."""
        return torch.exp(2 * self.log_weights.logsumexp(1) - (2 * self.log_weights).logsumexp(1))

    def resample(self, which: Tensor, uniform: Tensor, place: Tensor) -> Tensor:
        """Resample the measurements `which`, a mask (measurements,); gives the ancestor of each particle, (measurements,
        particles).

        place  of each particle on a line, (measurements, particles): near ones are resampled together, so that every part of
               the line keeps its share
        """
        particles, order = self.log_weights.shape[1], place.sort(dim=1, stable=True).indices
        mean = self.log_weights.logsumexp(1) - math.log(particles)
        chosen = systematic(self.log_weights.softmax(1).gather(1, order), uniform, particles)
        ancestors = order.gather(1, chosen)
        ancestors = torch.where(which[:, None], ancestors, torch.arange(particles, device=ancestors.device))
        self.log_evidence = self.log_evidence + torch.where(which, mean, 0)
        self.log_weights = torch.where(which[:, None], 0, self.log_weights)
        self.eve = self.eve.gather(1, ancestors)
        return ancestors

    def error(self) -> Tensor:
        """The relative standard error of the evidence, which is that of its logarithm if small, (measurements,)."""
        n = self.log_weights.shape[1]
        if n < 2:
            return torch.full_like(self.log_evidence, math.inf)
        shares = torch.zeros_like(self.log_weights).scatter_add(1, self.eve, self.log_weights.softmax(1))
        return (n / (n - 1) * (shares - 1 / n).square().sum(1)).sqrt()


@dataclass(frozen=True)
class Move:
    """A step of the particles: x_s = of_x x_t + of_x0 x_0 + L (z + e), L = std (I + growth alpha J).

    e is what the measurement adds to the noise z, of_x0 shift / std at growth 0. Then its weight is N(z + e) / N(z).
    """

    of_x: float
    of_x0: float
    std: float
    growth: float
    alpha: float

    def noise(self, z: Tensor, shift: Tensor) -> Tensor:
        """z + e."""
        return z + self._added(shift)

    def _added(self, shift: Tensor) -> Tensor:
        return self.of_x0 / (self.std * (1 + self.growth)) * shift

    def taken(self, x: Tensor, here: Twist, z: Tensor) -> tuple[Tensor, Tensor]:
        """The state after the step, and log p - log q of it, (batch,), float64."""
        added = self._added(here.shift)
        noise = z + added
        if here.product is not None:
            noise = noise + self.growth * self.alpha * here.product
        gain = -(added * (z + 0.5 * added)).double().flatten(1).sum(1)
        return self.of_x * x + self.of_x0 * here.x0 + self.std * noise, gain


@dataclass(frozen=True, kw_only=True)
class TwistedSMC(GridSampler):
    """Twisted sequential Monte Carlo, for the models of `guidance.posterior`.

    x_T has `particles` rows for each of the model's measurements, measurement by measurement, and so have the seeds
    (`numerics.noise.particle_seeds`). It returns a WeightedResult. Unless denoise is false, the last step goes from t_end to
    the data. ValueError for a model without a measurement. One use:

    >>> from scorefield.guidance import posterior
    >>> from scorefield.guidance.operators import make_operator
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.numerics.noise import particle_seeds
    >>> from scorefield.samplers import make_sampler, prior_sample
    >>> from scorefield.sde_lib import VPSDE
    >>> model = GaussianMixture(VPSDE(), torch.eye(2), torch.full((2,), 0.1))
    >>> guided = posterior(model, make_operator("mask:half=right", (2,)), torch.tensor([[0.9]]), noise_std=0.1)
    >>> seeds = particle_seeds(0, 1, 64)
    >>> result = make_sampler("twisted_smc", particles=64, steps=20)(guided, prior_sample(model.sde, (2,), seeds), seeds)
    >>> result.chosen(8).shape
    torch.Size([1, 8, 2])
    """

    grid: str | Sequence[float] = option("logsnr", f"auto, {GRID}")
    particles: int = option(64, "of each measurement")
    resample_below: float = option(0.5, "resample where the effective sample size falls below this share of the particles")
    variance: str = option("jacobian", "of a step: jacobian, with the covariance of x_0 from the network; beta; beta_tilde")
    chunk: int | None = option(None, "particles that the network sees at once; by default all")
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        check_variance(self.variance, VARIANCES)
        if self.particles < 1:
            raise ArgumentError(f"particles must be at least 1, got {self.particles}", "particles")
        if not 0 <= self.resample_below <= 1:
            raise ArgumentError(f"resample_below is a share between 0 and 1, got {self.resample_below:g}", "resample_below")
        if self.chunk is not None and self.chunk < 1:
            raise ArgumentError(f"chunk must be at least 1, got {self.chunk}", "chunk")

    def denoises(self, model: ScoreModel) -> bool:
        return self.denoise is not False

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        assert noise is not None
        twisted = self._of_particles(model.model, x)
        yield from self._filter(model, twisted, x, times, noise, self._cloud(x))

    def __call__(self, model: ScoreModel, x_T: Tensor, seeds: Sequence[Seed] | None = None, trajectory: bool = False,
                 callback: Callback | None = None, predictions: bool = False, gradients: bool = False) -> WeightedResult:
        """As Sampler's; there are no gradients through resampling. The trajectory's particles are those of each time."""
        if gradients:
            raise ArgumentError("twisted_smc has no gradients, since it resamples; leave gradients out", "gradients")
        times = self.times(model)
        with evaluation_mode(model), torch.no_grad():
            twisted, cloud, noise = self._of_particles(model, x_T), self._cloud(x_T), self._noise(x_T, seeds)
            assert noise is not None
            counted = CountedModel(model, predictions)
            states = [x_T]
            for step, x in enumerate(self._filter(counted, twisted, x_T, times, noise, cloud), start=1):
                if not bool(x.isfinite().all()) or not bool((cloud.log_weights.logsumexp(1) > -math.inf).all()):
                    raise ArithmeticError(f"particles or all weights of a measurement are not finite after step {step} of "
                                          f"{len(times) - 1}, at t = {float(times[step]):.6g}; nothing was kept")
                if not trajectory:
                    states.clear()
                states.append(x)
                if callback is not None:
                    callback(step, float(times[step]), x)
            x = twisted.project(self._last(twisted, states[-1], cloud))
            if not self.denoises(model):
                states[-1] = x
        log_mean = cloud.log_weights.logsumexp(1)
        return WeightedResult(
            x, counted.nfe, times, torch.stack(states) if trajectory else None,
            torch.stack(counted.predictions) if counted.predictions is not None else None,
            log_weights=cloud.log_weights - log_mean[:, None], effective_samples=cloud.effective(),
            log_evidence=cloud.log_evidence + log_mean - math.log(self.particles), log_evidence_error=cloud.error())

    def _of_particles(self, model: ScoreModel, x: Tensor) -> TwistedModel:
        """The model with each measurement repeated for its particles."""
        if not isinstance(model, TwistedModel):
            raise ArgumentError("twisted_smc samples a model that is given a measurement, as mode restore and "
                                f"guidance.posterior(model, ...) give it, and this is a {type(model).__name__}; choose "
                                "another sampler", "sampler")
        if len(x) != model.measurements * self.particles:
            raise ArgumentError(f"{model.measurements} measurements with {self.particles} particles each need a batch of "
                                f"{model.measurements * self.particles}, got {len(x)}", "particles")
        return model.rows(torch.arange(model.measurements).repeat_interleave(self.particles))

    def _cloud(self, x: Tensor) -> Cloud:
        groups = len(x) // self.particles
        empty = torch.zeros(groups, self.particles, dtype=torch.float64, device=x.device)
        return Cloud(empty, empty[:, 0], torch.arange(self.particles, device=x.device).repeat(groups, 1))

    def _filter(self, model: CountedModel, twisted: TwistedModel, x: Tensor, times: Tensor, noise: NoiseStream, cloud: Cloud
                ) -> Iterator[Tensor]:
        moves, groups = self._moves(model.sde, times), len(x) // self.particles
        uniforms = NoiseStream(noise.seeds[::self.particles], RESAMPLING)
        first = torch.arange(groups, device=x.device)[:, None] * self.particles
        draw = partial(noise.normal, x)
        z = draw()
        here = self._evaluate(model, twisted, x, times[0], moves[0], z)
        cloud.log_weights = cloud.log_weights + _of_groups(here.log_twist, cloud)
        for i, move in enumerate(moves):
            few = cloud.effective() < self.resample_below * self.particles
            uniform = uniforms.uniform(cloud.log_weights[:, :1])
            if bool(few.any()):
                guess = (here.x0 + here.shift).reshape(groups, self.particles, -1)
                place = along_main_axis(guess, cloud.log_weights.softmax(1))
                chosen = (first + cloud.resample(few, uniform, place)).flatten()
                x = x[chosen]
                # the product with the Jacobian is of a particle's own noise, so that one must be seen again
                here = here.rows(chosen) if here.product is None else self._evaluate(model, twisted, x, times[i], move, z)
            x, gain = move.taken(x, here, z)
            before, last = here.log_twist, i + 1 == len(moves)
            z = z if last else draw()
            here = self._evaluate(model, twisted, x, times[i + 1], None if last else moves[i + 1], z)
            gain = gain + here.log_twist.double() - before.double()
            cloud.log_weights, cloud.here = cloud.log_weights + _of_groups(gain, cloud), here
            yield x

    def _moves(self, sde: SDE, times: Tensor) -> list["Move"]:
        """One for each step of the grid."""
        step, alpha = Transition.along(sde, times), sde.alpha(times)
        of_x, of_x0 = step.posterior
        variance = reverse_variance("beta" if self.variance == "beta" else "beta_tilde", step)
        growth = step.sigma_t / (step.scale * step.sigma_s) - 1 if self.variance == "jacobian" else torch.zeros_like(of_x)
        return [Move(*numbers) for numbers in zip(*(c.tolist() for c in (of_x, of_x0, variance.sqrt(), growth, alpha[:-1])),
                                                  strict=True)]

    def _evaluate(self, model: CountedModel, twisted: TwistedModel, x: Tensor, t: Tensor, move: "Move | None", z: Tensor
                  ) -> Twist:
        """The twist of all particles at t, chunk by chunk, with what the move by the noise z needs."""
        model.nfe += twisted.evaluations_at(t)
        chunk, twists = self.chunk or len(x), []
        for start in range(0, len(x), chunk):
            part = slice(start, min(start + chunk, len(x)))
            seen = twisted if chunk >= len(x) else twisted.rows(torch.arange(part.start, part.stop))
            direction = None if move is None or not move.growth else partial(move.noise, z[part])
            twists.append(seen.twist(x[part], t, direction))
        x0, shift, log_twist = (torch.cat([getattr(twist, name) for twist in twists])
                                for name in ("x0", "shift", "log_twist"))
        products = [twist.product for twist in twists if twist.product is not None]
        if model.predictions is not None:
            model.predictions.append(x0 + shift)
        return Twist(x0, shift, log_twist, torch.cat(products) if products else None)

    def _last(self, twisted: TwistedModel, x: Tensor, cloud: Cloud) -> Tensor:
        """The step to the data, where it is asked for: x_0 of the last evaluation, weighted by the likelihood itself."""
        here = cloud.here
        if not self.denoises(twisted) or here is None:
            return x
        if twisted.exact:
            return here.x0 + here.shift
        gain = twisted.log_likelihood(here.x0).double() - here.log_twist.double()
        cloud.log_weights = cloud.log_weights + _of_groups(gain, cloud)
        return here.x0


def _of_groups(values: Tensor, cloud: Cloud) -> Tensor:
    return values.double().reshape(cloud.log_weights.shape)
