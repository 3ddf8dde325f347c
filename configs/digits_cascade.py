"""Digits from 4x4 to 8x8 pixels, the second stage of a cascade: SR3 with noise-conditioning augmentation."""

from scorefield.configs import vp_digits


def get_config():
    config = vp_digits.get_config()
    config.data.degradation = "downsample:factor=2"
    config.data.low_res_noise = 0.3
    config.model.low_res = 1
    config.model.low_res_noise = True
    return config
