"""Samples, scores and pictures of a trained model."""

from evaluation.evaluate import Samples, Score, draw, score

__all__ = ["Samples", "Score", "draw", "score"]
