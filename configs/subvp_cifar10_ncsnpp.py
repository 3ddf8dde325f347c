"""CIFAR-10 by the sub-VP SDE and NCSN++, otherwise as vp_cifar10_ncsnpp (Song et al. 2021, appendix H)."""

from scorefield.configs import vp_cifar10_ncsnpp
from scorefield.configs.sections import sde


def get_config():
    config = vp_cifar10_ncsnpp.get_config()
    config.sde = sde("subvp")
    return config
