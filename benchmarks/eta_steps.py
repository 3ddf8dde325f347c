"""DDIM's table of eta and steps on digits: `python -m benchmarks.eta_steps [RUN] [--samples 2000] [--seeds 3]`.

Frechet distance of samples to the training digits, in the features of the project's classifier, by the number of steps and
by the noise: eta 0 (DDIM), between, eta 1 (the DDPM posterior), and sigma-hat, the larger variance beta (Song, Meng and
Ermon 2021, table 1). Each figure is the median over the seeds, with the lowest and the highest; the floor is that of the
held-out digits.

    python main.py --config configs/vp_digits_labels.py --mode train        # or make demo
    python -m benchmarks.eta_steps
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from scorefield.checkpoints import load_denoiser
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation import evaluate
from scorefield.samplers import make_sampler

ROOT = Path(__file__).parents[1]
STEPS = (5, 10, 20, 50, 100)
ROWS: dict[str, dict[str, Any]] = {f"eta {eta:g}": {"eta": eta} for eta in (0.0, 0.2, 0.5, 1.0)}
ROWS["sigma-hat"] = {"eta": 1.0, "variance": "beta"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "vp_digits_labels")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    model = load_denoiser(asked.run)
    plain = model.given(label=None) if model.takes.names else model
    data, codec = load_dataset({"dataset": "digits"}), make_codec(17, dequantize=True)
    print("| | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    floor = None
    for name, settings in ROWS.items():
        cells = []
        for steps in STEPS:
            found = []
            for seed in range(asked.seeds):
                quality = evaluate(plain, data, codec, n=asked.samples, metrics=["fid"], seed=seed, progress=False,
                                   bootstrap=0, sampler=make_sampler("ddim", steps=steps, **settings))
                found.append(quality.figures["fid"].value)
                floor = quality.figures["fid"].floor
            cells.append(f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"floor {floor:.2f}; {asked.samples} samples of each of {asked.seeds} seeds")


if __name__ == "__main__":
    main()
