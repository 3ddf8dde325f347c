"""The digits with their labels: one network that draws any digit or the one asked for; what `make demo` runs."""

from scorefield.configs import vp_digits


def get_config():
    config = vp_digits.get_config()
    config.model.classes = 10
    config.training.label_dropout = 0.2      # a small set: with 0.1, the digits without a label are the worse for it
    config.training.steps = 3400             # it learns two things
    return config
