"""The first stage of configs/digits_cascade.py: digits of 4x4 pixels, the means of blocks of 2x2."""

from scorefield.configs import vp_digits


def get_config():
    config = vp_digits.get_config()
    config.data.reduce = 2
    config.training.steps = 2000
    return config
