"""A Schroedinger bridge between the digits and Fashion-MNIST at 8x8 pixels, over Brownian motion, by matching (DSBM)."""

from scorefield.configs import bridge_swiss_to_gaussians


def get_config():
    config = bridge_swiss_to_gaussians.get_config()
    config.data.source = "digits"
    config.data.target = "fashion_mnist"
    config.data.side = 8
    config.model.width = 256
    config.model.source_std = 0.75
    config.model.target_std = 0.6
    config.sde.std = 0.5
    training = config.training
    training.first_updates = 2000
    training.paths = 4096
    training.steps = 8000
    training.batch_size = 128
    return config
