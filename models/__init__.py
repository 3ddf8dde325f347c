"""Score models: networks seen through an SDE, and exact ones."""

from models.analytic import GaussianMixture
from models.build import NETWORKS, build_denoiser, build_sde
from models.checkpoint import Checkpoint
from models.denoiser import TIME_INPUTS, Denoiser, ScoreModel
from models.ema import EMA
from models.load import load_denoiser, read_checkpoint
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.parametrization import PARAMETRIZATIONS
from models.unet import UNet

__all__ = [
    "EMA", "MLP", "NETWORKS", "PARAMETRIZATIONS", "TIME_INPUTS", "Checkpoint", "Denoiser", "GaussianMixture", "NCSNpp",
    "ScoreModel", "UNet", "build_denoiser", "build_sde", "load_denoiser", "read_checkpoint",
]
