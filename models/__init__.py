"""Score models: networks seen through an SDE, and exact ones."""

from scorefield.models.analytic import GaussianMixture
from scorefield.models.build import NETWORKS, build_denoiser, build_sde
from scorefield.models.denoiser import TIME_INPUTS, Denoiser, ScoreModel
from scorefield.models.ema import EMA
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.unet import UNet
from scorefield.models.parametrization import PARAMETRIZATIONS

__all__ = [
    "EMA", "MLP", "NETWORKS", "PARAMETRIZATIONS", "TIME_INPUTS", "Denoiser", "GaussianMixture", "NCSNpp",
    "ScoreModel", "UNet", "build_denoiser", "build_sde",
]
