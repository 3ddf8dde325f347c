"""CIFAR-10 by the VE SDE and DDPM++: 61.9M parameters.

DDPM++ is the paper's choice for VP: NCSN++ without FIR resampling and progressive input (Song et al. 2021, appendix
H.2). With VE, they compared it on the discrete chain, among many other networks, and published no config. Here it trains
in continuous time, with Fourier features of log sigma as their VE networks do.
"""

from scorefield.configs import ve_cifar10_ncsnpp


def get_config():
    config = ve_cifar10_ncsnpp.get_config()
    config.model.fir = False
    config.model.progressive_input = "none"
    return config
