"""The digits with their labels by an MLP, quick to train and to distil: v-prediction and the cosine schedule, which students
of few steps need.
"""

from scorefield.configs import vp_digits_labels
from scorefield.configs.sections import model, sde


def get_config():
    config = vp_digits_labels.get_config()
    config.sde = sde("cosine")
    config.model = model("mlp", width=256, classes=10, parametrization="v", time_input="half_log_snr")
    training = config.training
    training.steps = 5000
    training.weighting = "snr_plus_one"
    training.importance = False
    training.precision = "fp32"
    training.log_every = 500
    training.eval_every = 1000
    training.sample_every = 0
    training.checkpoint_every = 2500
    return config
