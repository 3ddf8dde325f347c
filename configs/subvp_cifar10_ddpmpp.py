"""CIFAR-10 by the sub-VP SDE and DDPM++ (Song et al. 2021, appendix H): 61.8M parameters."""

from configs import subvp_cifar10


def get_config():
    config = subvp_cifar10.get_config()
    config.model.network = "ncsnpp"
    return config
