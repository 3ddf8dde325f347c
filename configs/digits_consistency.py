"""A consistency model of the digits, distilled from their teacher: samples in 1 to 4 evaluations."""

from scorefield.configs import digits_progressive
from scorefield.configs.sections import renew


def get_config():
    config = digits_progressive.get_config()
    renew(config, "training", "consistency")
    training = config.training
    training.teacher = "runs/digits_teacher"
    training.label_dropout = 0.2
    training.intervals = 32
    training.grid = "sinh"
    training.steps = 4000
    training.ema_decay = 0.995
    return config
