"""scikit-learn's digits (8x8, 17 levels): a small U-Net that two CPU cores train in minutes; what `make demo` runs."""

from scorefield.configs import default


def get_config():
    config = default.get_config()
    config.data.dequantize = True
    config.model.time_input = "half_log_snr"     # smoother in time than "999t": adaptive solvers take half the steps
    config.model.width = 32
    config.model.multipliers = (1, 2)
    config.model.num_blocks = 1
    config.model.attention_resolutions = ()
    config.model.dropout = 0.0          # on a CPU the drawing of masks costs as much as the convolutions
    training = config.training
    training.steps = 3000
    training.learning_rate = 2e-3
    training.beta2 = 0.99
    training.warmup = 100
    training.decay = "cosine"
    training.weighting = "likelihood"
    training.importance = True
    training.ema_decay = 0.999
    training.eval_every = 500
    training.sample_every = 1000
    training.checkpoint_every = 500
    return config
