"""Guidance: functions from score models to a score model, which every sampler then takes. They compose."""

from scorefield.guidance.classifier_free import ClassifierFree, classifier_free

__all__ = ["ClassifierFree", "classifier_free"]
