"""Scorefield: score-based generative models. One score model, any SDE, sampler and likelihood.

    from scorefield.samplers import make_sampler

Importing this module loads nothing else. In an installed package the parts lie in this folder. In a checkout they lie beside
it, at the top of the repository, and `__path__` leads there. What a newcomer needs first is also here:
`scorefield.wrap`, `scorefield.load_denoiser` and `scorefield.train`.
"""

from __future__ import annotations

import os
from importlib import import_module

TYPE_CHECKING = False      # as typing's, whose import would take the time in which the first Ctrl-C may come
if TYPE_CHECKING:
    from typing import Any

    from scorefield.checkpoints import load_denoiser
    from scorefield.models import wrap
    from scorefield.training import train

__all__ = ["__version__", "load_denoiser", "train", "wrap"]
__version__ = "0.2.0"
_HOMES = {"load_denoiser": "checkpoints", "train": "training", "wrap": "models"}

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "sde_lib")):
    __path__.append(os.path.dirname(_HERE))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
