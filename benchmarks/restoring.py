"""How near samples of posterior methods come to exact posteriors of mixtures: `python -m benchmarks.restoring [--particles
4096]`.

Three mixtures of isotropic Gaussians, each with a measurement y = A x_0 + noise that leaves two or more components likely,
so that the exact posterior is a mixture, too (models/analytic_full.py):

    a   12 dimensions, 5 measurements, noise 0.1, 4 components      b   16 dimensions, 8 measurements, noise 0.2, 6
        components
    c   14 dimensions, 6 measurements, noise 0.15, 5 components     held: no setting was chosen on it

Printed is the sliced Wasserstein distance W_1 of weighted samples to as many exact draws, over that between two sets of
exact draws (the floor), for 50, 100 and 400 steps, which are evaluations of the model but under repaint; and for twisted_smc
log p(y), its own standard error and the closed form, and the weights of the components. Numbers are written to
benchmarks/results/restoring.json as they come, and a run that was cut goes on where it stopped.
"""

import argparse
import math
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Rows
from scorefield.guidance import posterior
from scorefield.guidance.operators import Matrix
from scorefield.models import GaussianMixture, measured
from scorefield.models.twist import TwistedModel
from scorefield.numerics.noise import particle_seeds
from scorefield.samplers import make_sampler, prior_sample
from scorefield.samplers.twisted_smc import WeightedResult
from scorefield.sde_lib import VPSDE

STEPS = (50, 100, 400)
PROBLEMS = {"a": (12, 5, 4, 0.1), "b": (16, 8, 6, 0.2), "c": (14, 6, 5, 0.15)}
PLAIN = ("ddim", {"eta": 1.0, "grid": "logsnr"})
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "prior": ("", *PLAIN),
    "replacement": ("replacement", *PLAIN),
    "replacement, repaint": ("replacement", "repaint", {"grid": "logsnr", "jump": 5, "resample": 4}),
    "ddnm": ("ddnm", *PLAIN), "ddrm": ("ddrm", *PLAIN), "diffpir": ("diffpir", *PLAIN), "dps": ("dps", *PLAIN),
    "pigdm": ("pigdm", *PLAIN), "tmpd": ("tmpd", *PLAIN),
    "twisted_smc, pigdm": ("pigdm", "twisted_smc", {}),
    "twisted_smc, tmpd": ("tmpd", "twisted_smc", {}),
}


def problem(name: str) -> tuple[GaussianMixture, Matrix, Tensor, float]:
    """The mixture, A, y and the noise. The first two components have nearly the same measurement."""
    d, m, k, noise_std = PROBLEMS[name]
    generator = torch.Generator().manual_seed({"a": 0, "b": 1, "c": 7}[name])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    means = normal(k, d)
    variances = 0.02 + 0.1 * torch.rand(k, generator=generator, dtype=torch.float64)
    matrix = normal(m, d) / math.sqrt(d)
    back = torch.linalg.pinv(matrix)
    means[1] = means[1] + back @ (matrix @ (means[0] - means[1])) + 0.05 * normal(d)
    weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.5
    x = means[0] + variances[0].sqrt() * normal(d)
    y = matrix @ x + noise_std * normal(m)
    return GaussianMixture(VPSDE(), means, variances, weights), Matrix(matrix, (d,)), y, noise_std


def sliced_w1(x: Tensor, weights: Tensor, y: Tensor, directions: int = 100) -> float:
    """The mean over directions of W_1 between the projections of x (n, D), weighted, and y (m, D): the area between their
    distribution functions.
    """
    u = torch.nn.functional.normalize(torch.randn(directions, x.shape[1], dtype=torch.float64,
                                                  generator=torch.Generator().manual_seed(0)), dim=1)
    a, order = (u @ x.T).sort(1)
    b = (u @ y.T).sort(1).values
    places = torch.cat([a, b], 1).sort(1).values
    mass = torch.nn.functional.pad(weights[order].cumsum(1), (1, 0))
    of_x = mass.gather(1, torch.searchsorted(a, places[:, :-1].contiguous(), right=True))
    of_y = torch.searchsorted(b, places[:, :-1].contiguous(), right=True) / len(y)
    return float(((of_x - of_y).abs() * places.diff(dim=1)).sum(1).mean())


