"""CIFAR-10 by the VE SDE and DDPM++: 61.9M parameters.

DDPM++ is the paper's choice for VP: NCSN++ without FIR resampling and progressive input (Song et al. 2021, appendix
H.2). Under VE it was one of the many networks that they compared on the discrete chain and has no published config;
here it trains in continuous time, with what their VE networks have there: Fourier features of log sigma.
"""

from scorefield.configs import ve_cifar10_ncsnpp


def get_config():
    config = ve_cifar10_ncsnpp.get_config()
    config.model.fir = False
    config.model.progressive_input = "none"
    return config
