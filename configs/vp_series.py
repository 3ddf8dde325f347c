"""Your own series: a small U-Net over one axis for --config.data.path=FILE, (N, channels, length), length divisible by 4."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import data


def get_config():
    config = vp_digits.get_config()
    config.data = data("array", kind="series")
    config.model.parametrization = "v"
    config.model.time_input = "999t"
    config.model.width = 16
    config.model.multipliers = (1, 2, 2)
    training = config.training
    training.weighting = "simple"       # few steps should rather give good samples than tight bounds on bits/dim
    training.importance = False
    training.steps = 2000
    training.batch_size = 64
    training.learning_rate = 4e-3
    training.ema_decay = 0.99
    training.precision = "fp32"
    return config
