"""A student of the digits' teacher by progressive distillation: 32 steps of DDIM; name it as the teacher of one of 16."""

from scorefield.configs import digits_teacher
from scorefield.configs.sections import training


def get_config():
    config = digits_teacher.get_config()
    config.training = training(
        "progressive", teacher="runs/digits_teacher", student_steps=32, label_dropout=0.2, steps=2000, learning_rate=1e-3,
        beta2=0.99, warmup=0, decay="cosine", ema_decay=0.99, precision="fp32", log_every=500, eval_every=1000,
        sample_every=0, checkpoint_every=1000)
    return config
