"""The digits by a diffusion transformer of as many parameters as the U-Net of vp_digits, trained as that is."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import renew


def get_config():
    config = vp_digits.get_config()
    renew(config, "model", "dit")
    config.model.width = 64             # 16 tokens of 2 x 2 pixels
    config.model.layers = 8
    config.model.heads = 4
    config.model.skips = True
    return config
