"""Objectives: what a step of the trainer minimises. To add one, write a class and add a line to OBJECTIVES."""

import inspect
from collections.abc import Mapping
from typing import Any

from scorefield.models.bridge import Bridge
from scorefield.models.networks.autoencoder import autoencoder_of
from scorefield.models.networks.dequantizer import dequantizer_of
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.text import choose
from scorefield.sde_lib.learned import LearnedVPSDE
from scorefield.training.objectives.autoencoding import Autoencoding
from scorefield.training.objectives.bridging import Bridging
from scorefield.training.objectives.classifier import Classification
from scorefield.training.objectives.consistency import Consistency
from scorefield.training.objectives.continuous_consistency import ContinuousConsistency
from scorefield.training.objectives.dequantization import Dequantization
from scorefield.training.objectives.dsb import DSB
from scorefield.training.objectives.dsbm import DSBM
from scorefield.training.objectives.flow_matching import FlowMatching
from scorefield.training.objectives.guided_distillation import GuidedDistillation
from scorefield.training.objectives.learned_schedule import LearnedSchedule
from scorefield.training.objectives.learned_variance import LearnedVariance
from scorefield.training.objectives.objective import Batch, Objective
from scorefield.training.objectives.progressive import ProgressiveDistillation
from scorefield.training.objectives.score_matching import ScoreMatching
from scorefield.training.objectives.sliced import SlicedScoreMatching
from scorefield.training.objectives.taught import Taught

__all__ = [
    "DSB", "DSBM", "OBJECTIVES", "Autoencoding", "Batch", "Bridging", "Classification", "Consistency",
    "ContinuousConsistency", "Dequantization", "FlowMatching", "GuidedDistillation", "LearnedSchedule",
    "LearnedVariance", "Objective", "ProgressiveDistillation", "ScoreMatching", "SlicedScoreMatching", "Taught",
    "build_objective",
]

# The arguments `sde`, `data_std` and `variance_output` come from the model, `codec` and `ends` from the data,
# `teacher_model` from the run that `teacher` names, `perceptual_model` from the file that `perceptual` names, `latent` from
# an autoencoder, `updates` from `steps`; the others are the fields of a config's section `training`.
OBJECTIVES: dict[str, type[Objective]] = {
    "score_matching": ScoreMatching, "sliced_score_matching": SlicedScoreMatching, "learned_variance": LearnedVariance,
    "classifier": Classification, "dequantization": Dequantization, "learned_schedule": LearnedSchedule,
    "progressive": ProgressiveDistillation, "guided": GuidedDistillation, "consistency": Consistency,
    "continuous_consistency": ContinuousConsistency, "flow_matching": FlowMatching, "autoencoder": Autoencoding,
    "dsb": DSB, "dsbm": DSBM}


def build_objective(model: Any, section: Mapping[str, Any], codec: Any = None, teacher: Any = None, perceptual: Any = None,
                    ends: Any = None) -> Objective:
    """The objective that a config's section `training` names, for a model with an SDE, the codec of its data, the model that
    is its teacher, what gives the features of a perceptual loss, and the examples of both ends of a bridge; ArgumentError as
    its class, and if a dequantizer, a variance or an autoencoder would not be trained.
    """
    kind = choose("objective", OBJECTIVES, section.get("objective", "score_matching"), "training.objective")
    if issubclass(kind, Bridging) != isinstance(model, Bridge):
        raise ArgumentError("the two networks of a bridge (model.network=bridge_mlp, bridge_unet or bridge_ncsnpp) are "
                            "trained by objective dsbm or dsb, and by no other", "training.objective", "model.network")
    if kind is LearnedVariance and not model.learned_variance:
        raise ArgumentError("objective learned_variance needs a model that learns a variance; set "
                            "model.learned_variance=true", "training.objective", "model.learned_variance")
    known = {**section, "sde": model.sde, "data_std": model.input_std, "codec": codec,
             "teacher_model": teacher, "perceptual_model": perceptual, "updates": section.get("steps"), "ends": ends}
    if kind is LearnedVariance:
        known["variance_output"] = model.variance_output
    autoencoder = autoencoder_of(model)
    if (autoencoder is not None) != (kind is Autoencoding):
        raise ArgumentError("an autoencoder is trained by objective autoencoder, and by no other: set model.network and "
                            "training.objective to autoencoder, or neither", "model.network", "training.objective")
    if autoencoder is not None:
        known["latent"] = autoencoder.latent
    if model.takes.classes is None:      # no label, no dropout: its random numbers would be drawn for nothing
        known["label_dropout"] = 0.0
    if (dequantizer_of(model) is not None) != (kind is Dequantization):
        raise ArgumentError("a dequantizer is trained by objective dequantization, and by no other: set model.dequantizer "
                            "to a width and training.objective to dequantization, or neither", "model.dequantizer",
                            "training.objective")
    if isinstance(model.sde, LearnedVPSDE) and kind is not LearnedSchedule:
        raise ArgumentError("the schedule of sde.name=learned is trained by objective learned_schedule, and by no other",
                            "training.objective", "sde.name")
    settings = {name: known[name] for name in inspect.signature(kind).parameters if name in known}
    with renamed("training", {"data_std": "model.input_std", "variance_output": "model.variance_output"}):
        objective = kind(**settings)
        if isinstance(objective, Taught):
            objective.require(model)
        return objective
