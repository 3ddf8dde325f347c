"""The digits' U-Net with the variance of its steps learned beside the mean, in as many steps of training."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import renew


def get_config():
    config = vp_digits.get_config()
    config.model.learned_variance = True
    renew(config, "training", "learned_variance")
    training = config.training
    training.weighting = "likelihood"
    training.importance = True
    training.bound_steps = 10      # the longest steps that will be sampled know the variance best, and say it for all
    return config
