"""CIFAR-10 as EDM trains it (Karras et al. 2022, table 1 and appendix F.2), unconditionally and with DDPM++.

As in the paper: the preconditioning, the noise levels and their distribution, the loss, and the network's three levels of
256 channels with dropout 0.13 (55.7M parameters); 200M examples in batches of 512, learning rate 0.001 after a warm-up
over 10M of them, an average with a half-life of 0.5M. Not as in the paper: flips are the only augmentation, times have low
discrepancy, gradients are clipped, the average's warm-up is (1 + n) / (10 + n), and initial weights are as in Song et al.
"""

from scorefield.configs import vp_cifar10_ddpmpp
from scorefield.configs.sections import sde


def get_config():
    config = vp_cifar10_ddpmpp.get_config()
    config.sde = sde("ve", sigma_min=0.002, sigma_max=80.0)
    model = config.model
    model.parametrization = "edm"
    model.input_std = 0.5
    model.time_input = "c_noise"
    model.multipliers = (2, 2, 2)
    model.dropout = 0.13
    training = config.training
    training.weighting = "edm"
    training.importance = True
    training.batch_size = 512
    training.steps = 390_625
    training.learning_rate = 1e-3
    training.warmup = 19_531
    training.ema_decay = 0.99929        # 0.5 ** (512 / 500_000)
    return config
