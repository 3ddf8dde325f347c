"""The problems of the benchmarks: score models, some exact and some trained, and starts for samplers."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.checkpoints import load_denoiser
from scorefield.models import GaussianMixture, ScoreModel
from scorefield.samplers import prior_sample, sample_seeds
from scorefield.sde_lib import SDE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs"
STARTS = 256
Problem = tuple[ScoreModel, Tensor]


def mixture_2d(sde: SDE) -> Problem:
    """The mixture of tests/oracles."""
    with np.load(ROOT / "tests" / "oracles" / "gmm2_vp_linear.npz") as arrays:
        mixture = GaussianMixture(sde, *(torch.from_numpy(arrays[k]) for k in ("mu", "var", "weights")))
    return mixture, starts(sde, (2,))


def mixture_16d(sde: SDE, seed: int = 0) -> Problem:
    """Eight components at random places."""
    rng = np.random.default_rng(seed)
    mu, std, weights = rng.normal(size=(8, 16)), rng.uniform(0.15, 0.45, 8), rng.uniform(0.5, 1.5, 8)
    return GaussianMixture(sde, *(torch.from_numpy(a) for a in (mu, std**2, weights))), starts(sde, (16,))


def mixture_of_digits(sde: SDE, n: int = 300) -> Problem:
    """The first n training digits as means, in 64 dimensions."""
    from scorefield.data import dequantize, load_dataset

    (k, _) = load_dataset({"dataset": "digits"}).train[torch.arange(n)]
    mu = dequantize(k, torch.full(k.shape, 0.5), 17, -1.0, 1.0).flatten(1).double()
    return GaussianMixture(sde, mu, torch.full((n,), 0.01, dtype=torch.float64)), starts(sde, (64,))


def starts(sde: SDE, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return prior_sample(sde, shape, sample_seeds(0, 0, STARTS), dtype=dtype)


def trained(n: int = STARTS) -> dict[str, Problem]:
    """Those of three networks of digits whose runs exist, with n starts: a U-Net, one of given labels, and an MLP."""
    problems: dict[str, Problem] = {}
    runs = {"digits": "vp_digits", "digits given labels": "vp_digits_labels", "digits, MLP": "vp_digits_mlp"}
    for name, run in runs.items():
        if not (RUNS / run / "config.json").exists():
            print(f"no model in {RUNS / run}, so its rows are missing: make bench trains it (vp_digits_labels: make demo)")
            continue
        model = load_denoiser(RUNS / run)
        given = model.given(label=torch.arange(n) % 10) if "labels" in name else model
        problems[name] = given, starts(model.sde, (1, 8, 8), torch.float32)[:n]
    return problems


def train_mlp() -> None:
    """Train an MLP on the digits in runs/vp_digits_mlp, unless that is done: two minutes on one core."""
    from scorefield.configs import vp_digits
    from scorefield.configs.sections import model
    from scorefield.training import train

    config = vp_digits.get_config()
    config.model = model("mlp", width=256, time_input="half_log_snr")
    train(config, workdir=RUNS / "vp_digits_mlp")


if __name__ == "__main__":
    train_mlp()
