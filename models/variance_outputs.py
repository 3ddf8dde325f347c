"""What the second half of a network's channels says of the variance of x_0 given x_t, from one number r for each element.

    share     w = (r + 1) / 2, the share of log beta in the log variance of a step back (Nichol and Dhariwal 2021,
              "Improved Denoising Diffusion Probabilistic Models", equation 15)
    residual  e = exp(r), that is E[(eps - eps_theta)^2 given x_t]: the best beside an imperfect mean (Bao et al. 2022,
              "Estimating the Optimal Covariance with Imperfect Mean", NPR-DDPM)
    noise     n = 1 + r, that is E[eps^2 given x_t] (the same paper, SN-DDPM)

The variance is (sigma/alpha)^2 e, or (sigma/alpha)^2 (n - eps_theta^2), and never below 0. Training begins with r = 0: half
way between beta and beta_tilde; and the squares of unit noise, which are the errors of a network that predicts 0.
"""

from torch import Tensor

from scorefield.sde_lib.sde import SDE, expand_as
from scorefield.sde_lib.transition import variance_of_x0


class Share:
    """w.

    read   what r says, (batch, *event), at times t, a scalar or (batch,)
    of_x0  the variance of x_0 given x_t, of what was read, and of x_t and the mean of x_0
    """

    def read(self, raw: Tensor, sde: SDE, t: Tensor) -> Tensor:
        return (raw + 1) / 2

    def of_x0(self, known: Tensor, x: Tensor, mean: Tensor, sde: SDE, t: Tensor) -> Tensor:
        return variance_of_x0(known, sde, t)


class Residual:
    """e, whose logarithm the network gives: near the noise it falls by orders of magnitude, and its ratios matter."""

    def read(self, raw: Tensor, sde: SDE, t: Tensor) -> Tensor:
        return raw.exp()

    def of_x0(self, known: Tensor, x: Tensor, mean: Tensor, sde: SDE, t: Tensor) -> Tensor:
        return expand_as((sde.sigma(t) / sde.alpha(t)).square(), known) * known


class Noise(Residual):
    """n."""

    def read(self, raw: Tensor, sde: SDE, t: Tensor) -> Tensor:
        return raw + 1

    def of_x0(self, known: Tensor, x: Tensor, mean: Tensor, sde: SDE, t: Tensor) -> Tensor:
        eps = (x - expand_as(sde.alpha(t), x) * mean) / expand_as(sde.sigma(t), x)
        return super().of_x0((known - eps.square()).clamp(min=0), x, mean, sde, t)


VARIANCE_OUTPUTS: dict[str, Share | Residual] = {"share": Share(), "residual": Residual(), "noise": Noise()}
