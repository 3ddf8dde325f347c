"""The variance of a step back, learned beside the mean (Nichol and Dhariwal 2021, sections 3.1 to 3.3).

A model with `learned_variance` gives for each element what its `variance_output` says (models/variance_outputs.py): the
share w in log V = w log beta + (1 - w) log beta_tilde (sde_lib/transition.py), or what the variance of x_0 follows from.
With L_vlb the bound of a chain in bits/dim, less its prior's term, which has no weights,

    hybrid      L_simple + lambda L_vlb             no gradient of the bound goes into the mean; lambda = 0.001
    vlb         L_vlb                               best with times drawn by their losses (loss_history.py)
    square      L_simple + E (target - r)^2         r the second output, and target (eps - eps_theta)^2 or eps^2, as it says;
                                                    no gradient of it goes into the mean (Bao et al. 2022, NPR and SN-DDPM)
    likelihood  L_simple + E (log e + d^2 / e) / 2  e the output `residual`, d = eps - eps_theta: the likelihood of N(0, e),
                                                    which has the same best e, and weighs small ones as much as large ones

where L_simple is the loss of score matching under `weighting`, and the second term of the last two has its weights. In L_vlb
the step from t has the terms

    KL(q(x_s given x_t, x_0) || p(x_s given x_t))      at the predicted x_0 and V
    -log N(x_0; predicted x_0, V)                      for the step to the data, with the beta_tilde of the step before; of
                                                       data that are levels the mass of their cells (numerics/discretised.py)

each as often as the chain has it. On a chain, s is the index before t; in continuous time the chain has CHAIN equal steps,
and t may lie between them. With `bound_steps` the bound is that of fewer and longer steps, as strided sampling takes. They
have the analytic variance (transition.py), with the variance of x_0 that w stands for on the chain itself. In short steps
beta and beta_tilde are nearly equal and the bound hardly knows the variance; in long ones it does. The output e has the
analytic variance in all steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.models.denoiser import Denoiser
from scorefield.numerics.discretised import discretised_log_prob
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option, worded
from scorefield.numerics.processes import World
from scorefield.sde_lib.sde import expand_as
from scorefield.sde_lib.transition import CHAIN, Transition, reverse_variance
from scorefield.training.draws import Draws
from scorefield.training.objectives.loss_history import LossHistory
from scorefield.training.objectives.objective import Batch, Memory
from scorefield.training.objectives.score_matching import NoisyExamples, NoisyTimes, told


@dataclass(frozen=True)
class Hybrid:
    """L_simple + weight L_vlb."""

    weight: float = option(0.001, "lambda")
    resample: bool = option(False, "draw times by their losses")

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ArgumentError(f"weight of the bound must be above 0, got {self.weight}", "method")


@dataclass(frozen=True)
class VLB:
    """L_vlb."""

    resample: bool = option(False, "draw times by their losses")


@dataclass(frozen=True)
class Square:
    """L_simple + weight E (target - r)^2."""

    weight: float = option(1.0, "of the second term")
    resample = False

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ArgumentError(f"weight of the second term must be above 0, got {self.weight}", "method")


class Likelihood(Square):
    """L_simple + weight E (log e + d^2 / e) / 2."""


METHODS: dict[str, type[Hybrid | VLB | Square]] = {
    "hybrid": Hybrid, "vlb": VLB, "square": Square, "likelihood": Likelihood}
OUTPUTS = {Hybrid: ("share", "residual"), VLB: ("share", "residual"), Square: ("residual", "noise"),
           Likelihood: ("residual",)}      # of models/variance_outputs.py, that a method trains


@dataclass(frozen=True)
class LearnedVariance(NoisyExamples, Memory):
    """The training loss of a score model with a learned variance.

        objective = LearnedVariance(DDPMChain.from_schedule("cosine", 4000).to_sde(), method="vlb:resample=true")

    method       a key of METHODS with its options: "hybrid:weight=0.001", "vlb:resample=true"
    bound_steps  how many steps back the bound is of, as `steps` of chain_elbo; None: all of the chain
    codec        of the data; None, or one whose x is real: the decoder is a density
    variance_output  what the model says of the variance

    The other arguments are those of ScoreMatching, and belong to L_simple. Raises ArgumentError for a word or a number that
    does not exist, for a weighting beside "vlb", and for times drawn both by the weighting and by losses.
    """

    method: str = field(default="hybrid", kw_only=True)
    bound_steps: int | None = field(default=None, kw_only=True)
    codec: Any = field(default=None, kw_only=True)
    variance_output: str = field(default="share", kw_only=True)
    of: Hybrid | VLB | Square = field(init=False, repr=False, compare=False)
    history: LossHistory | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, options = worded("method", METHODS, self.method, "method")
        of, steps = kind(**options), self.sde.steps or CHAIN
        if self.bound_steps is not None and not 2 <= self.bound_steps <= steps:
            raise ArgumentError(f"bound_steps must lie in 2 .. {steps}, got {self.bound_steps}", "bound_steps")
        if isinstance(of, VLB) and (self.weighting, self.importance) != ("simple", False):
            raise ArgumentError("the bound of method 'vlb' has its own weights; leave out weighting and importance, or "
                                "choose method hybrid", "method", "weighting")
        if of.resample and self.importance:
            raise ArgumentError("times are drawn either by the weighting (importance) or by their losses (resample); leave "
                                "out one", "method", "importance")
        allowed = OUTPUTS[kind]
        if self.variance_output not in allowed:
            raise ArgumentError(f"method {self.method.partition(':')[0]!r} trains the output {' or '.join(allowed)}, and "
                                f"the model's is {self.variance_output!r}", "method", "variance_output")
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "history", LossHistory(self.sde, self.time_sampling) if of.resample else None)

    def draw(self, batch: Batch, draws: Draws) -> NoisyTimes:
        drawn = super().draw(batch, draws)
        if self.history is None or not draws.drops:      # held-out losses are those of the same times in every evaluation
            return drawn
        t, weight = map(draws.keep, self.history.draw(draws.batch, draws.host))
        return drawn._replace(t=t, weight=weight * self.times.weighting(t))

    def loss(self, model: Denoiser, batch: Batch, draw: NoisyTimes) -> Tensor:
        """The loss of each example, (batch,): its mean over t is the objective."""
        x0, (t, weight, eps, dropped) = batch.x, draw
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        x_t = torch.addcmul(expand_as(alpha, x0) * x0, expand_as(sigma, x0), eps)
        output, known = model.outputs(x_t, t, *told(model, batch.condition, dropped))
        if known is None:
            raise ArgumentError("objective learned_variance needs a model that learns a variance; set "
                                "model.learned_variance=true", "objective")
        of_x0, of_eps = model.parametrization.target(alpha, sigma)
        target = torch.addcmul(expand_as(of_x0, x0) * x0, expand_as(of_eps, x0), eps)
        error = (output - target) * expand_as(model.parametrization.eps(alpha, sigma)[1], x0)      # in eps
        simple = self.times.weighting(t)
        if isinstance(self.of, VLB):
            losses = self.bound(t, error, known, x0)
        else:
            second = (self.second(error.detach(), known, eps) * simple.to(x0) if isinstance(self.of, Square) else
                      self.bound(t, error.detach(), known, x0))
            losses = error.square().flatten(1).mean(1) * simple.to(x0) + self.of.weight * second
        if self.history is not None and torch.is_grad_enabled():
            self.history.note(t, losses)
        return losses * (weight / simple).to(x0)

    def second(self, error: Tensor, known: Tensor, eps: Tensor) -> Tensor:
        """The second term of methods square and likelihood, (batch,), for errors in eps that have no gradient."""
        if isinstance(self.of, Likelihood):
            terms = (known.log() + error.square() / known) / 2
        else:
            terms = ((error if self.variance_output == "residual" else eps).square() - known).square()
        return terms.flatten(1).mean(1)

    def bound(self, t: Tensor, error: Tensor, known: Tensor, x0: Tensor) -> Tensor:
        """T times the bound's term at t in bits/dim, (batch,), for errors in eps, what the model says of the variance, w or
        e, and data, each (batch, *event).
        """
        steps = self.sde.steps or CHAIN
        stride = round((steps - 1) / ((self.bound_steps or steps) - 1))      # as chain_elbo spaces them
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        (step, data), (own, _) = (Transition.back(self.sde, t, by) for by in (stride, 1))
        beta_tilde = torch.where(data, reverse_variance("beta_tilde", own), reverse_variance("beta_tilde", step))
        of_error = torch.where(data, 1, step.posterior[1]) * sigma / alpha

        at_data, of_x0 = expand_as(data, known).bool(), (sigma / alpha).square()
        if self.variance_output == "residual":
            log_excess = torch.where(at_data, expand_as((of_x0 / beta_tilde).log(), known) + known.log(),
                                     torch.log1p(expand_as(step.gain * of_x0, known) * known))      # log V - log beta_tilde
        else:
            log_ratio = torch.where(data, (sigma.square() / beta_tilde).log(), own.log_ratio)
            log_excess = expand_as(log_ratio, known) * known
            if stride > 1:
                gain = expand_as(torch.where(data, 1, step.gain / own.gain), known)
                longer = torch.log1p(gain * torch.expm1(log_excess.clamp(min=0)))
                below = expand_as(step.log_ratio, known) * known.clamp(max=0)      # no variance of x_0: as strided steps
                log_excess = torch.where(at_data, log_excess, longer + below)
        square = expand_as(of_error.square() / beta_tilde, error) * error.square() * torch.exp(-log_excess)
        divergence = square + torch.expm1(-log_excess) + log_excess
        decoder = square + log_excess + expand_as((2 * math.pi * beta_tilde).log(), known)
        terms = torch.where(at_data, decoder, divergence).flatten(1).mean(1)
        if self.codec is not None and self.codec.discrete and bool(data.any()):
            number, low, high = self.codec.levels, self.codec.low, self.codec.high
            v = expand_as(beta_tilde, known)[data] * torch.exp(log_excess[data])
            mean = x0[data] - expand_as(of_error, x0)[data] * error[data]
            k = ((x0[data] - low) / (high - low) * (number - 1)).round()
            mass = discretised_log_prob(k, mean, v.sqrt(), number, low, high)
            terms = terms.masked_scatter(data, -2 * mass.to(terms) / x0[0].numel())
        times = torch.where(data, torch.full_like(t, steps), steps / stride)
        return terms * (times / (2 * math.log(2))).to(terms)

    def stepped(self, world: World) -> None:
        if self.history is not None:
            self.history.learn(world)

    def state(self) -> Mapping[str, Any] | None:
        return None if self.history is None else self.history.state()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        if self.history is not None and state is not None:
            self.history.restore(state)
