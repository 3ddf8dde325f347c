"""The first stage of configs/fashion_cascade.py: Fashion-MNIST of 7x7 pixels, the means of blocks of 4x4."""

from scorefield.configs import vp_fashion_mnist_small


def get_config():
    config = vp_fashion_mnist_small.get_config()
    config.data.reduce = 4
    config.model.width = 64
    config.model.multipliers = (1,)      # 7 cannot be halved
    config.model.attention_resolutions = (7,)
    return config
