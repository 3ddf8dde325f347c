"""Score models: networks seen through an SDE, and exact ones."""

from scorefield.models.analytic import GaussianMixture
from scorefield.models.analytic_full import FullMixture, measured
from scorefield.models.bridge import Bridge
from scorefield.models.build import NETWORKS, build_denoiser, build_sde
from scorefield.models.conditions import Condition, Conditions
from scorefield.models.denoiser import TIME_INPUTS, Denoiser
from scorefield.models.ema import EMA
from scorefield.models.gaussian_bridge import GaussianBridge
from scorefield.models.networks.autoencoder import Autoencoder
from scorefield.models.networks.dequantizer import Dequantizer
from scorefield.models.networks.discriminator import Discriminator
from scorefield.models.networks.dit import DiT
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.unet import UNet
from scorefield.models.parametrization import PARAMETRIZATIONS
from scorefield.models.score_model import Posterior, ScoreModel
from scorefield.models.variance import FittedVariance, Moments
from scorefield.models.wrap import wrap

__all__ = [
    "EMA", "MLP", "NETWORKS", "PARAMETRIZATIONS", "TIME_INPUTS", "Autoencoder", "Bridge", "Condition", "Conditions",
    "Denoiser", "Dequantizer", "DiT", "Discriminator", "FittedVariance", "FullMixture", "GaussianBridge",
    "GaussianMixture", "Moments", "NCSNpp", "Posterior", "ScoreModel", "UNet", "build_denoiser", "build_sde", "measured",
    "wrap",
]
