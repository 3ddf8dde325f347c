"""Training: objectives, and the loop that minimises them.

    from scorefield.training import train

    run = train("configs/vp_digits.py", workdir="runs/mine")

The names below are imported when they are first used, so that a config can name an objective without loading the trainer.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorefield.training.batches import Batches, held_out
    from scorefield.training.draws import Draws
    from scorefield.training.objectives import (
        OBJECTIVES,
        Autoencoding,
        Batch,
        Classification,
        Consistency,
        ContinuousConsistency,
        Dequantization,
        FlowMatching,
        GuidedDistillation,
        LearnedSchedule,
        LearnedVariance,
        Objective,
        ProgressiveDistillation,
        ScoreMatching,
        SlicedScoreMatching,
        build_objective,
    )
    from scorefield.training.run import set_up, train, train_run
    from scorefield.training.times import TIME_SAMPLERS
    from scorefield.training.trainer import Interrupted, Trainer
    from scorefield.training.weightings import WEIGHTINGS

_HOMES = {
    "objectives": ("OBJECTIVES", "Autoencoding", "Batch", "Classification", "Consistency", "ContinuousConsistency",
                   "Dequantization", "FlowMatching", "GuidedDistillation", "LearnedSchedule", "LearnedVariance",
                   "Objective", "ProgressiveDistillation", "ScoreMatching", "SlicedScoreMatching", "build_objective"),
    "batches": ("Batches", "held_out"),
    "draws": ("Draws",),
    "run": ("set_up", "train", "train_run"),
    "times": ("TIME_SAMPLERS",),
    "trainer": ("Interrupted", "Trainer"),
    "weightings": ("WEIGHTINGS",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "OBJECTIVES", "TIME_SAMPLERS", "WEIGHTINGS", "Autoencoding", "Batch", "Batches", "Classification", "Consistency",
    "ContinuousConsistency", "Dequantization", "Draws", "FlowMatching", "GuidedDistillation", "Interrupted",
    "LearnedSchedule", "LearnedVariance", "Objective", "ProgressiveDistillation", "ScoreMatching", "SlicedScoreMatching",
    "Trainer", "build_objective", "held_out", "set_up", "train", "train_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
