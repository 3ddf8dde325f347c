"""A classifier of noisy digits, which guides a score model of them: half a small U-Net, trained in a minute on two cores."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import model, training


def get_config():
    config = vp_digits.get_config()
    config.model = model("classifier", width=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(),
                         time_input="half_log_snr")
    config.training = training("classifier", steps=1500, learning_rate=1e-3, warmup=100, decay="cosine", ema_decay=0.995,
                               eval_every=500, sample_every=0, checkpoint_every=500)
    return config
