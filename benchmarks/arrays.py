"""A table and a set of series of which the truth is known, from a file to samples and likelihoods by the command line alone.

    python -m benchmarks.arrays [--folder FOLDER]

trains configs/vp_table.py on 10,000 rows of a 5-D Gaussian with correlated columns of very different units, and
configs/vp_series.py on 4,000 sine waves of one frequency with random phases and amplitudes (some minutes on two cores). It
prints, each with its standard error,

    mean, covariance   the largest error of 4,000 samples, in standard deviations of the columns
    log p              the mean of log p(y) - log p_model(y) over the 1,000 held-out rows, in nats: the model's excess, >= 0
    power              the mean of |X_f|^2 of the samples at the frequency of the data, as a share of that of the data
    share              of a sample's power that lies at that frequency: the median, and that of the data
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
MIXING = np.array([[2, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, -0.5, 0.7, 0, 0], [0.3, 0, 0, 0.4, 0], [0, 0, 1, 0, 3.0]])
UNITS = np.array([1.0, 10.0, 0.1, 1000.0, 5.0])      # columns in metres, millimetres, ...
CENTRE = np.array([1.0, -20.0, 1.0, 500.0, 2000.0])
FREQUENCY, LENGTH = 4, 32


@dataclass(frozen=True)
class Recovered:
    """A figure with its standard error, and what it would be if the model were the truth."""

    value: float
    error: float
    truth: float = 0.0

    def within(self, allowed: float) -> bool:
        """Whether it lies within `allowed` and 4 standard errors of the truth."""
        return abs(self.value - self.truth) <= allowed + 4 * self.error

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.error:.4f}, where the truth has {self.truth:g}"


def command_line(*words: Any) -> None:
    """Run the command line in a process of its own."""
    subprocess.run([sys.executable, str(ROOT / "main.py"), *map(str, words)], check=True, cwd=ROOT)


def write_table(file: Path, rows: int = 10_000) -> np.ndarray:
    """Draw the Gaussian, write it as .csv, and return the rows that are held out."""
    x = np.random.default_rng(0).standard_normal((rows, 5)) @ (MIXING * UNITS[:, None]).T + CENTRE
    file.write_text("a,b,c,d,e\n" + "".join(",".join(map(repr, map(float, row))) + "\n" for row in x))
    return x[::10]


def write_series(file: Path, n: int = 4000) -> np.ndarray:
    """Draw the sine waves, write them as .npy (n, 1, LENGTH), and return them (n, LENGTH)."""
    rng = np.random.default_rng(0)
    phase, amplitude = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(1, 3, (n, 1))
    x = 3 + amplitude * np.sin(2 * np.pi * FREQUENCY * np.arange(LENGTH) / LENGTH + phase)
    x += 0.1 * rng.standard_normal(x.shape)
    np.save(file, x[:, None])
    return x


def trained(config: str, data: Path, where: Path, run: Callable[..., None], samples: int, *flags: str) -> np.ndarray:
    """Train a config on a file and sample it, both by the command line: the samples (samples, ...)."""
    run("--config", f"configs/{config}.py", "--mode", "train", "--workdir", where, f"--config.data.path={data}", *flags)
    run("--workdir", where, "--mode", "sample", "--num_samples", samples, "--batch_size", samples)
    (drawn,) = (where / "samples").glob("*.npz")
    return np.load(drawn)["x"]


def table(folder: Path, run: Callable[..., None] = command_line, samples: int = 4000, rows: int = 10_000, *flags: str
          ) -> dict[str, Recovered]:
    """Train on the table, sample and score it; `flags` are for training."""
    held_out, where = write_table(folder / "table.csv", rows), folder / "table"
    drawn = trained("vp_table", folder / "table.csv", where, run, samples, *flags)
    run("--workdir", where, "--mode", "likelihood", "--divergence", "exact", "--batch_size", 1000)
    (scored,) = (where / "likelihood").glob("*.csv")
    covariance = (MIXING * UNITS[:, None]) @ (MIXING * UNITS[:, None]).T
    std = np.sqrt(np.diag(covariance))
    z = (drawn.astype(float) - CENTRE) / std
    spread = np.abs(np.cov(z.T) - covariance / np.outer(std, std)).max()
    with open(scored, newline="") as file:
        model = np.array([float(row["log_prob_nats"]) for row in csv.DictReader(file)])
    y = held_out - CENTRE
    truth = -0.5 * ((y @ np.linalg.inv(covariance)) * y).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    excess = truth - model
    return {"mean": Recovered(float(np.abs(z.mean(0)).max()), samples**-0.5),
            "covariance": Recovered(float(spread), (2 / samples) ** 0.5),
            "log p": Recovered(float(excess.mean()), float(excess.std() / len(excess) ** 0.5))}


def series(folder: Path, run: Callable[..., None] = command_line, samples: int = 500, n: int = 4000, *flags: str
           ) -> dict[str, Recovered]:
    """Train on the sine waves and sample; `flags` are for training."""
    data = write_series(folder / "series.npy", n)
    drawn = trained("vp_series", folder / "series.npy", folder / "series", run, samples, *flags)
    powers = [np.abs(np.fft.rfft(x)[:, 1:]) ** 2 for x in (drawn[:, 0], data)]
    at = [power[:, FREQUENCY - 1] for power in powers]
    shares = [first / power.sum(1) for first, power in zip(at, powers, strict=True)]
    scale = at[1].mean()
    return {"power": Recovered(float(at[0].mean() / scale), float(at[0].std() / scale / samples**0.5), 1.0),
            "share": Recovered(float(np.median(shares[0])), 0.0, float(np.median(shares[1])))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the data and the runs are kept")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        figures = {"table": table(place), "series": series(place, command_line, 500, 4000, "--config.training.steps=800")}
        for name, recovered in figures.items():
            for figure, value in recovered.items():
                print(f"{name}: {figure} {value}")
        (ROOT / "benchmarks/results").mkdir(exist_ok=True)
        described = {name: {figure: vars(value) for figure, value in recovered.items()}
                     for name, recovered in figures.items()}
        (ROOT / "benchmarks/results/arrays.json").write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    main()
