"""CelebA at 64x64 by the SMLD chain of 1000 steps and NCSN++ (Song et al. 2021, appendix H.1): 62.7M parameters.

The network's time input is the index, counted down. The paper crops the central 140x140 pixels: crop the pictures in
--config.data.path yourself. From the aligned pictures as published, the data set takes the central 178x178.
"""

from scorefield.configs import ve_cifar10_ncsnpp
from scorefield.configs.sections import data, sde


def get_config():
    config = ve_cifar10_ncsnpp.get_config()
    config.data = data("folder", image_size=64, low=0.0)
    config.sde = sde("smld", sigma_max=90.0)
    config.model.embedding = "positional"
    config.model.time_input = "index"
    config.model.last_label = 999
    config.training.grad_clip = 2 / (3 * 64 * 64)      # see ve_cifar10_ncsnpp
    config.training.adam_eps = 1e-8 * config.training.grad_clip
    return config
