"""The digits' U-Net with the square of its errors learned beside the mean, in as many steps of training (NPR-DDPM)."""

from scorefield.configs import vp_digits_hybrid


def get_config():
    config = vp_digits_hybrid.get_config()
    config.model.variance_output = "residual"
    config.training.method = "likelihood:weight=0.05"      # its gradient is much larger than that of the mean
    config.training.bound_steps = None
    return config
