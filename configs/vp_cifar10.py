"""CIFAR-10 by the VP SDE: DDPM's U-Net and training (Ho et al. 2020, appendix B) in continuous time."""

from scorefield.configs import default
from scorefield.configs.sections import data


def get_config():
    config = default.get_config()
    config.data = data("cifar10")
    return config
