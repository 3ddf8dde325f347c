"""The deep variant: eight residual blocks a level instead of four; 106.7M parameters."""

from scorefield.configs import ve_cifar10_ddpmpp


def get_config():
    config = ve_cifar10_ddpmpp.get_config()
    config.model.num_blocks = 8
    config.training.steps = 950_000
    return config
