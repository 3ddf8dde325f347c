"""A student of the digits' teacher that takes the scale of guidance, so that a guided step costs one evaluation."""

from scorefield.configs import digits_progressive
from scorefield.configs.sections import renew


def get_config():
    config = digits_progressive.get_config()
    config.model.guidance = (0.0, 4.0)
    renew(config, "training", "guided")
    config.training.teacher = "runs/digits_teacher"
    config.training.weighting = "snr_plus_one"
    config.training.steps = 3000
    return config
