"""CIFAR-10 by the VE SDE and NCSN++ (Song et al. 2021, appendix H): 62.8M parameters.

Steps as in the published config; the paper's text says 0.95M. The loss of the published VE runs is half the sum over a
picture, and its gradient is clipped at 1. Here the loss is the mean, 2 / (3 * 32 * 32) times theirs; the clip and Adam's
eps scale with it.
"""

from scorefield.configs import ve_cifar10
from scorefield.configs.sections import model


def get_config():
    config = ve_cifar10.get_config()
    config.model = model("ncsnpp", embedding="fourier", time_input="log_sigma", centred=False, fir=True,
                         progressive_input="residual")
    config.training.steps = 1_300_000
    config.training.grad_clip = 2 / (3 * 32 * 32)
    config.training.adam_eps = 1e-8 * config.training.grad_clip
    return config
