"""CIFAR-10 by the sub-VP SDE and NCSN++ (deep), otherwise as vp_cifar10_ncsnpp_deep (Song et al. 2021, appendix H)."""

from scorefield.configs import vp_cifar10_ncsnpp_deep


def get_config():
    config = vp_cifar10_ncsnpp_deep.get_config()
    config.sde.name = "subvp"
    return config
