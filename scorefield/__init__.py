"""Scorefield: score-based generative models. One score model, any SDE, sampler and likelihood.

    from scorefield.samplers import make_sampler

Importing this module loads nothing else. In an installed package the parts lie in this folder. In a checkout they lie beside
it, at the top of the repository, and `__path__` leads there.
"""

from pathlib import Path

__version__ = "0.2.0"

if not (Path(__file__).parent / "sde_lib").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
