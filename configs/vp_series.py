"""Your own series: a small U-Net over one axis for --config.data.path=FILE, (N, channels, length), length divisible by 4."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import data


def get_config():
    config = vp_digits.get_config()
    config.data = data("array", kind="series")
    config.model.multipliers = (1, 2, 2)
    return config
