"""32x32 colour patches of two photographs: a small U-Net that two CPU cores train in minutes, without a download."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import data


def get_config():
    config = vp_digits.get_config()
    config.data = data("patches32", dequantize=True)
    config.model.multipliers = (1, 2, 2)
    config.training.batch_size = 32
    config.training.steps = 1000
    config.training.learning_rate = 1e-3
    return config
