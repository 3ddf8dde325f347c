"""The swiss roll of Sohl-Dickstein et al. 2015 in 2-D by the VP SDE and an MLP; under a minute on a laptop."""

from scorefield.configs import default
from scorefield.configs.sections import data, model


def get_config():
    config = default.get_config()
    config.data = data("swiss_roll")
    config.model = model("mlp")
    training = config.training
    training.steps = 4000
    training.batch_size = 512
    training.learning_rate = 2e-3
    training.warmup = 100
    training.decay = "cosine"
    training.ema_decay = 0.999
    training.precision = "fp32"
    training.log_every = 500
    training.eval_every = 1000
    training.sample_every = 2000
    training.checkpoint_every = 2000
    return config
