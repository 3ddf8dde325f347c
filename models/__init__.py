"""Score models: networks seen through an SDE, and exact ones."""

from models.analytic import GaussianMixture
from models.build import NETWORKS, build_denoiser, build_sde, load_denoiser
from models.denoiser import TIME_INPUTS, Denoiser, ScoreModel
from models.ema import EMA
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.parametrization import PARAMETRIZATIONS
from models.score_sde import load_score_sde
from models.unet import UNet

__all__ = [
    "EMA", "MLP", "NETWORKS", "PARAMETRIZATIONS", "TIME_INPUTS", "Denoiser", "GaussianMixture", "NCSNpp", "ScoreModel",
    "UNet", "build_denoiser", "build_sde", "load_denoiser", "load_score_sde",
]
