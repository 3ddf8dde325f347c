"""CIFAR-10 by the sub-VP SDE (Song et al. 2021, section 3.4), otherwise as vp_cifar10."""

from scorefield.configs import vp_cifar10
from scorefield.configs.sections import sde


def get_config():
    config = vp_cifar10.get_config()
    config.sde = sde("subvp")
    return config
