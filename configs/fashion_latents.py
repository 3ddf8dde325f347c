"""Fashion-MNIST in the latents of configs/fashion_autoencoder.py: a U-Net over 7x7 places of 4 channels."""

from scorefield.configs import vp_fashion_mnist_small


def get_config():
    config = vp_fashion_mnist_small.get_config()
    config.data.dequantize = False      # as the autoencoder has it
    config.data.autoencoder = "runs/fashion_autoencoder"
    config.model.width = 64
    config.model.multipliers = (1,)      # 7 cannot be halved
    config.model.attention_resolutions = (7,)
    config.training.batch_size = 64
    return config
