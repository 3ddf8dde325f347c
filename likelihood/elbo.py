"""Lower bounds on log p: of the reverse-time SDE in continuous time, and of a discrete chain.

Continuous time (Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", theorem 3; Kingma et
al. 2021, equations 11 to 19), with lambda the half log-SNR, for which g^2 dt / (2 sigma^2) = -dlambda, and T = t_max:

    log p(x) >= - KL(q(x_T given x) || prior)                                                    prior
                - int_lambda(T)^lambda(t_min) E ||eps - eps_theta(x_t, t)||^2 dlambda         diffusion
                + E log N(x; x_t / alpha, (sigma / alpha)^2 I) at t_min                       decoder

The integral is the mean of one draw in each of many equal intervals of lambda. Where the error ||eps - eps_theta||^2
is m on average it moves with ||eps||^2, whose mean D is known, and m / D is the best multiple of ||eps||^2 - D to take
off (exactly, if the network recovers the noise in all but m directions). m is read off the two draws before, so
that no multiple depends on the noise it multiplies: unbiased, with uncorrelated draws. In few dimensions, where two draws
say little, it leans on the m / D of data N(0, I), (alpha^2 / (alpha^2 + sigma^2))^2 = sigmoid(2 lambda)^2.

A chain (Ho et al. 2020, equation 5) bounds the probability of integers: L_T and L_(t-1) are divergences between
Gaussians, L_0 is the discretised Gaussian of their equation 13; or the density of real x, with the Gaussian itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scorefield.likelihood.checks import check_input, fitting, start_time
from scorefield.models.score_model import ScoreModel, check_density, check_score, evaluation_mode
from scorefield.numerics.discretised import discretised_log_prob
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import BOUND, NoiseStream, Seed
from scorefield.sde_lib.chain import Chain
from scorefield.sde_lib.sde import expand_as
from scorefield.sde_lib.transition import CHAIN, FIXED, check_variance, known_variance, learned_between, reverse_variance

CHAIN_GRIDS = ("even", "optimal")
PSEUDO_DIMENSIONS = 16.0      # how many dimensions of a draw the guess m / D = sigmoid(2 lambda)^2 is worth


@dataclass(frozen=True)
class Bound:
    """value: an unbiased estimate of a lower bound on log p, in nats, (batch,). nfe: evaluations of the network a sample.

    error     standard error of value over the draws, (batch,); None with one draw
    terms     the parts that add up to value, each (batch,): "prior" and "diffusion", at most 0 on average, "decoder"
    per_step  of a chain: the parts that add up to "diffusion", (steps - 1, batch), from the data's end to the noise's
    """

    value: Tensor
    error: Tensor | None
    terms: dict[str, Tensor]
    nfe: int
    per_step: Tensor | None = None


def elbo(model: ScoreModel, x: Tensor, draws: int = 32, seeds: Sequence[Seed] | None = None,
         t_min: float | None = None) -> Bound:
    """The bound in continuous time on log p(x) in nats, for real x (batch, *event).

    draws  predictions a sample, an even number: one in each of as many equal intervals of lambda, at its own place
    seeds  one for each sample; the random numbers of sample i depend only on its seed
    t_min  the time at which the decoder takes over (by default the SDE's own t_min)

    p is the density of what the reverse-time SDE and the decoder generate, which equals that of the probability flow
    only if the score is exact. The error bar takes neighbouring intervals for repetitions of one draw, so it is
    somewhat too large. Raises ValueError for unusable input, ArithmeticError for a prediction that is not finite.
    """
    check_pairs(draws)
    check_score(model, "a bound")
    check_density(model)
    check_input(model, x)
    sde, d = model.sde, x[0].numel()
    start = start_time(sde, t_min)
    noise = _noise(seeds, len(x))
    last, first = sde.half_log_snr(sde.t_max), sde.half_log_snr(start)
    jitter = noise.uniform(torch.empty(len(x), draws, dtype=torch.float64)).T
    strata = (torch.arange(draws, dtype=torch.float64)[:, None] + jitter) / draws
    times = sde.time(last + (first - last) * strata).clamp(start, sde.t_max)          # (draws, batch), from noise to data

    errors, excesses = [], []                                                   # of ||eps||^2 over its mean
    with evaluation_mode(model), torch.no_grad():
        for t in times:
            eps = noise.normal(x)
            with fitting(x):
                predicted = model.eps(sde.perturb(x, t, eps), t)
            errors.append(_squares(eps - predicted))
            excesses.append(_squares(eps) - d)
    error, excess = torch.stack(errors), torch.stack(excesses)                  # (draws, batch)
    _refuse_non_finite(error, times)
    gaussian = torch.sigmoid(2 * sde.half_log_snr(times)).square().to(x)
    before = F.pad(error.unflatten(0, (-1, 2)).sum(1), (0, 0, 1, -1)).repeat_interleave(2, 0)
    known = (2 * d * (torch.arange(draws) > 1)[:, None]).to(x)                  # dimensions in `before`; none at first
    integrand = error - (before + PSEUDO_DIMENSIONS * gaussian) / (known + PSEUDO_DIMENSIONS) * excess

    span = float(first - last)
    mean, std = sde.marginal(x, sde.t_max)
    terms = {
        "prior": -gaussian_kl(mean, std.square(), sde.prior.std**2),
        "diffusion": -span * integrand.mean(0),
        "decoder": x.new_full((len(x),), d * (float(first) - 0.5 * math.log(2 * math.pi * math.e))),
    }
    spread = span / draws * (integrand[::2] - integrand[1::2]).square().sum(0).sqrt()
    return Bound(terms["prior"] + terms["diffusion"] + terms["decoder"], spread, terms,
                 sum(model.evaluations_at(t) for t in times))


def chain_elbo(model: ScoreModel, k: Tensor, levels: int | None, chain: Chain | None = None, steps: int | None = None,
               variance: str = "beta", grid: str = "even", low: float = -1.0, high: float = 1.0, dequantized: bool = False,
               clip_x0: bool = False, draws: int = 1, seeds: Sequence[Seed] | None = None,
               dtype: torch.dtype = torch.float32) -> Bound:
    """The bound of a chain on log P(k) in nats, for integer levels k (batch, *event) in 0 .. levels - 1.

    levels       None: k is real, and the bound is on its log-density. That suits a model of dequantised data, whose
                 mass fills each level's cell; the discretised decoder makes it pay for hitting the cell's centre
    chain        index i of it stands at chain.times[i] of the model's SDE; None: the chain that the SDE was made of, or
                 1000 marginals of the SDE
    steps        generate in so many steps; None: all of the chain's indices
    variance     of the reverse step from i to j: "beta", that of q(x_i given x_j), or "beta_tilde", that of
                 q(x_j given x_i, x_0). The latter is 0 where j is the data, so there that of the step before
                 stands in, as in Ho et al. 2020 and Nichol and Dhariwal 2021. "analytic" is that of q(x_j given x_i), by the
                 model's variance of x_0; "learned" is one for each element between the first two, by the model's network
                 (transition.py)
    grid         where on the chain's indices the steps stand, both ends included: "even", or "optimal", where the bound is
                 best, for a model that knows the moments of its errors (models/variance.py)
    dequantized  level k means low + (high - low)(k + 1/2) / levels instead of low + (high - low) k / (levels - 1)
    clip_x0      confine the predicted x_0 to [low, high]
    draws        independent repetitions, each of one draw a step; two or more have an error bar
    seeds        one for each sample; the random numbers of sample i depend only on its seed
    dtype        of the states x_i, float32 or float64 (that of k, if it is real)

    Raises ValueError for unusable input, ArithmeticError for a prediction that is not finite.
    """
    if levels is not None:
        _refuse_levels(k, levels, low, high)
    check_variance(variance)
    check_grid(grid)
    check_repetitions(draws)
    check_score(model, "a bound")
    check_density(model)
    sde = model.sde
    chain = Chain.from_sde(sde, sde.steps or CHAIN) if chain is None else chain
    steps = chain.steps if steps is None else steps
    if not 2 <= steps <= chain.steps:
        raise ArgumentError(f"steps must lie in 2 .. {chain.steps}, got {steps}", "steps")
    noise = _noise(seeds, len(k))
    if grid == "optimal":
        kept = model.best_indices(chain.times, steps)
    else:
        kept = torch.linspace(0, chain.steps - 1, steps, dtype=torch.float64).round().long()
    times, chain = chain.times[kept], Chain(chain.alpha[kept], chain.sigma[kept])

    if levels is None:
        x = k
    else:
        width = (high - low) / (levels if dequantized else levels - 1)
        x = (low + width * (k.double().cpu() + 0.5 * dequantized)).to(k.device, dtype)
    check_input(model, x)
    prior = -gaussian_kl(*chain.marginal(x, steps - 1), sde.prior.std**2)
    samples = []
    with evaluation_mode(model), torch.no_grad():
        for _ in range(draws):
            parts = []
            for i, t in enumerate(times):
                mean, q_variance = chain.marginal(x, i)
                x_i = mean + expand_as(q_variance.sqrt(), x) * noise.normal(x)
                with fitting(x):
                    x0, told = _predicted(model, x_i, t, variance)
                x0 = x0.clamp(low, high) if clip_x0 else x0
                v = _variance(variance, chain, i, told)
                if i:      # the mean of the posterior is linear in x_0, so this is the difference of two of them
                    shift, tilde = chain.posterior(x - x0, torch.zeros_like(x), i)
                    parts.append(-gaussian_kl(shift, tilde, v))
                else:
                    parts.append(_gaussian_log_prob(x - x0, v) if levels is None else
                                 discretised_log_prob(k, x0, v.sqrt(), levels, low, high, dequantized))
            samples.append(torch.stack(parts))
    all_parts = torch.stack(samples)                                # (draws, steps, batch)
    _refuse_non_finite(all_parts.sum(0), times[:, None].expand(-1, len(x)))

    decoder, per_step = all_parts.mean(0)[0], all_parts.mean(0)[1:]
    terms = {"prior": prior, "diffusion": per_step.sum(0), "decoder": decoder}
    error = all_parts.sum(1).std(0) / draws**0.5 if draws > 1 else None
    return Bound(prior + terms["diffusion"] + decoder, error, terms, draws * sum(model.evaluations_at(t) for t in times),
                 per_step)


def check_pairs(draws: int) -> None:
    """ArgumentError unless the draws of the bound in continuous time make pairs."""
    if draws < 2 or draws % 2:
        raise ArgumentError(f"draws must be an even number of at least 2, got {draws}", "draws")


def check_grid(grid: str) -> None:
    """ArgumentError for an unknown choice of a chain's indices."""
    if grid not in CHAIN_GRIDS:
        raise ArgumentError(f"unknown grid {grid!r} of a chain's bound; choose from {', '.join(CHAIN_GRIDS)}", "grid")


def check_repetitions(draws: int) -> None:
    """ArgumentError unless a chain is drawn at least once."""
    if draws < 1:
        raise ArgumentError(f"draws must be at least 1, got {draws}", "draws")


def gaussian_kl(shift: Tensor, variance: Tensor, other: float | Tensor) -> Tensor:
    """KL(N(m, v I) || N(m', v' I)) in nats, (batch,), for shift m - m' (batch, *event), a scalar v, and v' a scalar or one
    for each element (batch, *event).

    1/2 [ ||m - m'||^2 / v' + D (v/v' - 1 - log(v/v')) ]
    """
    if isinstance(other, Tensor) and other.ndim:
        excess = float(variance) / other - 1
        return 0.5 * (shift.square() / other + excess - excess.log1p()).flatten(1).sum(1)
    excess = variance / other - 1
    return 0.5 * (_squares(shift) / float(other) + shift[0].numel() * float(excess - excess.log1p()))


def _predicted(model: ScoreModel, x: Tensor, t: Tensor, variance: str) -> tuple[Tensor, Tensor | None]:
    """x_0 as the model predicts it, and what the model says of the variance: for the analytic one that of x_0, a scalar or
    (batch, *event), for the learned one its share of log beta, (batch, *event).
    """
    if variance in FIXED:
        return model.x0(x, t), None
    if variance == "learned":
        return model.with_share(x, t, "x0")
    posterior = model.posterior(x, t)
    return posterior.mean, known_variance(posterior.variance)


def _variance(kind: str, chain: Chain, i: int, told: Tensor | None) -> Tensor:
    """That of the step from index i, a scalar or (batch, *event); of the decoder for i = 0. `told` is from `_predicted`."""
    step = chain.between(i, i - 1)
    tilde = reverse_variance("beta_tilde", step if i else chain.between(1, 0))      # at the data that of the step before
    if told is None:
        return step.variance if kind == "beta" else tilde
    if kind == "learned":
        v = learned_between(told if told.device.type == "mps" else told.double(), tilde, step.variance)
        return v.flatten()[0].double().cpu() if bool((v == v.flatten()[:1]).all()) else v      # a number has its own sums
    return tilde.to(told) + step.posterior[1].to(told).square() * told if i else told


def _gaussian_log_prob(error: Tensor, variance: Tensor) -> Tensor:
    """log N(error; 0, variance) in nats, (batch,), for a scalar variance, or one for each element."""
    if variance.ndim:
        return -0.5 * (error.square() / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)
    constant = error[0].numel() * math.log(2 * math.pi * float(variance))
    return -0.5 * (_squares(error) / float(variance) + constant)


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _noise(seeds: Sequence[Seed] | None, n: int) -> NoiseStream:
    if seeds is None or len(seeds) != n:
        given = "none" if seeds is None else len(seeds)
        raise ArgumentError(f"a bound needs seeds, one for each of the {n} samples, got {given}", "seed")
    return NoiseStream(seeds, BOUND)


def _refuse_levels(k: Tensor, levels: int, low: float, high: float) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if not low < high:
        raise ArgumentError(f"need low < high, got {low} and {high}", "low", "high")
    if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
        raise ValueError(f"k must hold integers, got {k.dtype}")
    least, most = (int(k.min()), int(k.max())) if k.numel() else (0, 0)      # ints, since in uint8 256 is 0
    if least < 0 or most >= levels:
        raise ValueError(f"k must lie in 0 .. {levels - 1}, got {least} .. {most}")


def _refuse_non_finite(parts: Tensor, times: Tensor) -> None:
    """ArithmeticError naming the time of the first of `parts` (draws or steps, batch) that is not finite."""
    bad = ~parts.isfinite().cpu()
    if bool(bad.any()):
        raise ArithmeticError(f"the network's prediction is not finite at t = {float(times[bad][0]):.3g}")
