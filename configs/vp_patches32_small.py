"""32x32 colour patches of two photographs, without a download: a U-Net for about 8 minutes of one CPU core, from which
benchmarks/restoring_colour.py restores.
"""

from scorefield.configs import vp_patches32


def get_config():
    config = vp_patches32.get_config()
    config.model.width = 16
    config.model.multipliers = (1, 2, 4)
    config.training.batch_size = 16
    config.training.steps = 1500
    config.training.warmup = 50
    config.training.sample_every = 0
    return config
