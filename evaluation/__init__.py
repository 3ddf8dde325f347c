"""Samples, scores and pictures of a trained model."""

from evaluation.evaluate import Samples, draw
from evaluation.likelihood import Evaluation, Score, auroc, score

__all__ = ["Evaluation", "Samples", "Score", "auroc", "draw", "score"]
