"""32x32 colour patches of two photographs, without a download: a small U-Net, for about 7.5 minutes of two idle CPU cores.

That time is extrapolated, and no run was timed to its end; the quality of its samples was not measured.
"""

from scorefield.configs import vp_digits
from scorefield.configs.sections import data


def get_config():
    config = vp_digits.get_config()
    config.data = data("patches32", dequantize=True)
    config.model.multipliers = (1, 2, 2)
    config.training.batch_size = 32
    config.training.steps = 1000
    config.training.learning_rate = 1e-3
    return config
