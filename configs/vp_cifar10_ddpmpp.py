"""CIFAR-10 by the VP SDE and DDPM++ (Song et al. 2021, appendix H): 61.8M parameters."""

from scorefield.configs import vp_cifar10
from scorefield.configs.sections import model


def get_config():
    config = vp_cifar10.get_config()
    config.model = model("ncsnpp")
    config.training.steps = 1_300_000
    return config
