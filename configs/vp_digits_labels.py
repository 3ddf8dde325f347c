"""The digits with their labels: one network that draws a class or any digit, and scores both; what `make demo` runs."""

from scorefield.configs import vp_digits


def get_config():
    config = vp_digits.get_config()
    config.model.classes = 10
    return config
