"""Likelihoods: accuracy for each evaluation, speed against the usual way, and all estimators side by side.

    python -m benchmarks.likelihood [accuracy | probes | speed | estimators]

Accuracy: error of log p against the evaluations of the network, on the 2-D and 16-D mixtures (exact trace and prior,
against the exact density, float64) and on the digits of `make demo` (one Hutchinson probe, against the same probe at a tight
tolerance). Probes: the variance of one probe over repeats, by its kind, at equal cost. Speed: the digits at rtol = atol =
1e-5 against scipy's RK45 on flattened numpy arrays, with drift and divergence as two calls of the network. Estimators: exact
trace, Hutchinson and both bounds on the same held-out digits.
Writes benchmarks/results/likelihood_*.json and docs/images/likelihood.png.
"""

import json
import math
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.problems import RESULTS, ROOT, mixture_2d, mixture_16d
from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import read_config
from scorefield.data import dequantize, load_dataset
from scorefield.likelihood import bits_per_dim, chain_elbo, elbo, log_prob
from scorefield.models import Denoiser, GaussianMixture
from scorefield.numerics.devices import set_memory_format
from scorefield.numerics.noise import DEQUANTIZATION, PROBES, NoiseStream
from scorefield.samplers import sample_seeds
from scorefield.sde_lib import VPSDE

RUN = ROOT / "runs" / "vp_digits"
STEPS = (10, 15, 20, 25, 30, 40, 60)
ADAPTIVE = {"dopri5": (1e-1, 1e-2, 1e-3, 1e-4), "dopri5 by lambda": (1e-2, 1e-3, 1e-4, 1e-5), "dopri8": (1e-1, 1e-3),
            "bosh3": (1e-1, 1e-2, 1e-3), "adaptive_heun": (1e-1, 1e-2, 1e-3), "fehlberg2": (1e-1, 1e-2, 1e-3)}
Rows = list[dict[str, Any]]


def digits(n: int) -> tuple[Denoiser, Tensor, list]:
    """The demo's model, the first n held-out digits, dequantised as `--mode likelihood --seed 0` does, and their seeds."""
    from ml_collections import ConfigDict

    dataset = load_dataset(ConfigDict(read_config(RUN)).data)
    (k, _), seeds = dataset.test[torch.arange(n)], sample_seeds(0, 0, n)
    u = NoiseStream(seeds, DEQUANTIZATION).uniform(torch.empty(k.shape))
    return load_denoiser(RUN), dequantize(k, u, 17, -1.0, 1.0), seeds


def save(name: str, content: Any) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"likelihood_{name}.json").write_text(json.dumps(content, indent=2) + "\n")


# ---- accuracy --------------------------------------------------------------------------------------------------------


def errors(model: Any, x: Tensor, exact: Tensor, **settings: Any) -> Rows:
    """Error in bits/dim of every solver: of the mean over the examples, and RMS over them."""
    rows = []
    same = {"fresh_probes": False} if settings.get("divergence") == "hutchinson" else {}      # those of the exact values
    solvers: list[tuple[str, dict[str, Any]]] = [("exponential", {"steps": n} | same) for n in STEPS]
    solvers += [(name, {"rtol": tol, "atol": tol}) for name, tols in ADAPTIVE.items() for tol in tols]
    for method, options in solvers:
        name, by_lambda, _ = method.partition(" by lambda")
        clock = {"clock": "lambda"} if by_lambda else {}
        result = log_prob(model, x, method=name, **options, **clock, **settings)
        error = (exact - result.value).double() / x[0].numel() / math.log(2)
        row = {"method": method, **options, "nfe": result.nfe, "mean": float(error.mean()),
               "rms": float(error.square().mean().sqrt())}
        if result.solver_error is not None:
            estimate = result.solver_error.double() / x[0].numel() / math.log(2)
            row |= {"estimate": float(estimate.mean()), "covered": float((error.abs() <= estimate).double().mean())}
        rows.append(row)
    return rows


def accuracy() -> None:
    results: dict[str, Rows] = {}
    for name, (model, _) in {"2-D mixture": mixture_2d(VPSDE()), "16-D mixture": mixture_16d(VPSDE())}.items():
        assert isinstance(model, GaussianMixture)
        x = model.sample(256, 1e-5, torch.Generator().manual_seed(0))
        results[name] = errors(model, x, model.log_prob(x, 1e-5), prior=lambda z, m=model: m.log_prob(z, 1.0))
    if (RUN / "config.json").exists():
        network, x, seeds = digits(360)
        exact = log_prob(network, x, "hutchinson", rtol=1e-6, atol=1e-6, seeds=seeds).value
        results["digits"] = errors(network, x, exact, divergence="hutchinson", seeds=seeds)
    for name, rows in results.items():
        print(f"\n| {name} | evaluations | error of the mean, bits/dim | RMS over examples | estimate | covered |\n"
              "|---|---|---|---|---|---|")
        for row in rows:
            setting = f", {row['rtol']:g}" if "rtol" in row else ""
            estimate = f"{row['estimate']:.4f} | {row['covered']:.3f}" if "estimate" in row else " | "
            print(f"| {row['method']}{setting} | {row['nfe']} | {row['mean']:+.5f} | {row['rms']:.5f} | {estimate} |")
    save("accuracy", results)
    plot(results)


