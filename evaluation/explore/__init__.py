"""The pictures by which the papers show what a diffusion model does, as functions of score models and samplers.

Each module computes one picture and names its source; sheets.py and figures.py draw. `--mode explore` writes the files.
"""

from scorefield.evaluation.explore.forward import Strip, forward
from scorefield.evaluation.explore.progressive import Film, progressive
from scorefield.evaluation.explore.schedule import Curves, schedule

__all__ = ["Curves", "Film", "Strip", "forward", "progressive", "schedule"]
