"""Forward processes: SDEs in continuous time, and the discrete chains that they generalise."""

from collections.abc import Callable

from sde_lib.chain import Chain, DDPMChain, SMLDChain
from sde_lib.schedules import cosine_betas, geometric_sigmas, linear_betas, sigmoid_betas
from sde_lib.sde import SDE, expand_as
from sde_lib.subvp import SubVPSDE
from sde_lib.ve import VESDE
from sde_lib.vp import VPSDE, CosineVPSDE, SigmoidVPSDE


def ddpm(schedule: str = "linear", steps: int = 1000) -> SDE:
    """The DDPM chain of a schedule, read as an SDE; a model of it trains at the chain's indices."""
    return DDPMChain.from_schedule(schedule, steps).to_sde()


def smld(steps: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> SDE:
    """The geometric SMLD chain, read as an SDE; a model of it trains at the chain's indices."""
    return SMLDChain.from_schedule(steps, sigma_min, sigma_max).to_sde()


SDES: dict[str, Callable[..., SDE]] = {
    "vp": VPSDE, "cosine": CosineVPSDE, "sigmoid": SigmoidVPSDE, "subvp": SubVPSDE, "ve": VESDE,
    "ddpm": ddpm, "smld": smld,
}

__all__ = [
    "SDE", "SDES", "VPSDE", "CosineVPSDE", "SigmoidVPSDE", "SubVPSDE", "VESDE", "Chain", "DDPMChain", "SMLDChain",
    "linear_betas", "cosine_betas", "sigmoid_betas", "geometric_sigmas", "expand_as",
]
