"""The deep variant: eight residual blocks a level instead of four (Song et al. 2021, appendix H): 107.6M parameters."""

from scorefield.configs import ve_cifar10_ncsnpp


def get_config():
    config = ve_cifar10_ncsnpp.get_config()
    config.model.num_blocks = 8
    config.training.steps = 950_000
    return config
