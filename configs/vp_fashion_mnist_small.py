"""Fashion-MNIST on a laptop: the U-Net of vp_fashion_mnist with 16 channels, whose step takes half a second of one core."""

from scorefield.configs import vp_fashion_mnist


def get_config():
    config = vp_fashion_mnist.get_config()
    config.model.time_input = "half_log_snr"
    config.model.width = 16
    config.model.dropout = 0.0          # on a CPU the drawing of masks costs as much as the convolutions
    training = config.training
    training.steps = 20_000
    training.batch_size = 32
    training.learning_rate = 2e-3
    training.beta2 = 0.99
    training.warmup = 100
    return config
