"""The SDE simulated forwards by torchsde, which knows only its drift and diffusion, arrives at alpha and sigma."""

import math

import pytest
import torch
import torchsde
from torch import nn

from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE, SigmoidVPSDE, SubVPSDE

PATHS, START, STEP = 40_000, 1.5, 0.01
ALLOWANCE = 0.005       # of the discretisation, relative to sigma and to its square


class Forward(nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, sde):
        super().__init__()
        self.sde = sde

    def f(self, t, x):
        return self.sde.drift(t) * x

    def g(self, t, x):
        return self.sde.g2(t).sqrt().expand_as(x)


@pytest.mark.costly
@pytest.mark.parametrize(("sde", "end"), [
    (VPSDE(), 1.0), (SubVPSDE(), 1.0), (SigmoidVPSDE(), 1.0), (VESDE(), 1.0),
    (CosineVPSDE(), 0.9),      # beta grows without bound beyond
], ids=repr)
def test_forward_simulation_has_the_mean_and_variance_of_the_kernel(sde, end):
    generator = torch.Generator().manual_seed(0)
    at_zero = sde.sigma(0.0) * torch.randn(PATHS, 1, dtype=torch.float64, generator=generator)
    noise = torchsde.BrownianInterval(0.0, end, (PATHS, 1), torch.float64, entropy=1,
                                      levy_area_approximation="space-time")
    times = torch.tensor([0.0, 0.3, end], dtype=torch.float64)
    with torch.no_grad():
        paths = torchsde.sdeint(Forward(sde), START + at_zero, times, bm=noise, method="srk", dt=STEP)
    for t, x in zip(times[1:], paths[1:], strict=True):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        assert float(x.mean()) == pytest.approx(alpha * START, abs=sigma * (4 / math.sqrt(PATHS) + ALLOWANCE))
        assert float(x.var()) == pytest.approx(sigma**2, rel=4 * math.sqrt(2 / PATHS) + ALLOWANCE)
