"""CIFAR-10 by the sub-VP SDE and DDPM++, otherwise as vp_cifar10_ddpmpp (Song et al. 2021, appendix H)."""

from scorefield.configs import vp_cifar10_ddpmpp


def get_config():
    config = vp_cifar10_ddpmpp.get_config()
    config.sde.name = "subvp"
    return config
