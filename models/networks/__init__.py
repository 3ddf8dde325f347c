"""Networks: maps from x, time and perhaps a condition to a tensor of x's shape. They know layers, and nothing of an SDE."""

from scorefield.models.networks.autoencoder import Autoencoder
from scorefield.models.networks.classifier import Classifier
from scorefield.models.networks.dit import DiT
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.unet import UNet

__all__ = ["Autoencoder", "Classifier", "DiT", "MLP", "NCSNpp", "UNet"]
