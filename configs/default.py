"""What an experiment is unless it says otherwise. The experiments beside this file say what differs.

A config has four sections. Each names a class, and has exactly the arguments of that class, with the class's defaults:

    data      dataset    a key of data.DATASETS; and, where the data are integer levels, Pixels (sections.py)
    sde       name       a key of sde_lib.SDES
    model     network    a key of models.NETWORKS; and the arguments of Denoiser
    training  objective  a key of training.OBJECTIVES; and Training (training.py)

A file chooses another class by a new section, such as `config.sde = sde("ve")`. On the command line
`--config.section.field=value` overrides a field, and `--config.sde.name=ve` chooses another class.
"""

from ml_collections import ConfigDict

from scorefield.configs.sections import data, model, sde, training


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data, config.sde, config.model, config.training = data("digits"), sde("vp"), model("unet"), training()
    return config
