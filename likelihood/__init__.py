"""Likelihoods of a score model: log p(x) by the probability-flow ODE, bits per dimension."""

from likelihood.bits import bits_per_dim
from likelihood.ode import DIVERGENCES, LogProb, log_prob

__all__ = ["DIVERGENCES", "LogProb", "bits_per_dim", "log_prob"]
