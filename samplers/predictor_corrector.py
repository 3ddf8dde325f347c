"""Predictor-corrector samplers and annealed Langevin dynamics (Song et al. 2021, appendix G; Song and Ermon 2019).

After a predictor's step to time s, corrector steps of Langevin dynamics on p_s:

    x <- x + e score(x, s) + sqrt(2 e) z
    langevin   e = 2 a^2 snr^2 / (mean square of score)      (algorithms 4 and 5, where it is |z|^2 / |score|^2)
    annealed   e = 2 a^2 (snr sigma_s)^2

a = alpha_t / alpha_s is 1 for VE and the sqrt(alpha_i) of the chain on the sampler's grid for VP. The paper takes norms
averaged over the batch; here the mean square is that of each sample, so that a sample does not depend on the company it
keeps, with PSEUDO elements of 1 / sigma_s^2 added, which pictures do not feel and points need: the score of a point may
be near zero by chance, and its step would be without bound.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import GRID, STEPS, CountedModel, GridSampler
from scorefield.samplers.one_step import Ancestral, EulerMaruyama, OneStepSampler, ReverseDiffusion
from scorefield.sde_lib.sde import expand_as
from scorefield.sde_lib.transition import Transition

PREDICTORS: dict[str, OneStepSampler] = {
    "reverse_diffusion": ReverseDiffusion(),
    "euler_maruyama": EulerMaruyama(),
    "ancestral": Ancestral(),
}
CORRECTORS = ("langevin", "annealed")
CORRECTOR, CORRECTOR_STEPS = "langevin or annealed", "steps of the corrector at each time"
PSEUDO = 8


@dataclass(frozen=True, kw_only=True)
class _Corrected(GridSampler):
    """Steps of a predictor, or of none, each followed by corrector steps."""

    steps: int = option(1000, STEPS)
    corrector: str = option("langevin", CORRECTOR)
    corrector_steps: int = option(1, CORRECTOR_STEPS)
    snr: float = option(0.16, "the corrector's signal-to-noise ratio r")
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        if self.corrector not in CORRECTORS:
            raise ArgumentError(f"unknown corrector {self.corrector!r}; choose from {', '.join(CORRECTORS)}", "corrector")
        if self.corrector_steps < 0:
            raise ArgumentError(f"corrector_steps must not be negative, got {self.corrector_steps}", "corrector_steps")
        if not 0 < self.snr <= 100:
            raise ArgumentError(f"snr must lie in (0, 100], got {self.snr}", "snr")

    @abstractmethod
    def predictor_steps(self, model: CountedModel, times: Tensor) -> list[tuple[float, float, float]] | None:
        """keep, of_eps and of_noise of each step of the predictor, or None."""

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        assert noise is not None
        predictor = self.predictor_steps(model, times)
        chain = Transition.along(model.sde, times).scale.square().tolist()
        sigma = model.sde.sigma(times).tolist()
        for i in range(len(times) - 1):
            if predictor is not None:
                keep, of_eps, of_noise = predictor[i]
                x = x.mul(keep).add_(model.eps(x, times[i]), alpha=of_eps).add_(noise.normal(x), alpha=of_noise)
            for _ in range(self.corrector_steps):
                x = self._correct(model, x, times[i + 1], chain[i], sigma[i + 1], noise)
            yield x

    def _correct(self, model: CountedModel, x: Tensor, t: Tensor, chain: float, sigma: float,
                 noise: NoiseStream) -> Tensor:
        eps, z = model.eps(x, t), noise.normal(x)
        if self.corrector == "annealed":
            size = 2 * chain * (self.snr * sigma) ** 2
            return x.add(eps, alpha=-size / sigma).add_(z, alpha=(2 * size) ** 0.5)
        squares = eps.flatten(1).square()
        mean_square = (squares.sum(1) + PSEUDO) / (squares.shape[1] + PSEUDO)      # of sigma score
        step = expand_as(2 * chain * (self.snr * sigma) ** 2 / mean_square, x)
        return x - step / sigma * eps + (2 * step).sqrt() * z


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(_Corrected):
    """Corrector steps after each step of a predictor: 1 + corrector_steps evaluations."""

    predictor: str = option("reverse_diffusion", "reverse_diffusion, euler_maruyama or ancestral, each with its defaults")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor not in PREDICTORS:
            raise ArgumentError(f"unknown predictor {self.predictor!r}; choose from {', '.join(PREDICTORS)}", "predictor")

    def predictor_steps(self, model: CountedModel, times: Tensor) -> list[tuple[float, float, float]]:
        columns = (c.tolist() for c in PREDICTORS[self.predictor].coefficients(model.sde, times))
        return list(zip(*columns, strict=True))


@dataclass(frozen=True, kw_only=True)
class Langevin(_Corrected):
    """Annealed Langevin dynamics: only corrector steps at each time of the grid (Song and Ermon 2019, algorithm 1).

    Meant for VE, where times differ only in the noise.
    """

    steps: int = option(200, STEPS)
    grid: str | Sequence[float] = option("logsnr", GRID)
    corrector: str = option("annealed", CORRECTOR)
    corrector_steps: int = option(5, CORRECTOR_STEPS)

    def predictor_steps(self, model: CountedModel, times: Tensor) -> None:
        return None
