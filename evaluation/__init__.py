"""Samples, scores and pictures of a trained model."""

from scorefield.evaluation.draw import Samples, draw
from scorefield.evaluation.likelihood import Evaluation, Score, auroc, score

__all__ = ["Evaluation", "Samples", "Score", "auroc", "draw", "score"]
