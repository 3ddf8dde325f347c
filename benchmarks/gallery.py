"""The digits model by every sampler at about 10, 20, 50 and 200 evaluations, in one picture: docs/images/gallery.png.

`python -m benchmarks.gallery`, after `make demo`. Every cell starts from the same noise; its own number of evaluations
stands above it where it is not that of its column.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from scorefield.checkpoints import load_denoiser
from scorefield.data import quantize
from scorefield.evaluation.plots import image_grid
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample, sample_seeds

ROOT = Path(__file__).parents[1]
BUDGETS = (10, 20, 50, 200)
PER_STEP = {"edm": 2, "heun": 2, "rk4": 4, "predictor_corrector": 2, "langevin": 5}      # evaluations
TOLERANCES = {10: 0.5, 20: 0.03, 50: 1e-3, 200: 1.5e-5}      # of the adaptive ODE, about these many evaluations
BROWNIAN_STEPS = {10: 8, 20: 16, 50: 64, 200: 256}      # powers of two


def options(name: str, budget: int) -> dict[str, Any]:
    if name == "ode":
        return {"rtol": TOLERANCES[budget], "atol": TOLERANCES[budget]}
    if name == "torchsde":
        return {"steps": BROWNIAN_STEPS[budget], "method": "euler"}
    per_step = PER_STEP.get(name, 1)
    return {"steps": (budget + per_step // 2) // per_step}


def main() -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    model = load_denoiser(ROOT / "runs" / "vp_digits")
    seeds = sample_seeds(0, 0, 8)
    figure, axes = pyplot.subplots(len(SAMPLERS), len(BUDGETS), figsize=(11, 0.5 * len(SAMPLERS)),
                                   constrained_layout=True)
    for row, name in zip(axes, SAMPLERS, strict=True):
        for axis, budget in zip(row, BUDGETS, strict=True):
            result = make_sampler(name, **options(name, budget))(model, prior_sample(model.sde, (1, 8, 8), seeds), seeds)
            levels = quantize(result.x, 17, -1.0, 1.0, dequantized=True)
            tiles = [np.asarray(image_grid(level[None], 17))[0] for level in levels]
            axis.imshow(np.concatenate(tiles, axis=1), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{result.nfe}" if result.nfe != budget else "", fontsize=7, pad=1)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis, budget in zip(axes[0], BUDGETS, strict=True):
        axis.set_title(f"{budget} evaluations", fontsize=9)
    path = ROOT / "docs" / "images" / "gallery.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
