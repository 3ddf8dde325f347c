"""A Schroedinger bridge between the digits and Fashion-MNIST at 8x8 pixels, over Brownian motion, by matching (DSBM)."""

from scorefield.configs import bridge_swiss_to_gaussians
from scorefield.configs.sections import data, model


def get_config():
    config = bridge_swiss_to_gaussians.get_config()
    config.data = data("pair", source="digits", target="fashion_mnist", side=8)
    config.model = model("bridge_mlp", width=256, layers=3, source_std=0.75, target_std=0.65)
    config.sde.std = 0.5
    training = config.training
    training.first_updates = 2000
    training.paths = 4096
    training.steps = 8000
    training.batch_size = 128
    return config
