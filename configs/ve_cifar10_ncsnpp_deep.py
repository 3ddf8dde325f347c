"""The deep variant: eight residual blocks a level instead of four (Song et al. 2021, appendix H)."""

from configs import ve_cifar10_ncsnpp


def get_config():
    config = ve_cifar10_ncsnpp.get_config()
    config.model.num_blocks = 8
    return config
