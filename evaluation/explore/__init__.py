"""The pictures by which the papers show what a diffusion model does, as functions of score models and samplers.

Each module computes one picture and names its source; sheets.py and figures.py draw. `--mode explore` writes the files.
"""

from scorefield.evaluation.explore.forward import Strip, forward
from scorefield.evaluation.explore.interpolate import Interpolation, interpolate
from scorefield.evaluation.explore.langevin import Compared, langevin
from scorefield.evaluation.explore.latents import Round, Slerp, inversion, inversions, invert, slerp_samples
from scorefield.evaluation.explore.progressive import Film, progressive
from scorefield.evaluation.explore.rate_distortion import RateDistortion, rate_distortion
from scorefield.evaluation.explore.schedule import Curves, schedule
from scorefield.evaluation.explore.shared_latents import Shared, shared_latents
from scorefield.evaluation.explore.swiss_roll import Diffusion, swiss_roll

__all__ = [
    "Compared", "Curves", "Diffusion", "Film", "Interpolation", "RateDistortion", "Round", "Shared", "Slerp", "Strip",
    "forward", "interpolate", "inversion", "inversions", "invert", "langevin", "progressive", "rate_distortion", "schedule",
    "shared_latents", "slerp_samples", "swiss_roll",
]
