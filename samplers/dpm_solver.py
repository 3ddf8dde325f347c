"""DPM-Solver (Lu et al. 2022a) and DPM-Solver++ (Lu et al. 2022b): exponential integrators of order 1 to 3.

With h = lambda_t - lambda_s, the step from s to t of the first predicts the noise m = eps, of the second the data
m = x_0. Order 1 is DDIM for both:

    noise   x_t = alpha_t/alpha_s x_s - sigma_t (e^h - 1) m_s
    data    x_t = sigma_t/sigma_s x_s - alpha_t (e^-h - 1) m_s

Written once for both: x_t = keep x_s - scale [phi_1 m + ...] with z = h or -h, phi_1 = e^z - 1, phi_2 = phi_1/z - 1,
phi_3 = phi_2/z - 1/2, and m's derivatives taken in z.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scorefield.models.denoiser import ScoreModel
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import MAX_STEPS, make_grid
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import CountedModel
from scorefield.samplers.multistep import MultistepSampler, Rule, Schedule, prediction
from scorefield.sde_lib.sde import SDE

METHODS = ("multistep", "singlestep", "adaptive", "sde")


@dataclass(frozen=True)
class Step:
    """keep, scale and z of a step between two half log-SNRs."""

    keep: float
    scale: float
    z: float

    @classmethod
    def between(cls, kind: str, alpha: tuple[float, float], sigma: tuple[float, float], h: float) -> "Step":
        if kind == "noise":
            return cls(alpha[1] / alpha[0], sigma[1], h)
        return cls(sigma[1] / sigma[0], alpha[1], -h)

    @property
    def phi(self) -> tuple[float, float, float]:
        one = math.expm1(self.z)
        if abs(self.z) < 0.05:       # the recursion cancels; the series phi_k = z sum_n z^n / (n + k)! does not
            two = sum(self.z**n / math.factorial(n + 1) for n in range(1, 12))
            three = sum(self.z**n / math.factorial(n + 2) for n in range(1, 12))
            return one, two, three
        return one, one / self.z - 1, (one / self.z - 1) / self.z - 0.5


@dataclass(frozen=True)
class Jump:
    """A single step: its start and its points at the `ratios` of h, the steps from the start to each, and their phi."""

    times: Tensor
    ratios: list[float]
    steps: list[Step]
    phi: list[tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class DPMSolver(MultistepSampler):
    """DPM-Solver, predicting the noise. Its methods:

    multistep   one evaluation a step
    singlestep  `steps` is the budget of evaluations, spent in steps of `order` evaluations and shorter ones at the end
                (Lu et al. 2022a, section 3.4)
    adaptive    step sizes by the difference of two orders, order 2 or 3 (their appendix C); grid and steps are unused

    The third-order multistep update as published has a second difference that lacks a factor 2, so it converges with
    order 2; `published` asks for it, for parity with papers.
    """

    order: int = option(2, "1, 2 or 3")
    method: str = option("multistep", "multistep, singlestep or adaptive; for dpm_solver++ also sde")
    lower_order_final: bool | None = option(None, "multistep: lower the order in the last steps; by default below 10 steps")
    published: bool = option(False, "multistep of order 3: use the published update instead of the corrected one")
    rtol: float = option(0.05, "relative tolerance of the adaptive method")
    atol: float = option(0.0078, "absolute tolerance of the adaptive method")
    max_evaluations: int = option(10_000, "largest number of evaluations; the adaptive method then stops with an error")
    kind: ClassVar[str] = "noise"
    methods: ClassVar[tuple[str, ...]] = ("multistep", "singlestep", "adaptive")

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ArgumentError(f"order must be 1, 2 or 3, got {self.order}", "order")
        if self.method not in self.methods:
            raise ArgumentError(f"unknown method {self.method!r}; choose from {', '.join(self.methods)}", "method")
        if self.method == "adaptive" and self.order == 1:
            raise ArgumentError("the adaptive method has order 2 or 3", "order")
        if not (0 < self.rtol < 1 and 0 < self.atol < 1 and self.max_evaluations > 0):
            raise ArgumentError("rtol and atol must lie in (0, 1) and max_evaluations above 0", "rtol", "atol")
        self._refuse_options_of_other_methods()

    def _refuse_options_of_other_methods(self) -> None:
        adaptive, multistep = self.method == "adaptive", self.method in ("multistep", "sde")
        unused = {"steps": adaptive, "grid": adaptive, "rtol": not adaptive, "atol": not adaptive,
                  "max_evaluations": not adaptive, "lower_order_final": not multistep,
                  "published": not (self.method == "multistep" and self.order == 3)}
        for name, ignored in unused.items():
            if ignored and getattr(self, name) != getattr(type(self), name):
                raise ArgumentError(f"method {self.method!r} of order {self.order} takes no {name!r}", name)

    def predicts(self, s: Schedule) -> tuple[np.ndarray, np.ndarray]:
        return prediction(self.kind, s)

    def step_between(self, s: Schedule, i: int, j: int) -> Step:
        return Step.between(self.kind, (s.alpha[i], s.alpha[j]), (s.sigma[i], s.sigma[j]), s.lam[j] - s.lam[i])

    # ---- times ---------------------------------------------------------------------------------------------------

    def orders(self) -> list[int]:
        """Orders of the single steps that spend a budget of `steps` evaluations."""
        full, rest = divmod(self.steps, self.order)
        if self.order == 3 and rest == 0:
            return [3] * (full - 1) + [2, 1]
        return [self.order] * full + ([rest] if rest else [])

    def times(self, model: ScoreModel) -> Tensor:
        if self.method == "adaptive":
            return make_grid("uniform", model.sde, 1, self.end(model))
        if self.method == "singlestep" and isinstance(self.grid, str):
            if not self.order <= self.steps <= MAX_STEPS:
                raise ArgumentError(f"order {self.order} needs at least {self.order} evaluations and at most {MAX_STEPS}, "
                                    f"got {self.steps}", "order", "steps")
            return self.grid_of(model, len(self.orders()))
        times = self.grid_of(model, self.steps)
        if self.method != "singlestep" and len(times) - 1 < self.order:
            raise ArgumentError(f"order {self.order} needs at least {self.order} steps, got {len(times) - 1}",
                                "order", "steps")
        return times

    # ---- multistep -----------------------------------------------------------------------------------------------

    def rules(self, s: Schedule) -> list[Rule]:
        n = len(s.lam) - 1
        lower = n < 10 if self.lower_order_final is None else self.lower_order_final
        return [self.rule(s, i, min(self.order, i + 1, n - i if lower else self.order)) for i in range(n)]

    def rule(self, s: Schedule, i: int, order: int) -> Rule:
        """The step from time i to i + 1 from the last `order` predictions."""
        step = self.step_between(s, i, i + 1)
        one, two, three = step.phi
        h = np.diff(s.lam)
        if order == 1:
            weights = np.array([one])
        elif order == 2:
            r = h[i - 1] / h[i]
            weights = np.array([one, 0.0]) + 0.5 * one / r * np.array([1.0, -1.0])
        else:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            first, second = np.array([1.0, -1.0, 0.0]) / r0, np.array([0.0, 1.0, -1.0]) / r1
            slope = first + r0 / (r0 + r1) * (first - second)
            curvature = (1 if self.published else 2) / (r0 + r1) * (first - second)
            weights = np.array([one, 0.0, 0.0]) + two * slope + three * curvature
        return Rule(float(step.keep), (-step.scale * weights).tolist())

    # ---- single step and adaptive --------------------------------------------------------------------------------

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        if self.method == "singlestep":
            orders = self.orders() if isinstance(self.grid, str) else [self.order] * (len(times) - 1)
            lam = model.sde.half_log_snr(times).numpy()
            for t, jump in zip(times, self._jumps(model.sde, lam[:-1], lam[1:], orders), strict=False):
                x = self._single(model, x, self._predict(model, x, t), jump)[-1]
                yield x
        elif self.method == "adaptive":
            yield self._adaptive(model, x, times)
        else:
            yield from super().solve(model, x, times, noise)

    def _predict(self, model: CountedModel, x: Tensor, t: Tensor) -> Tensor:
        return model.predict(x, t, "eps" if self.kind == "noise" else "x0")

    def _jumps(self, sde: SDE, starts: np.ndarray, ends: np.ndarray, orders: Sequence[int]) -> list[Jump]:
        """The steps between half log-SNRs, with all their inner points at once.

        Inner points at r_1 = 1/2 for order 2 alone, r_1, r_2 = 1/3, 2/3 for order 3 (Lu et al. 2022a, algorithms 1, 2).
        """
        ratios = [np.array({1: [0.0, 1.0], 2: [0.0, 0.5, 1.0], 3: [0.0, 1 / 3, 2 / 3, 1.0]}[order]) for order in orders]
        lam = np.concatenate([start + r * (end - start) for start, end, r in zip(starts, ends, ratios, strict=True)])
        times = sde.time(torch.from_numpy(lam))
        s = Schedule(sde.alpha(times).numpy(), sde.sigma(times).numpy(), lam, times.numpy(), sde)
        jumps, first = [], 0
        for r in ratios:
            steps = [self.step_between(s, first, first + j) for j in range(1, len(r))]
            jumps.append(Jump(times[first:first + len(r)], r[1:].tolist(), steps, [step.phi for step in steps]))
            first += len(r)
        return jumps

    def _single(self, model: CountedModel, x: Tensor, m: Tensor, jump: Jump) -> list[Tensor]:
        """Solutions at the end of the jump, of orders 2 to its own (or only of order 1), which share their evaluations."""
        def moved(j: int, *terms: tuple[float, Tensor]) -> Tensor:
            out = x.mul(jump.steps[j].keep)
            for weight, value in terms:
                out.add_(value, alpha=-jump.steps[j].scale * weight)
            return out

        r, phi, last = jump.ratios, jump.phi, len(jump.ratios) - 1
        if last == 0:
            return [moved(0, (phi[0][0], m))]
        first = self._predict(model, moved(0, (phi[0][0], m)), jump.times[1]) - m
        second_order = moved(last, (phi[last][0], m), (phi[last][0] / (2 * r[0]), first))
        if last == 1:
            return [second_order]
        second = self._predict(model, moved(1, (phi[1][0], m), (r[1] / r[0] * phi[1][1], first)), jump.times[2]) - m
        return [second_order, moved(2, (phi[2][0], m), (phi[2][1] / r[1], second))]

    def _adaptive(self, model: CountedModel, x: Tensor, times: Tensor) -> Tensor:
        """Lu et al. 2022a, appendix C: accept if the two orders agree within the tolerances in every sample."""
        now, end = model.sde.half_log_snr(times).tolist()
        h, before, m = 0.05, x, None
        while end - now > 1e-9:
            if model.nfe >= self.max_evaluations:
                raise ArithmeticError(f"adaptive DPM-Solver stopped after {model.nfe} evaluations at half log-SNR {now:.4g} "
                                      f"of {end:.4g}, its step {h:.3g}; raise rtol, atol or max_evaluations")
            h = min(h, end - now)
            if m is None:
                m = self._predict(model, x, model.sde.time(torch.tensor(now, dtype=torch.float64)))
            ends, orders = np.array([now, now + h]), [self.order, 1] if self.order == 2 else [self.order]
            jumps = self._jumps(model.sde, ends[[0] * len(orders)], ends[[1] * len(orders)], orders)
            results = self._single(model, x, m, jumps[0])
            low = self._single(model, x, m, jumps[1])[0] if self.order == 2 else results[0]
            high = results[-1]
            allowed = (self.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=self.atol)
            error = float(((high - low) / allowed).detach().flatten(1).square().mean(1).sqrt().max())
            if not math.isfinite(error):
                return high
            if error <= 1:
                now, before, x, m = now + h, low, high, None
            h = 0.9 * h * max(error, 1e-8) ** (-1 / self.order)
        return x


@dataclass(frozen=True, kw_only=True)
class DPMSolverPlusPlus(DPMSolver):
    """DPM-Solver++, predicting the data. It has a method "sde", too: SDE-DPM-Solver++ of order 1 or 2, which solves the
    reverse-time SDE (Lu et al. 2022b, section 5).
    """

    kind: ClassVar[str] = "data"
    methods: ClassVar[tuple[str, ...]] = METHODS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "sde" and self.order == 3:
            raise ArgumentError("the SDE form has order 1 or 2", "order")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.method == "sde"

    def rule(self, s: Schedule, i: int, order: int) -> Rule:
        if self.method != "sde":
            return super().rule(s, i, order)
        h = s.lam[i + 1] - s.lam[i]
        weights = np.array([1.0]) if order == 1 else np.array(
            [1.0, 0.0]) + 0.5 * h / (s.lam[i] - s.lam[i - 1]) * np.array([1.0, -1.0])
        spread = -math.expm1(-2 * h)      # 1 - e^(-2h)
        return Rule(float(s.sigma[i + 1] / s.sigma[i] * math.exp(-h)), (s.alpha[i + 1] * spread * weights).tolist(),
                    noise=float(s.sigma[i + 1] * math.sqrt(spread)))