@cache
def floor(name: str, n: int, repeats: int = 8) -> float:
    """The mean distance between two sets of n exact draws."""
    model, operator, y, noise_std = problem(name)
    exact, _ = measured(model, operator.dense(), y, noise_std)
    generator, even = torch.Generator().manual_seed(1), torch.full((n,), 1 / n, dtype=torch.float64)
    draws = [exact.sample(n, generator=generator) for _ in range(repeats + 1)]
    return sum(sliced_w1(a, even, b) for a, b in zip(draws, draws[1:], strict=False)) / repeats


def run(name: str, row: str, steps: int, n: int, seed: int = 0) -> dict[str, Any]:
    """One row of the table for one mixture and one number of steps."""
    method, sampler, options = ROWS[row]
    model, operator, y, noise_std = problem(name)
    exact, log_evidence = measured(model, operator.dense(), y, noise_std)
    guided = posterior(model, operator, y[None], noise_std, method) if method else model
    seeds = particle_seeds(seed, 1, n)
    more = {"particles": n} if sampler == "twisted_smc" else {}
    start = prior_sample(model.sde, operator.shape, seeds, dtype=torch.float64)
    begin = time.perf_counter()
    result = make_sampler(sampler, steps=steps, **options, **more)(guided, start, seeds)
    seconds = time.perf_counter() - begin
    weighted = isinstance(result, WeightedResult)
    weights = result.log_weights[0].exp() if weighted else torch.full((n,), 1 / n, dtype=torch.float64)
    draws = exact.sample(n, generator=torch.Generator().manual_seed(1000 + seed))
    found = {"ratio": sliced_w1(result.x, weights, draws) / floor(name, n), "nfe": result.nfe, "seconds": seconds}
    if weighted:
        assert isinstance(guided, TwistedModel)
        shares = weights @ exact.responsibilities(result.x)
        found |= {"log_evidence": float(result.log_evidence), "error": float(result.log_evidence_error),
                  "exact": float(log_evidence), "effective": float(result.effective_samples),
                  "shares": shares.tolist(), "exact_shares": exact.weights.tolist()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=1024, help="samples of each row of the table")
    parser.add_argument("--target", type=int, default=4096, help="particles of the last table")
    parser.add_argument("--runs", type=int, default=3, help="seeds over which the last table's distance is a mean")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--steps", nargs="*", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Rows("restoring", {"particles": options.particles, "target": options.target})
    print(f"{'':24}" + "".join(f"{f'{name}, {steps}':>9}" for name in PROBLEMS for steps in options.steps))
    for row in options.rows:
        results = [kept(f"{row}, {name}, {steps} steps", lambda a=(name, row, steps): run(*a, options.particles))
                   for name in PROBLEMS for steps in options.steps]
        print(f"{row:24}" + "".join(f"{result['ratio']:9.2f}" for result in results), flush=True)
    print(f"\ntwisted_smc with tmpd, 100 steps, {options.target} particles")
    for name in PROBLEMS:
        runs = [kept(f"{name}, seed {seed}", lambda name=name, seed=seed: run(name, "twisted_smc, tmpd", 100, options.target,
                                                                              seed)) for seed in range(options.runs)]
        ratio, found = sum(one["ratio"] for one in runs) / len(runs), runs[0]
        pairs = zip(found["shares"], found["exact_shares"], strict=True)
        print(f"{name}  distance/floor {ratio:.2f}  log p(y) {found['log_evidence']:.3f} +- {found['error']:.3f} "
              f"(exact {found['exact']:.3f})  effective {found['effective']:.0f}  components "
              + ", ".join(f"{a:.3f} ({b:.3f})" for a, b in pairs if b > 1e-3), flush=True)


if __name__ == "__main__":
    main()