def plot(results: dict[str, Rows]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 3.8), constrained_layout=True,
                                   squeeze=False)
    for axis, (name, rows) in zip(axes[0], results.items(), strict=True):
        for method in ("exponential", *ADAPTIVE):
            points = [(row["nfe"], abs(row["mean"])) for row in rows if row["method"] == method]
            axis.loglog(*zip(*points, strict=True), "o-", lw=2.5 if method == "exponential" else 1, ms=4, label=method)
        axis.axhline(1e-3, color="0.6", ls=":")
        axis.set(title=name, xlabel="evaluations", ylabel="error of mean bits/dim")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "likelihood.png", dpi=110)


# ---- probes ----------------------------------------------------------------------------------------------------------


PROBES_SHOWN = {"fixed": {"fresh_probes": False}, "fresh": {"probe_kind": "rademacher"}, "fresh, hadamard": {}}


def probes(repeats: int = 1000, examples: int = 4) -> None:
    """Standard deviation of log p over seeds, bits/dim, of one probe; its bias; and how often the bar of 8 covers."""
    models: dict[str, tuple[Any, Tensor]] = {}
    mixture, _ = mixture_16d(VPSDE())
    assert isinstance(mixture, GaussianMixture)
    models["16-D mixture"] = mixture, mixture.sample(examples, 1e-5, torch.Generator().manual_seed(0))
    for name, run in (("digits", RUN), ("digits, MLP", RUN.with_name("vp_digits_mlp"))):
        if (run / "config.json").exists():
            models[name] = load_denoiser(run), digits(examples)[1]
    rows = []
    print("\n| one probe, 30 evaluations | " + " | ".join(PROBES_SHOWN) + " | variance, fixed / hadamard | "
          "mean less the exact, in standard errors | 8 probes: 95 % bars cover |\n|---|---|---|---|---|---|---|")
    for name, (model, x) in models.items():
        unit = x[0].numel() * math.log(2)
        exact = log_prob(model, x, method="exponential").value.double() / unit
        row: dict[str, Any] = {"model": name}
        for label, settings in PROBES_SHOWN.items():
            values = torch.stack([log_prob(model, one.expand(repeats, *one.shape), "hutchinson", method="exponential",
                                           seeds=range(repeats), **settings).value.double() / unit for one in x])
            row[label] = float(values.var(1).mean().sqrt())
        z = (values.mean(1) - exact) / (values.std(1) / math.sqrt(repeats))
        few, covered = repeats // 4, []
        for one, truth in zip(x, exact, strict=True):
            bar = log_prob(model, one.expand(few, *one.shape), "hutchinson", method="exponential", seeds=range(few),
                           probes=8)
            assert bar.probe_error is not None
            # 95 % of Student's t with 7 degrees of freedom
            covered.append((bar.value.double() - truth * unit).abs() <= 2.365 * bar.probe_error.double())
        row |= {"ratio": (row["fixed"] / row["fresh, hadamard"]) ** 2, "z": z.tolist(),
                "covered": float(torch.stack(covered).double().mean())}
        rows.append(row)
        print(f"| {name} | " + " | ".join(f"{row[label]:.4f}" for label in PROBES_SHOWN) + f" | {row['ratio']:.1f} | "
              + ", ".join(f"{value:+.1f}" for value in row["z"]) + f" | {row['covered']:.3f} |", flush=True)
    save("probes", {"repeats": repeats, "rows": rows})


# ---- speed -----------------------------------------------------------------------------------------------------------


