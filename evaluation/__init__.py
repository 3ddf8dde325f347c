"""Samples, scores and pictures of a trained model."""

from scorefield.evaluation.classify import Classification, classify
from scorefield.evaluation.comparison.compare import Comparison, compare
from scorefield.evaluation.draw import Samples, draw
from scorefield.evaluation.evaluate import Quality, evaluate, measure
from scorefield.evaluation.generate import generate
from scorefield.evaluation.likelihood import Evaluation, score
from scorefield.evaluation.measures import Measures
from scorefield.evaluation.moments import fit_moments
from scorefield.evaluation.preview import Preview, picture
from scorefield.evaluation.sample_set import SampleSet
from scorefield.evaluation.score import Score, auroc
from scorefield.evaluation.truncation import best_t_min

__all__ = ["Classification", "Comparison", "Evaluation", "Measures", "Preview", "Quality", "SampleSet", "Samples", "Score",
           "auroc", "best_t_min", "classify", "compare", "draw", "evaluate", "fit_moments", "generate", "measure", "picture",
           "score"]
