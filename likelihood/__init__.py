"""Likelihoods of a score model: log p(x) by the probability-flow ODE, lower bounds, bits per dimension."""

from scorefield.likelihood.bits import bits_per_dim
from scorefield.likelihood.elbo import Bound, chain_elbo, elbo
from scorefield.likelihood.estimators import ELBO, ESTIMATORS, ODE, ChainELBO
from scorefield.likelihood.ode import CLOCKS, DIVERGENCES, METHODS, LogProb, log_prob
from scorefield.likelihood.probes import PROBE_KINDS

__all__ = ["CLOCKS", "DIVERGENCES", "ELBO", "ESTIMATORS", "METHODS", "ODE", "PROBE_KINDS", "Bound", "ChainELBO", "LogProb",
           "bits_per_dim", "chain_elbo", "elbo", "log_prob"]
