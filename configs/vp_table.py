"""Your own table: an MLP for the rows of --config.data.path=FILE, which has numbers in its columns; a minute on a laptop."""

from scorefield.configs import vp_swiss_roll
from scorefield.configs.sections import data


def get_config():
    config = vp_swiss_roll.get_config()
    config.data = data("array")
    config.model.time_input = "half_log_snr"     # smoother in time than "999t"
    config.training.weighting = "likelihood"
    config.training.importance = True
    return config
