"""LSUN bedrooms at 256x256 by the VE SDE and NCSN++ with skips (published config of Song et al. 2021): 65.6M."""

from scorefield.configs import ve_cifar10_ncsnpp
from scorefield.configs.sections import data


def get_config():
    config = ve_cifar10_ncsnpp.get_config()
    config.data = data("folder", image_size=256, low=0.0)
    config.sde.sigma_max = 378.0
    model = config.model
    model.multipliers = (1, 1, 2, 2, 2, 2, 2)
    model.num_blocks = 2
    model.progressive_input = "input_skip"
    model.progressive = "output_skip"
    model.dropout = 0.0
    config.training.batch_size = 64
    config.training.steps = 2_400_000
    config.training.grad_clip = 2 / (3 * 256 * 256)      # see ve_cifar10_ncsnpp
    config.training.adam_eps = 1e-8 * config.training.grad_clip
    return config
