"""The digits, with a flow that draws the noise within their levels, trained with the score model."""

from scorefield.configs import vp_digits
from scorefield.configs.sections import training


def get_config():
    config = vp_digits.get_config()
    config.model.dequantizer = 32
    config.training = training("dequantization", steps=3000, learning_rate=2e-3, beta2=0.99, warmup=100, decay="cosine",
                               ema_decay=0.999, eval_every=500, sample_every=1000, checkpoint_every=500)
    return config
