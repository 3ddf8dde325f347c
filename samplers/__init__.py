"""Samplers: rules that carry x from noise to data, calling only the score model. One word each, from the flag."""

import dataclasses
import difflib
from typing import Any

from samplers.base import GridSampler, Result, Sampler
from samplers.euler_maruyama import EulerMaruyama
from samplers.grids import GRIDS, make_grid
from samplers.noise import NoiseStream, prior_sample, sample_seeds
from samplers.ode import ProbabilityFlow

SAMPLERS: dict[str, type[Sampler]] = {
    "euler_maruyama": EulerMaruyama,
    "ode": ProbabilityFlow,
}


def sampler_options(name: str) -> dict[str, Any]:
    """The options that a sampler takes, with their defaults; ValueError for an unknown name."""
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown sampler {name!r}; {hint}choose from {', '.join(SAMPLERS)} (--sampler)")
    return {f.name: f.default for f in dataclasses.fields(SAMPLERS[name])}


def make_sampler(name: str, **options: Any) -> Sampler:
    """The sampler of that name with these options; ValueError for an option that it does not take."""
    allowed = sampler_options(name)
    for option in options:
        if option not in allowed:
            raise ValueError(f"sampler {name!r} takes no {option!r}; it takes {', '.join(allowed)} (--{option})")
    return SAMPLERS[name](**options)


__all__ = [
    "GRIDS", "SAMPLERS", "EulerMaruyama", "GridSampler", "NoiseStream", "ProbabilityFlow", "Result", "Sampler",
    "make_grid", "make_sampler", "prior_sample", "sample_seeds", "sampler_options",
]
