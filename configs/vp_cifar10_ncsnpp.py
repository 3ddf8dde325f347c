"""CIFAR-10 by the VP SDE and NCSN++ (Song et al. 2021, appendix H): 62.7M parameters."""

from scorefield.configs import vp_cifar10_ddpmpp


def get_config():
    config = vp_cifar10_ddpmpp.get_config()
    config.model.fir = True
    config.model.progressive_input = "residual"
    return config
