"""Every field that an experiment may set, with its default. The experiments beside this file say what differs.

A field of None takes the default of the class that reads it (its docstring has it); setting a field that the chosen
SDE or network does not take is an error. `--config.section.field=value` overrides any of them.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict({
        "dataset": "digits",            # a key of data.DATASETS
        "path": "",                     # file or folder; "": the data set's own place
        "size": placeholder(int),       # points of a synthetic set
        "image_size": placeholder(int),     # pictures of a folder are cropped and resized to this
        "channels": placeholder(int),       # 1 or 3; pictures of a folder
        "flip": placeholder(bool),      # random horizontal flips; None: where the data set allows them
        "dequantize": False,            # train on (k + u)/L, u uniform, instead of k/(L - 1)
        "low": -1.0,                    # what integer levels are scaled to
        "high": 1.0,
        "seed": 0,                      # of synthetic sets
    })
    config.sde = ConfigDict({
        "name": "vp",                   # a key of sde_lib.SDES
        "beta_min": placeholder(float),
        "beta_max": placeholder(float),
        "sigma_min": placeholder(float),
        "sigma_max": placeholder(float),
        "s": placeholder(float),        # offset of the cosine schedule
        "span": placeholder(float),     # of the sigmoid schedule
        "schedule": placeholder(str),   # of the "ddpm" chain: a key of sde_lib.schedules.BETAS
        "steps": placeholder(int),      # of the chains "ddpm" and "smld", in training
        "betas": placeholder(tuple),    # of the "ddpm" chain, in place of a schedule
    })
    config.model = ConfigDict({
        "network": "unet",              # a key of models.NETWORKS
        "parametrization": "eps",       # eps, x0, v, score, edm
        "time_input": "999t",           # a key of models.TIME_INPUTS
        "input_std": placeholder(float),        # of the data: scales the network's input to variance 1; edm needs it
        "width": placeholder(int),
        "multipliers": placeholder(tuple),
        "num_blocks": placeholder(int),
        "attention_resolutions": placeholder(tuple),
        "dropout": placeholder(float),
        "groups": placeholder(int),             # of GroupNorm
        "norm_eps": placeholder(float),
        "attention_head_dim": placeholder(int),     # channels of a head; None: one head
        "freq_shift": placeholder(int),         # of the embedding of time: 1, or 0 as diffusers' default
        "downsample_padding": placeholder(int),     # of "unet": 0, or 1 as diffusers' default
        "centred": placeholder(bool),           # False: data in [0, 1], of which the network sees 2 x - 1
        "layers": placeholder(int),
        "block": placeholder(str),              # from here on for "ncsnpp": biggan, ddpm
        "embedding": placeholder(str),          # of time: positional, fourier
        "fourier_scale": placeholder(float),
        "fir": placeholder(bool),               # resample with the filter (1, 3, 3, 1)
        "skip_rescale": placeholder(bool),
        "progressive_input": placeholder(str),  # none, input_skip, residual
        "progressive": placeholder(str),        # none, output_skip
        "combine": placeholder(str),            # sum, cat
        "last_label": placeholder(int),         # of a chain whose labels count down: steps - 1
    })
    config.training = ConfigDict({
        "steps": 800_000,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "adam_eps": 1e-8,
        "warmup": 5000,                 # steps of linear warm-up
        "decay": "constant",            # after it: constant, or cosine to 0 at the last step
        "grad_clip": 1.0,               # largest norm of the gradient
        "ema_decay": 0.9999,
        "weighting": "simple",          # simple (sigma^2), likelihood (g^2), uniform, edm
        "time_sampling": "low_discrepancy",     # low_discrepancy, uniform
        "importance": False,            # draw times in proportion to the weighting; edm: its log-normal
        "precision": "auto",            # auto, fp32, bf16
        "channels_last": placeholder(bool),     # None: where it is faster
        "compile": False,
        "activation_checkpointing": False,      # less memory for more time
        "log_every": 100,
        "eval_every": 5000,             # held-out loss; 0: never
        "sample_every": 10_000,         # preview in TensorBoard; 0: never
        "sample_steps": 100,            # Euler-Maruyama steps of a preview
        "checkpoint_every": 5000,
        "keep": 2,                      # newest checkpoints kept
        "seed": 0,
    })
    return config
