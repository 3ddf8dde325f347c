"""CIFAR-10 by the sub-VP SDE and DDPM++, otherwise as vp_cifar10_ddpmpp (Song et al. 2021, appendix H)."""

from scorefield.configs import vp_cifar10_ddpmpp
from scorefield.configs.sections import sde


def get_config():
    config = vp_cifar10_ddpmpp.get_config()
    config.sde = sde("subvp")
    return config
