"""The bound of a chain on held-out digits, by the variance of a step back and the number of steps, in bits/dim.

    python main.py --config configs/vp_digits_labels.py --mode train        # or make demo
    python main.py --config configs/vp_digits_hybrid.py --mode train        # for the rows of --learned
    python main.py --config configs/vp_digits_variance.py --mode train
    python -m benchmarks.variances --learned runs/vp_digits_hybrid runs/vp_digits_variance

The model is that of the run without labels. The moments are of all training examples at 100 times; all rows share the noise.
With --learned, a run with a learned variance has these rows: beta; its own moments on training examples (diagonal); that
between beta and beta_tilde, if it learned that share; and that of the variance of x_0 which it learned (variance=analytic).
"""

import argparse
import math
from pathlib import Path

import torch

from scorefield.checkpoints import load_denoiser
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation import fit_moments
from scorefield.likelihood import chain_elbo
from scorefield.models import FittedVariance
from scorefield.numerics.noise import DEQUANTIZATION, NoiseStream
from scorefield.samplers import sample_seeds

ROOT = Path(__file__).parents[1]
STEPS = (10, 25, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "vp_digits_labels")
    parser.add_argument("--learned", type=Path, nargs="+", default=(), help="runs with model.learned_variance")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    asked = parser.parse_args()
    model = load_denoiser(asked.run)
    plain = model.given(label=None) if model.takes.names else model
    data, codec = load_dataset({"dataset": "digits"}), make_codec(17, dequantize=True)
    moments, span = fit_moments(plain, data, codec, len(data.train)), codec.high - codec.low
    k = data.test[torch.arange(len(data.test))][0]
    seeds = sample_seeds(0, 0, len(k))
    x = codec.encode(k, NoiseStream(seeds, DEQUANTIZATION).uniform(torch.empty(k.shape)))
    diagonal = FittedVariance(plain, moments, span=span)
    rows = {"beta": (plain, "beta"),
            "isotropic": (FittedVariance(plain, moments, covariance="isotropic", span=span), "analytic"),
            "diagonal": (diagonal, "analytic"), "diagonal, optimal": (diagonal, "analytic"),
            "diagonal, score": (FittedVariance(plain, moments, "score", span=span), "analytic")}
    for run in asked.learned:
        own = load_denoiser(run)
        fitted = FittedVariance(own, fit_moments(own, data, codec, len(data.train)), span=span)
        rows |= {f"{run.name}, beta": (own, "beta"), f"{run.name}, diagonal": (fitted, "analytic"),
                 f"{run.name}, of x_0": (own, "analytic")}
        if own.variance_output == "share":
            rows[f"{run.name}, share"] = (own, "learned")
    print(f"{'steps':>30}" + "".join(f"{steps:>17}" for steps in asked.steps))
    for name, (known, variance) in rows.items():
        found = []
        for steps in asked.steps:
            grid = "optimal" if "optimal" in name else "even"
            nats = -chain_elbo(known, x, None, steps=steps, variance=variance, grid=grid, seeds=seeds).value
            bits = nats / (x[0].numel() * math.log(2)) + codec.offset
            found.append(f"{float(bits.mean()):.3f} +- {float(bits.std()) / len(bits) ** 0.5:.3f}")
        print(f"{name:>30}" + "".join(f"{figure:>17}" for figure in found), flush=True)


if __name__ == "__main__":
    main()
