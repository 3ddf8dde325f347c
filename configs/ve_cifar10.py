"""CIFAR-10 by the VE SDE (Song et al. 2021, appendix C): sigma from 0.01 to 50 on data in [0, 1]."""

from scorefield.configs import vp_cifar10
from scorefield.configs.sections import sde


def get_config():
    config = vp_cifar10.get_config()
    config.sde = sde("ve")
    config.data.low = 0.0
    config.model.input_std = 0.5        # the standard deviation of CIFAR-10 about the origin, in [0, 1]
    config.training.ema_decay = 0.999
    return config
