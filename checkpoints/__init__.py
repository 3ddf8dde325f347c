"""Trained models on disk: what a checkpoint holds, and the formats in which it is read and written."""

from scorefield.checkpoints.checkpoint import Checkpoint
from scorefield.checkpoints.load import FORMATS, load_denoiser, read_checkpoint

__all__ = ["FORMATS", "Checkpoint", "load_denoiser", "read_checkpoint"]
