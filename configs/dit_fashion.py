"""Fashion-MNIST by a diffusion transformer of as many parameters as vp_fashion_mnist_small has, trained as that is."""

from scorefield.configs import vp_fashion_mnist_small
from scorefield.configs.sections import renew


def get_config():
    config = vp_fashion_mnist_small.get_config()
    renew(config, "model", "dit")
    config.model.width = 64             # 196 tokens of 2 x 2 pixels
    config.model.layers = 5
    config.model.heads = 4
    return config
