"""A model of latents beside the pixel model: reconstruction, samples, bits/dim with their parts, and speed.

    python -m benchmarks.latents --train 30
    python -m benchmarks.latents --samples 5000 --examples 256

With --train, the autoencoder is trained for half of that many minutes, the model of its latents for the other half, and the
pixel model for all of them; what is there goes on. Without, the runs are measured as they are.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scorefield.checkpoints import read_checkpoint
from scorefield.checkpoints.latents import codec_of
from scorefield.data import load_dataset
from scorefield.data.latents import Latents
from scorefield.evaluation.evaluate import evaluate as evaluated
from scorefield.evaluation.evaluate import figure_of, measure, statistics_folder
from scorefield.evaluation.likelihood import score
from scorefield.evaluation.metrics import Reference, features_of, make_metrics
from scorefield.evaluation.plots import image_grid, save_png
from scorefield.samplers import make_sampler, prior_sample

CONFIGS = {"autoencoder": "fashion_autoencoder", "latents": "fashion_latents", "pixels": "vp_fashion_mnist_small"}


def train_for(config: str, run: Path, minutes: float, more: list[str]) -> None:
    """Mode train, which is stopped after so many minutes and saves where it is."""
    words = ["--config", f"configs/{config}.py", "--mode", "train", "--workdir", str(run), *more]
    process = subprocess.Popen([sys.executable, "main.py", *words])
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        sys.exit(f"training {run} ended with {process.returncode}")


def evaluations_a_second(model: Any, event: tuple[int, ...], batch: int = 128, rounds: int = 5) -> float:
    """Examples a second in one evaluation of the network."""
    x, seconds = torch.randn(batch, *event), []
    with torch.no_grad():
        for _ in range(rounds):
            start = time.perf_counter()
            model.eps(x, 0.5)
            seconds.append(time.perf_counter() - start)
    return batch / min(seconds)


def of_reconstructions(codec: Latents, data: Any, n: int) -> tuple[float, str, torch.Tensor]:
    """PSNR of held-out examples by the mean of q, the figure of their Frechet distance, and the first examples with them."""
    levels = data.test[torch.arange(min(n, len(data.test)))][0]
    parts = levels.split(256)
    made = [codec.decode(codec.encode(part, torch.full((len(part), *codec.latent), 0.5))) for part in parts]
    square = (torch.cat(made).double() - levels.double()).square().flatten(1).mean(1)
    reference = Reference(data, codec.pixels, features_of(None, data), statistics_folder())
    figure = measure(made, make_metrics(["fid"], reference), codec)["fid"]
    tops = torch.stack([levels[:10], made[0][:10]]).flatten(0, 1)
    return float((10 * torch.log10((codec.levels - 1)**2 / square)).mean()), figure_of(vars(figure)), tops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs", help="where the runs are, by the names of their configs")
    parser.add_argument("--train", type=float, default=0.0, help="minutes")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20, help="of the sampler auto")
    parser.add_argument("--examples", type=int, default=128, help="held-out examples that are scored")
    parser.add_argument("--picture", default="", help="a .png of examples, reconstructions and samples")
    options, more = parser.parse_known_args()
    runs = {name: Path(options.folder) / config for name, config in CONFIGS.items()}
    if options.train:
        half = options.train / 2
        train_for(CONFIGS["autoencoder"], runs["autoencoder"], half, more)
        train_for(CONFIGS["latents"], runs["latents"], half, [*more, f"--config.data.autoencoder={runs['autoencoder']}"])
        train_for(CONFIGS["pixels"], runs["pixels"], options.train, more)
    print(f"The autoencoder is at step {read_checkpoint(runs['autoencoder']).step}.\n")
    print("| model | step | Frechet distance | bits/dim | parts | evaluations a second |\n|---|---|---|---|---|---|")
    shown = []
    for name in ("latents", "pixels"):
        checkpoint = read_checkpoint(runs[name])
        model, config = checkpoint.denoiser(), checkpoint.config
        codec, data = codec_of(config["data"], config), load_dataset(config["data"])
        event = codec.event(data.shape)
        if isinstance(codec, Latents):
            psnr, distance, tops = of_reconstructions(codec, data, options.samples)
            shown.append(tops)
        sampler = make_sampler("auto", steps=options.steps)
        quality = evaluated(model, data, codec, n=options.samples, sampler=sampler, metrics=["fid"],
                            cache=statistics_folder())
        bits = score(model, data, codec, n=options.examples, method="exponential", divergence="hutchinson", progress=False)
        parts = {term: f"{value:.3f}" for term, value in (bits.summary().get("terms") or {}).items()}
        print(f"| {name} | {checkpoint.step} | {figure_of(vars(quality.figures['fid']))} | {bits.mean:.3f} +- "
              f"{bits.standard_error:.3f} | {', '.join(f'{k} {v}' for k, v in parts.items())} | "
              f"{evaluations_a_second(model, event):.0f} |", flush=True)
        seeds = [(1, i) for i in range(20)]
        shown.append(codec.decode(sampler(model, prior_sample(model.sde, event, seeds), seeds).x))
    print(f"\nReconstructions of held-out examples: PSNR {psnr:.2f} dB, Frechet distance {distance}")
    if options.picture:
        save_png(Path(options.picture), image_grid(torch.cat(shown), data.levels or 256, torch.arange(60) // 10))


if __name__ == "__main__":
    main()
