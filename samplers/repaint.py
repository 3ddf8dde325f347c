"""RePaint: ancestral steps, of which some are taken again (Lugmayr et al. 2022, "RePaint: Inpainting using Denoising
Diffusion Probabilistic Models", section 4.2 and appendix B).

After every `jump` steps down the state goes that many up again, by the forward process,

    x_t = a x_s + sqrt(v) z        with a and v of sde_lib/transition.py

and comes down anew, `resample` times in all. So what was filled in gets to agree with what is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.noise import NoiseStream
from scorefield.numerics.options import option
from scorefield.samplers.base import STEPS, CountedModel, GridSampler
from scorefield.sde_lib.transition import Transition, reverse_variance


@dataclass(frozen=True, kw_only=True)
class RePaint(GridSampler):
    """RePaint's resampling, for any score model; its own is that of guidance.posterior by method "replacement".

    One evaluation a step: about `resample` times `steps` in all.
    """

    steps: int = option(100, STEPS)
    jump: int = option(10, "steps that are taken again together")
    resample: int = option(10, "how many times they are taken")
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        for name in ("jump", "resample"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ArgumentError(f"{name} must be at least 1 and at most 1000000, got {getattr(self, name)}", name)

    def solve(self, model: CountedModel, x: Tensor, times: Tensor, noise: NoiseStream | None) -> Iterator[Tensor]:
        assert noise is not None
        step, n = Transition.along(model.sde, times), len(times) - 1
        of_x, of_x0 = step.posterior
        down = reverse_variance("beta_tilde", step).clamp(min=0).sqrt()
        alpha, sigma = model.sde.alpha(times), model.sde.sigma(times)
        for start in range(0, n, self.jump):
            stop = min(start + self.jump, n)
            for again in range(self.resample):
                if again:      # from times[stop] up to times[start] at once, as so many steps up would be
                    up = Transition.between(alpha[start], sigma[start], alpha[stop], sigma[stop])
                    x = float(up.scale) * x + float(up.variance.sqrt()) * noise.normal(x)
                states = []
                for i in range(start, stop):
                    x0 = model.x0(x, times[i])
                    x = float(of_x[i]) * x + float(of_x0[i]) * x0 + float(down[i]) * noise.normal(x)
                    states.append(x)
            yield from states