def usual_way(model: Denoiser, x: Tensor, probe: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """log p by scipy's RK45 on flat float64 numpy arrays; drift and divergence each call the network."""
    sde, shape, calls = model.sde, x.shape, 0

    def drift(y: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += 1
        return sde.reverse_drift(y, t, model.score(y, t), eta=0.0)

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(flat[:-len(x)]).to(x).reshape(shape)
        with torch.no_grad():
            value = drift(y, t)
        with torch.enable_grad():
            y = y.requires_grad_()
            product, = torch.autograd.grad((drift(y, t) * probe).sum(), y)
        trace = (product * probe).flatten(1).sum(1)
        return np.concatenate([value.flatten().double().numpy(), trace.double().numpy()])

    start = np.concatenate([x.flatten().double().numpy(), np.zeros(len(x))])
    end = solve_ivp(field, (sde.t_min, sde.t_max), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
    latent = torch.from_numpy(end[:-len(x)]).to(x).reshape(shape)
    return sde.prior.log_prob(latent) + torch.from_numpy(end[-len(x):]).to(x), calls


def speed(n: int = 64, rounds: int = 3) -> None:
    model, x, seeds = digits(n)
    set_memory_format(model, "channels_last")      # as `--mode likelihood` does; for both ways
    probe = NoiseStream(seeds, PROBES).rademacher(x)
    exact = log_prob(model, x.double(), "hutchinson", rtol=1e-7, atol=1e-7, seeds=seeds).value
    tolerance, same = {"rtol": 1e-5, "atol": 1e-5}, {"method": "exponential", "fresh_probes": False}
    ours = (tolerance, tolerance | {"clock": "lambda"}, same | {"steps": 30}, same | {"steps": 60})
    labels = ["scipy RK45, two calls, 1e-5", "log_prob, dopri5, 1e-5", "log_prob, dopri5 by lambda, 1e-5",
              "log_prob, exponential, 30", "log_prob, exponential, 60"]
    seconds: list[list[float]] = [[] for _ in labels]
    for _ in range(rounds):
        values, calls = [], []
        for i in range(len(labels)):
            begin = time.perf_counter()
            if i == 0:
                value, count = usual_way(model, x, probe, 1e-5)
            else:
                result = log_prob(model, x, "hutchinson", seeds=seeds, **ours[i - 1])
                value, count = result.value, result.nfe
            seconds[i].append(time.perf_counter() - begin)
            values.append(value)
            calls.append(count)
    rows = []
    print("\n| log p of 64 digits | calls of the network | seconds | ratio | RMS error, nats |\n|---|---|---|---|---|")
    for i, label in enumerate(labels):
        ratio = statistics.median(a / b for a, b in zip(seconds[0], seconds[i], strict=True))
        rms = float((values[i] - exact).square().mean().sqrt())
        rows.append({"way": label, "calls": calls[i], "seconds": statistics.median(seconds[i]), "ratio": ratio, "rms": rms})
        print(f"| {label} | {calls[i]} | {rows[-1]['seconds']:.1f} | {ratio:.2f} | {rms:.4f} |")
    save("speed", {"threads": torch.get_num_threads(), "rows": rows})


# ---- estimators ------------------------------------------------------------------------------------------------------


def estimators(n: int = 360) -> None:
    model, x, seeds = digits(n)
    ways = {
        "ODE, exact trace": lambda: log_prob(model, x, method="exponential", steps=30),
        "ODE, Hutchinson, 1 probe": lambda: log_prob(model, x, "hutchinson", method="exponential", steps=30, seeds=seeds),
        "ODE, Hutchinson, 1 fixed probe": lambda: log_prob(model, x, "hutchinson", method="exponential", steps=30,
                                                           seeds=seeds, fresh_probes=False),
        "ODE, Hutchinson, 8 probes": lambda: log_prob(model, x, "hutchinson", method="exponential", steps=30, probes=8,
                                                      seeds=seeds),
        "ODE, Hutchinson, 1 probe, dopri5 at 1e-5": lambda: log_prob(model, x, "hutchinson", seeds=seeds),
        "bound in continuous time, 128 draws": lambda: elbo(model, x, 128, seeds),
        "bound of the chain of 1000 steps": lambda: chain_elbo(model, x, None, seeds=seeds),
        "bound of the chain of 100 steps": lambda: chain_elbo(model, x, None, steps=100, seeds=seeds),
    }
    rows, reference = [], None
    print("\n| estimator | bits/dim | standard error | minus the exact trace | evaluations | seconds |\n"
          "|---|---|---|---|---|---|")
    for label, way in ways.items():
        begin = time.perf_counter()
        result = way()
        bits = bits_per_dim(result.value.double(), 64, 17)
        reference = bits if reference is None else reference
        rows.append({"estimator": label, "bits_per_dim": float(bits.mean()), "nfe": result.nfe,
                     "standard_error": float(bits.std()) / n**0.5, "difference": float((bits - reference).mean()),
                     "difference_error": float((bits - reference).std()) / n**0.5, "seconds": time.perf_counter() - begin})
        row = rows[-1]
        print(f"| {label} | {row['bits_per_dim']:.4f} | {row['standard_error']:.4f} | {row['difference']:+.4f} +- "
              f"{row['difference_error']:.4f} | {row['nfe']} | {row['seconds']:.0f} |", flush=True)
    save("estimators", {"examples": n, "rows": rows})


if __name__ == "__main__":
    parts = {"accuracy": accuracy, "probes": probes, "speed": speed, "estimators": estimators}
    for word in sys.argv[1:] or parts:
        if word not in parts:
            sys.exit(f"unknown part {word!r}; choose from {', '.join(parts)}")
        if word in ("speed", "estimators") and not (RUN / "config.json").exists():
            print(f"no model in {RUN}: train it (configs/vp_digits.py)")
        else:
            parts[word]()
