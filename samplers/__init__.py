"""Samplers: rules that carry x from noise to data and call only the score model. Each has one word, a key of EVERY."""

import dataclasses
import difflib
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from scorefield.models.score_model import ScoreModel
from scorefield.models.student import COUPLED
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.grids import GRIDS, make_grid
from scorefield.numerics.noise import NoiseStream, sample_seeds
from scorefield.numerics.options import options_of
from scorefield.samplers.adams import ExponentialAdams
from scorefield.samplers.base import GridSampler, Result, Sampler, prior_sample
from scorefield.samplers.bridge import BridgeSampler
from scorefield.samplers.consistency import ConsistencySampler
from scorefield.samplers.deis import DEIS, IPNDM
from scorefield.samplers.dpm_solver import DPMSolver, DPMSolverPlusPlus
from scorefield.samplers.dpm_solver_v3 import DPMSolverV3, Statistics
from scorefield.samplers.edm import EDM
from scorefield.samplers.fixed_ode import Euler, Heun, RungeKutta4
from scorefield.samplers.ode import ProbabilityFlow
from scorefield.samplers.one_step import DDIM, Ancestral, EulerMaruyama, ReverseDiffusion, ddim_invert, slerp
from scorefield.samplers.predictor_corrector import Langevin, PredictorCorrector
from scorefield.samplers.reference_sde import ReferenceSDE
from scorefield.samplers.repaint import RePaint
from scorefield.samplers.restart import Restart
from scorefield.samplers.stochastic_multistep import ERSDE, SASolver
from scorefield.samplers.tuned import Solver, Tuned
from scorefield.samplers.twisted_smc import TwistedSMC, WeightedResult
from scorefield.samplers.unipc import UniPC

SAMPLERS: dict[str, type[Sampler]] = {
    "auto": ExponentialAdams,
    "ddim": DDIM,
    "dpm_solver": DPMSolver,
    "dpm_solver++": DPMSolverPlusPlus,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
    "edm": EDM,
    "ode": ProbabilityFlow,
    "euler": Euler,
    "heun": Heun,
    "rk4": RungeKutta4,
    "euler_maruyama": EulerMaruyama,
    "ancestral": Ancestral,
    "reverse_diffusion": ReverseDiffusion,
    "predictor_corrector": PredictorCorrector,
    "langevin": Langevin,
    "sa_solver": SASolver,
    "er_sde": ERSDE,
    "restart": Restart,
    "torchsde": ReferenceSDE,
}
# Samplers of some models alone: those that are given a measurement (guidance.posterior), and those that they were made for
RESTORING: dict[str, type[Sampler]] = {"twisted_smc": TwistedSMC, "repaint": RePaint}
MADE: dict[str, type[Sampler]] = {"consistency": ConsistencySampler, "tuned": Tuned, "dpm_solver_v3": DPMSolverV3,
                                  "bridge": BridgeSampler}
FITTED = ("tuned", "dpm_solver_v3")      # by mode tune, to one run
EVERY: Mapping[str, type[Sampler]] = ChainMap(SAMPLERS, RESTORING, MADE)


def sampler_options(name: str) -> dict[str, "dataclasses.Field[Any]"]:
    """The options that a sampler of EVERY takes, by name: each a field with `type`, `default` and `metadata["help"]`.

    ValueError for an unknown name.
    """
    if name not in EVERY:
        near = difflib.get_close_matches(name, EVERY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ArgumentError(f"unknown sampler {name!r}; {hint}choose from {', '.join(EVERY)}", "sampler")
    return options_of(EVERY[name])


def make_sampler(name: str, **options: Any) -> Sampler:
    """The sampler of that name with these options; ValueError for an option that it does not take."""
    allowed = sampler_options(name)
    for option in options:
        if option not in allowed:
            raise ArgumentError(f"sampler {name!r} takes no {option!r}; it takes {', '.join(allowed)}", option)
    return EVERY[name](**options)


def own_sampler(model: ScoreModel, other: Sampler) -> Sampler:
    """The sampler that a model without a score was made for; and the other one if that suits the model."""
    student = model.student
    if student is None or (student.kind == COUPLED and not other.stochastic):
        return other
    return make_sampler(student.sampler, **student.options)


__all__ = [
    "DDIM", "DEIS", "EDM", "ERSDE", "EVERY", "FITTED", "GRIDS", "IPNDM", "MADE", "RESTORING", "SAMPLERS", "Ancestral",
    "BridgeSampler", "ConsistencySampler", "DPMSolver", "DPMSolverPlusPlus", "DPMSolverV3", "Euler", "EulerMaruyama",
    "ExponentialAdams", "GridSampler", "Heun", "Langevin", "NoiseStream", "PredictorCorrector", "ProbabilityFlow",
    "RePaint", "ReferenceSDE", "Restart", "Result", "ReverseDiffusion", "RungeKutta4", "SASolver", "Sampler", "Solver",
    "Statistics", "Tuned", "TwistedSMC", "UniPC", "WeightedResult", "ddim_invert", "make_grid", "make_sampler",
    "own_sampler", "prior_sample", "sample_seeds", "sampler_options", "slerp",
]
