"""A consistency model of the digits, distilled from their teacher: samples in 1 to 4 evaluations."""

from scorefield.configs import digits_progressive
from scorefield.configs.sections import renew


def get_config():
    config = digits_progressive.get_config()
    renew(config, "training", "consistency")
    training = config.training
    training.teacher = "runs/digits_teacher"
    training.label_dropout = 0.2
    training.intervals = 4      # errors of intervals add up, and what is learned near the data travels through all of them
    training.teacher_steps = 6
    training.grid = "sinh"
    training.steps = 4000
    training.learning_rate = 5e-4
    training.ema_decay = 0.995
    return config
