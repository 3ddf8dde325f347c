"""FFHQ at 256x256, as ve_lsun_bedroom_ncsnpp but for sigma_max (published config of Song et al. 2021)."""

from scorefield.configs import ve_lsun_bedroom_ncsnpp


def get_config():
    config = ve_lsun_bedroom_ncsnpp.get_config()
    config.sde.sigma_max = 348.0
    return config
