"""FFHQ at 1024x1024 by the VE SDE and NCSN++ (published config of Song et al. 2021): 105.8M parameters.

The same as their config for CelebA-HQ at 1024x1024 (appendix H.3). Unlike the other published VE runs, its loss is the mean
over a picture (reduce_mean), as for all configs here, and it clips the gradient of that.
"""

from scorefield.configs import ve_ffhq256_ncsnpp


def get_config():
    config = ve_ffhq256_ncsnpp.get_config()
    config.data.image_size = 1024
    config.sde.sigma_max = 1348.0
    config.model.width = 16
    config.model.multipliers = (1, 2, 4, 8, 16, 32, 32, 32)
    config.model.num_blocks = 1
    config.training.batch_size = 8
    config.training.ema_decay = 0.9999
    config.training.grad_clip = 1.0
    config.training.adam_eps = 1e-8
    return config
