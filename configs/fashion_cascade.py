"""Fashion-MNIST from 7x7 to 28x28 pixels, the second stage of a cascade: SR3 with noise-conditioning augmentation."""

from scorefield.configs import vp_fashion_mnist_small


def get_config():
    config = vp_fashion_mnist_small.get_config()
    config.data.degradation = "downsample:factor=4"
    config.data.low_res_noise = 0.3
    config.model.low_res = 1
    config.model.low_res_noise = True
    return config
