"""Fashion-MNIST (28x28 grey) by the VP SDE: a U-Net of 64 channels over 28, 14 and 7 pixels."""

from scorefield.configs import default
from scorefield.configs.sections import data


def get_config():
    config = default.get_config()
    config.data = data("fashion_mnist", dequantize=True)
    config.model.width = 64
    config.model.multipliers = (1, 2, 2)
    config.model.attention_resolutions = (14,)
    config.training.steps = 100_000
    config.training.warmup = 1000
    config.training.ema_decay = 0.999
    return config
