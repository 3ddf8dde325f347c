"""Guidance: functions from score models to a score model, which every sampler then takes. They compose."""

from scorefield.guidance.autoguidance import Autoguided, autoguided
from scorefield.guidance.classifier import ClassifierGuided, classifier_guided
from scorefield.guidance.classifier_free import ClassifierFree, classifier_free
from scorefield.guidance.guided import guided
from scorefield.guidance.posterior import posterior
from scorefield.guidance.threshold import Threshold, threshold

__all__ = ["Autoguided", "ClassifierFree", "ClassifierGuided", "Threshold", "autoguided", "classifier_free",
           "classifier_guided", "guided", "posterior", "threshold"]
