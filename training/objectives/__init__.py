"""Objectives."""

from scorefield.training.objective import Objective

OBJECTIVES = {"score_matching": Objective}
