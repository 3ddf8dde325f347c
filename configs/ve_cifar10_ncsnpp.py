"""CIFAR-10 by the VE SDE and NCSN++ (Song et al. 2021, appendix H): 62.8M parameters."""

from configs import ve_cifar10


def get_config():
    config = ve_cifar10.get_config()
    model = config.model
    model.network = "ncsnpp"
    model.embedding = "fourier"
    model.time_input = "log_sigma"
    model.input_std = None              # NCSN++ sees x itself
    model.centred = False
    model.fir = True
    model.progressive_input = "residual"
    return config
