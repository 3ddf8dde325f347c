"""The default experiment. The other files in this folder set only what differs.

A config has four sections. Each names a class and has exactly the arguments of that class as fields, with the class's
defaults:

    data      dataset    a key of data.DATASETS; for data with integer levels, also the fields of Pixels (sections.py)
    sde       name       a key of sde_lib.SDES
    model     network    a key of models.NETWORKS; also the arguments of Denoiser
    training  objective  a key of training.OBJECTIVES; also the fields of Training (training.py)

A file chooses another class with a new section, such as `config.sde = sde("ve")`. On the command line
`--config.section.field=value` overrides a field, and `--config.sde.name=ve` chooses another class.
"""

from ml_collections import ConfigDict

from scorefield.configs.sections import data, model, sde, training


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data, config.sde, config.model, config.training = data("digits"), sde("vp"), model("unet"), training()
    return config
