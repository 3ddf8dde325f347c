"""Posterior sampling beside deepinv's, at equal evaluations of the same exact model.

    python -m venv deepinv_env && deepinv_env/bin/pip install deepinv        # beside this project's own packages
    python -m benchmarks.restoring_deepinv

Pictures of 4x4 pixels from mixtures of Gaussians whose exact posterior given a measurement has two modes: the right half is
missing, or only means of 2x2 pixels are known, both with noise. Each library's DPS, DiffPIR and PiGDM (deepinv 0.5: `DPS`,
`DiffPIR`, `PosteriorDiffusion` with `PiGDMDataFidelity`) draw from it. Printed is the sliced Wasserstein distance to exact
draws over that between two sets of exact draws (benchmarks/restoring.py), the mean over three measurements, with the best
of some weights of each method, chosen on three others. Evaluations are counted where the model is called. deepinv
must be installed; where its torchvision has no operators for this PyTorch, that is imported without them. Rows are written
to benchmarks/results/restoring_deepinv.json as they come, and a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.restoring import sliced_w1
from benchmarks.rows import Rows
from scorefield.guidance import posterior
from scorefield.guidance.operators import make_operator
from scorefield.models import GaussianMixture, measured
from scorefield.models.analytic_full import FullMixture
from scorefield.numerics.noise import particle_seeds
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE

EVENT, D, NOISE = (1, 4, 4), 16, 0.1
OPERATORS = ("mask:half=right", "downsample:factor=2")
BUDGETS = (20, 100, 400)
TUNING, HELD = (0, 4, 5), (1, 2, 3)      # seeds of the measurements by which weights are chosen, and that count
WEIGHTS = {"DPS": (1.0, 3.0, 10.0), "DPS by score": (1.0, 2.5, 5.0, 10.0), "DPS, deepinv": (3.0, 10.0, 20.0, 30.0),
           "DiffPIR": (0.3, 1.0, 3.0, 7.0), "PiGDM": (0.3, 0.5, 1.0)}
# From a problem, a budget, a weight and n to x (n, *EVENT) and the evaluations of each.
Draw = Callable[["Problem", int, float, int], tuple[Tensor, int]]


class Problem:
    """A mixture with pixels in about [-1, 1], a measurement that leaves two components likely, and its exact posterior."""

    def __init__(self, operator: str, seed: int, k: int = 5):
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, dtype=torch.float64, generator=generator)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.text, self.operator = operator, make_operator(operator, EVENT)
        means, variances, matrix = 1.4 * uniform(k, D) - 0.7, 0.01 + 0.03 * uniform(k), self.operator.dense()  # type: ignore
        means[1] += torch.linalg.pinv(matrix) @ (matrix @ (means[0] - means[1]))
        x = means[0] + variances[0].sqrt() * normal(D)
        self.y = matrix @ x + NOISE * normal(len(matrix))
        self.model = GaussianMixture(VPSDE(), means, variances, uniform(k) + 0.5)
        self.exact: FullMixture = measured(self.model, matrix, self.y, NOISE)[0]

    @cache      # noqa: B019, as a problem lives as long as the program
    def floor(self, n: int) -> float:
        generator, even = torch.Generator().manual_seed(1), torch.full((n,), 1 / n, dtype=torch.float64)
        draws = [self.exact.sample(n, generator=generator) for _ in range(5)]
        return sum(sliced_w1(a, even, b) for a, b in zip(draws, draws[1:], strict=False)) / 4

    def ratio(self, x: Tensor) -> float:
        """How far x (n, *EVENT) is from exact draws, over the floor."""
        n = len(x)
        exact = self.exact.sample(n, generator=torch.Generator().manual_seed(1000))
        return sliced_w1(x.flatten(1).double(), torch.full((n,), 1 / n, dtype=torch.float64), exact) / self.floor(n)


@cache
def problem(operator: str, seed: int) -> Problem:
    return Problem(operator, seed)


# ---- this project ------------------------------------------------------------------------------------------------------


def own(method: str, sampler: str = "ddim", **options: Any) -> Draw:
    """A method by a sampler; {} in the method stands for the weight."""
    def draw(of: Problem, budget: int, weight: float, n: int) -> tuple[Tensor, int]:
        y = of.y.reshape(1, *of.operator.measured)
        guided = posterior(of.model, of.operator, y, NOISE, method.format(weight))
        weighted = sampler == "twisted_smc"
        more = {"particles": n, "steps": budget - 1} if weighted else {"steps": budget}
        seeds = particle_seeds(0, 1, n)
        start = prior_sample(of.model.sde, EVENT, seeds, dtype=torch.float64)
        result = make_sampler(sampler, **options, **more)(guided, start, seeds)
        return result.chosen(n)[0] if weighted else result.x, result.nfe      # type: ignore[attr-defined]

    return draw


# ---- deepinv -----------------------------------------------------------------------------------------------------------


def deepinv() -> Any:
    """The package; SystemExit with what to do if it is not there."""
    if importlib.util.find_spec("deepinv") is None:
        sys.exit("deepinv is not installed; install it beside this project's packages: pip install deepinv")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):      # its compiled operators are those of another PyTorch, and are not needed here
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    import deepinv as package

    return package


def denoiser_of(of: Problem) -> Any:
    """The exact model as deepinv calls denoisers: pictures in [0, 1] with noise of standard deviation sigma. It counts."""
    package = deepinv()

    class Exact(package.models.Denoiser):  # type: ignore[misc,name-defined]
        calls = 0

        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            type(self).calls += 1
            sde = of.model.sde
            t = sde.time(-(2 * torch.as_tensor(sigma).double().reshape(-1)[:1]).log()).clamp(1e-5, sde.t_max)
            z = sde.alpha(t) * (2 * x.double() - 1)
            return ((of.model.x0(z, t.expand(len(x))) + 1) / 2).to(x)

    return Exact()


def physics_of(of: Problem, n: int) -> tuple[Any, Tensor]:
    """The measurement as deepinv has it, for pictures in [0, 1]: its physics, and y (n, ...)."""
    package = deepinv()
    noise = package.physics.GaussianNoise(NOISE / 2)
    if of.text.startswith("mask"):
        keep = of.operator.keep.float()  # type: ignore[operator,union-attr]
        whole = of.operator.adjoint(of.y[None]).float()      # the known pixels in their places
        return (package.physics.Inpainting(img_size=EVENT, mask=keep[None], noise_model=noise),
                (keep * (whole + 1) / 2).expand(n, *EVENT))
    physics = package.physics.Downsampling(img_size=EVENT, filter=torch.full((1, 1, 2, 2), 0.25), factor=2, padding="valid",
                                           noise_model=noise)
    return physics, ((of.y.reshape(1, *of.operator.measured).float() + 1) / 2).expand(n, -1, -1, -1)


def theirs(kind: str) -> Draw:
    """A sampler of deepinv with as many steps as keep to the budget."""
    def once(of: Problem, steps: int, weight: float, n: int) -> tuple[Tensor, int]:
        package, denoiser = deepinv(), denoiser_of(of)
        physics, y = physics_of(of, n)
        s = package.sampling
        if kind == "DPS":
            sampler = s.DPS(denoiser, num_steps=steps + 1, weight=weight)
        elif kind == "DiffPIR":
            sampler = s.DiffPIR(denoiser, package.optim.data_fidelity.L2(), sigma=NOISE / 2, max_iter=steps, lambda_=weight)
        else:
            solver = s.DDPMSolver(timesteps=torch.linspace(1, 0, steps + 1, dtype=torch.float64))
            sampler = s.PosteriorDiffusion(s.PiGDMDataFidelity(denoiser=denoiser, weight=weight), denoiser=denoiser,
                                           sde=s.VariancePreservingDiffusion(), solver=solver)
        torch.manual_seed(0)
        x = sampler(y, physics, seed=1)
        return 2 * x.detach() - 1, type(denoiser).calls

    @cache
    def steps_of(budget: int) -> int:
        """The most steps that keep to the budget; a step calls the model once or twice."""
        one, two = (once(problem(OPERATORS[0], TUNING[0]), steps, 1.0, 2)[1] for steps in (4, 8))
        return max(2, (budget - one) * 4 // (two - one) + 4)

    return lambda of, budget, weight, n: once(of, steps_of(budget), weight, n)


ROWS: dict[str, tuple[str, Draw]] = {
    "DPS": ("DPS", own("dps:zeta={}", eta=1.0)),
    "DPS, weight=score": ("DPS by score", own("dps:weight=score:zeta={}", eta=1.0)),
    "DPS, deepinv": ("DPS, deepinv", theirs("DPS")),
    "DiffPIR": ("DiffPIR", own("diffpir:weight={}", eta=1.0)), "DiffPIR, deepinv": ("DiffPIR", theirs("DiffPIR")),
    "PiGDM": ("PiGDM", own("pigdm:data_std={}", eta=1.0)), "PiGDM, deepinv": ("PiGDM", theirs("PiGDM")),
    "tmpd": ("", own("tmpd", eta=1.0)), "twisted_smc, tmpd": ("", own("tmpd", "twisted_smc")),
}


def run(row: str, operator: str, budget: int, n: int) -> dict[str, Any]:
    """One number of the table."""
    kind, draw = ROWS[row]
    weights, best = WEIGHTS.get(kind, (1.0,)), 1.0
    if len(weights) > 1:
        tuning = [problem(operator, seed) for seed in TUNING]
        tried = {weight: sum(of.ratio(draw(of, budget, weight, n)[0].nan_to_num(1e3, 1e3, -1e3)) for of in tuning)
                 for weight in weights}
        best = min(tried, key=lambda weight: tried[weight])
    start, ratios, nfe = time.perf_counter(), [], 0
    for seed in HELD:
        x, nfe = draw(problem(operator, seed), budget, best, n)
        ratios.append(problem(operator, seed).ratio(x))
    return {"ratio": sum(ratios) / len(ratios), "each": ratios, "evaluations": nfe, "weight": best,
            "seconds": (time.perf_counter() - start) / len(HELD)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    deepinv()
    rows = Rows("restoring_deepinv", {"samples": options.samples})
    print("| | " + " | ".join(f"{operator}, {budget}" for operator in OPERATORS for budget in options.budgets) + " |")
    print("|---" * (1 + len(OPERATORS) * len(options.budgets)) + "|")
    for row in options.rows:
        found = [rows(f"{row}, {operator}, {budget}", lambda a=(row, operator, budget): run(*a, options.samples))
                 for operator in OPERATORS for budget in options.budgets]
        print(f"| {row} | " + " | ".join(f"{one['ratio']:.1f}" for one in found) + " |", flush=True)


if __name__ == "__main__":
    main()
