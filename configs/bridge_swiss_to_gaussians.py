"""A Schroedinger bridge from the swiss roll to eight Gaussians, over Brownian motion, by matching (DSBM)."""

from scorefield.configs import default
from scorefield.configs.sections import data, model, sde, training


def get_config():
    config = default.get_config()
    config.data = data("pair")      # whose defaults are these two
    config.sde = sde("brownian")
    config.model = model("bridge_mlp", layers=3)
    config.training = training(
        "dsbm", refresh=1200, paths=8192, steps=15_000, batch_size=256, learning_rate=1e-3,
        warmup=100, decay="cosine", ema_decay=0.998, precision="fp32", keep_best="none", log_every=500, eval_every=2500,
        sample_every=5000, checkpoint_every=2500)
    return config
