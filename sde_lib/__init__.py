"""Forward processes: SDEs in continuous time, and the discrete chains that they generalise."""

from collections.abc import Callable, Sequence

import torch

from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.brownian import BrownianSDE
from scorefield.sde_lib.chain import Chain, DDPMChain, SMLDChain
from scorefield.sde_lib.flow import FlowSDE
from scorefield.sde_lib.learned import LearnedVPSDE
from scorefield.sde_lib.prior import GaussianPrior
from scorefield.sde_lib.reference import Reference
from scorefield.sde_lib.schedules import cosine_betas, geometric_sigmas, linear_betas, scaled_linear_betas, sigmoid_betas
from scorefield.sde_lib.sde import SDE, check_time, expand_as
from scorefield.sde_lib.subvp import SubVPSDE
from scorefield.sde_lib.ve import VESDE
from scorefield.sde_lib.vp import VPSDE, CosineVPSDE, ShiftedCosineVPSDE, SigmoidVPSDE


def ddpm(schedule: str = "linear", steps: int = 1000, beta_min: float | None = None, beta_max: float | None = None,
         betas: Sequence[float] | None = None) -> SDE:
    """The DDPM chain of a schedule, or of a list of betas, read as an SDE; a model of it trains at the chain's indices.

    schedule, steps     a key of schedules.BETAS, and the length
    beta_min, beta_max  `steps` times the first and the last beta; None: those of the schedule, which may take none
    betas               the whole chain, in place of all these
    """
    ends = {name: value for name, value in (("beta_min", beta_min), ("beta_max", beta_max)) if value is not None}
    if betas is None:
        return DDPMChain.from_schedule(schedule, steps, **ends).to_sde()
    if schedule != "linear" or ends or steps not in (1000, len(betas)):
        raise ArgumentError(f"a list of {len(betas)} betas is the whole chain; leave out schedule, steps, beta_min and "
                            "beta_max", "betas")
    return DDPMChain(torch.tensor(betas, dtype=torch.float64)).to_sde()


def smld(steps: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> SDE:
    """The geometric SMLD chain, read as an SDE; a model of it trains at the chain's indices."""
    return SMLDChain.from_schedule(steps, sigma_min, sigma_max).to_sde()


SDES: dict[str, Callable[..., SDE]] = {
    "vp": VPSDE, "cosine": CosineVPSDE, "shifted_cosine": ShiftedCosineVPSDE, "sigmoid": SigmoidVPSDE,
    "subvp": SubVPSDE, "ve": VESDE, "flow": FlowSDE, "ddpm": ddpm, "smld": smld,
    "learned": LearnedVPSDE, "brownian": BrownianSDE,
}

__all__ = [
    "SDE", "SDES", "VPSDE", "CosineVPSDE", "ShiftedCosineVPSDE", "SigmoidVPSDE", "SubVPSDE", "VESDE", "FlowSDE",
    "BrownianSDE", "LearnedVPSDE", "Reference", "Chain", "DDPMChain", "SMLDChain", "GaussianPrior", "linear_betas",
    "scaled_linear_betas", "cosine_betas", "sigmoid_betas", "geometric_sigmas", "check_time", "expand_as",
]
