"""The digits by flow matching: alpha = 1 - t, sigma = t, and a network that predicts eps - x_0; otherwise as vp_digits."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import sde


def get_config():
    config = vp_digits.get_config()
    config.sde = sde("flow")
    config.model.parametrization = "flow"
    return config
