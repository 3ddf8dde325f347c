"""A consistency model of the digits in continuous time (sCM), distilled from their teacher."""

from scorefield.configs import digits_consistency
from scorefield.configs.sections import renew


def get_config():
    config = digits_consistency.get_config()
    renew(config, "training", "continuous_consistency")
    config.training.teacher = "runs/digits_teacher"
    config.training.label_dropout = 0.2
    return config
