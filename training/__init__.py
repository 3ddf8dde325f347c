"""Training by weighted denoising score matching."""

from scorefield.training.objective import TIME_SAMPLERS, WEIGHTINGS, Objective
from scorefield.training.trainer import Interrupted, Trainer

__all__ = ["TIME_SAMPLERS", "WEIGHTINGS", "Interrupted", "Objective", "Trainer"]
