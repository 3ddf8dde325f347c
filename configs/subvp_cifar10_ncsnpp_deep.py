"""CIFAR-10 by the sub-VP SDE and NCSN++ (deep), otherwise as vp_cifar10_ncsnpp_deep (Song et al. 2021, appendix H)."""

from scorefield.configs import vp_cifar10_ncsnpp_deep
from scorefield.configs.sections import sde


def get_config():
    config = vp_cifar10_ncsnpp_deep.get_config()
    config.sde = sde("subvp")
    return config
