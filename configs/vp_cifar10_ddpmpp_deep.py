"""The deep variant: eight residual blocks a level instead of four (Song et al. 2021, appendix H): 106.6M parameters."""

from scorefield.configs import vp_cifar10_ddpmpp


def get_config():
    config = vp_cifar10_ddpmpp.get_config()
    config.model.num_blocks = 8
    config.training.steps = 950_000
    return config
