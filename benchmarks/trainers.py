"""Training beside other trainers: `python -m benchmarks.trainers [--minutes 5,20] [--which ours,diffusers,ddp]`.

Each trains on real Fashion-MNIST for the same wall-clock minutes in a process of its own, one after another, with batches
and networks of equal size (within 3 %): our config; the loop of diffusers' unconditional example (UNet2DModel,
DDPMScheduler, AdamW with its cosine schedule, EMAModel), written here from the documented interface; and
denoising-diffusion-pytorch's own Trainer (Unet, GaussianDiffusion with predicted noise and linear betas). Each uses its own
published settings beside these.
On one thread of a CPU: configs/vp_fashion_mnist_small.py, whose step takes half a second, in batches of 32. On a GPU:
configs/vp_fashion_mnist.py, in batches of 128. Setting up counts; evaluating does not, and comes after the last minute.

All are judged alike: bits/dim of held-out pictures, dequantised, by the exponential method, and the Frechet distance of
samples (20 evaluations of the automatic sampler, averaged weights) in the features of the project's classifier. What the
others train is a chain of 1000 steps, and its network is read as a score model of our VP SDE, whose chain that is.

The data: apt-get install dataset-fashion-mnist, or the four files of idx in --data. Packages: diffusers; and
denoising-diffusion-pytorch, with accelerate, ema-pytorch and einops; its Trainer reads a folder of pictures through
torchvision, of which `_few_of_torchvision` here gives the names that it uses where torchvision is missing. A trainer whose
package is missing is left out with a word. Writes benchmarks/results/trainers.json.
"""

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.configs import vp_fashion_mnist, vp_fashion_mnist_small
from scorefield.data import codec_of, load_dataset
from scorefield.evaluation import evaluate, score
from scorefield.evaluation.evaluate import LIKELIHOOD
from scorefield.models import wrap
from scorefield.numerics.devices import local_device, prepare_sampling
from scorefield.sde_lib import VPSDE
from scorefield.training import set_up

RESULTS = Path(__file__).parent / "results"
DEBIAN = "/usr/share/datasets/fashion-mnist"
SMALL = local_device("auto").type == "cpu"
BATCH = 32 if SMALL else 128
STEPS, LABELS = 100_000, 1000      # STEPS: what the schedules of learning rates are made for
WIDTHS = (16, 32, 32) if SMALL else (64, 128, 128)                # of diffusers' network at each resolution
DDP: dict[str, Any] = {"dim": 16, "dim_mults": (1, 2, 2)} if SMALL else {"dim": 52, "dim_mults": (1, 2, 4)}
NEEDS = {"ours": (), "diffusers": ("diffusers",),
         "ddp": ("denoising_diffusion_pytorch", "accelerate", "ema_pytorch", "einops")}


def config_of(data: str) -> Any:
    config = (vp_fashion_mnist_small if SMALL else vp_fashion_mnist).get_config()
    config.data.path = data
    config.training.update(batch_size=BATCH, steps=STEPS, log_every=0, eval_every=0, sample_every=0, checkpoint_every=10**9)
    return config


class Over(Exception):
    """The minutes are over."""


class Clock:
    """Keeps a copy of the averaged model when each of the minutes has passed, and raises Over after the last."""

    def __init__(self, minutes: Sequence[float]):
        self.start, self.minutes = time.perf_counter(), sorted(minutes)
        self.kept: list[tuple[float, int, Any]] = []      # minutes taken, steps, model

    def after(self, step: int, averaged: Callable[[], Any]) -> None:
        taken = (time.perf_counter() - self.start) / 60
        if taken >= self.minutes[len(self.kept)]:
            self.kept.append((taken, step, averaged()))
            if len(self.kept) == len(self.minutes):
                raise Over


def train_ours(config: Any, minutes: Sequence[float], folder: Path) -> Clock:
    clock = Clock(minutes)
    trainer = set_up(config, load_dataset(config.data), folder, local_device("auto"))
    trainer.model.train()
    while True:
        trainer.update(*trainer.batches(trainer.step), trainer.step)
        trainer.step += 1
        try:
            clock.after(trainer.step, lambda: copy.deepcopy(trainer.averaged))
        except Over:
            return clock


def pictures_of(config: Any) -> Tensor:
    """The training pictures in [-1, 1], (N, 1, 28, 28)."""
    dataset = load_dataset(config.data)
    return dataset.train[torch.arange(len(dataset.train))][0].float() / 127.5 - 1


def train_diffusers(config: Any, minutes: Sequence[float], folder: Path) -> Clock:
    clock, device = Clock(minutes), local_device("auto")
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader, TensorDataset

    network = UNet2DModel(sample_size=28, in_channels=1, out_channels=1, layers_per_block=2,
                          block_out_channels=WIDTHS, norm_num_groups=min(32, WIDTHS[0]),
                          down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                          up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")).to(device)
    scheduler = DDPMScheduler(num_train_timesteps=LABELS, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=STEPS)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    loader, step = DataLoader(TensorDataset(pictures_of(config)), batch_size=BATCH, shuffle=True), 0

    def averaged() -> Any:
        copied = copy.deepcopy(network)
        ema.copy_to(copied.parameters())
        return as_ours(copied)

    while True:
        for (clean,) in loader:
            clean = clean.to(device)
            noise = torch.randn_like(clean)
            t = torch.randint(0, LABELS, (len(clean),), device=device)
            loss = nn.functional.mse_loss(network(scheduler.add_noise(clean, noise, t), t).sample, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            ema.step(network.parameters())
            step += 1
            try:
                clock.after(step, averaged)
            except Over:
                return clock


def train_ddp(config: Any, minutes: Sequence[float], folder: Path) -> Clock:
    from PIL import Image

    GaussianDiffusion, Trainer, Unet = import_ddp()

    pictures = ((pictures_of(config) + 1) * 127.5).round().to(torch.uint8)[:, 0].numpy()
    for i, picture in enumerate(pictures):      # its Trainer reads files; writing them does not count
        Image.fromarray(picture).save(folder / f"{i:05d}.png", compress_level=0)
    clock = Clock(minutes)
    network = Unet(**DDP, channels=1)
    diffusion = GaussianDiffusion(network, image_size=28, timesteps=LABELS, objective="pred_noise", beta_schedule="linear")
    trainer = Trainer(diffusion, str(folder), train_batch_size=BATCH, train_num_steps=STEPS, augment_horizontal_flip=False,
                      calculate_fid=False, save_and_sample_every=10**9, results_folder=str(folder / "results"))
    update = trainer.ema.update

    def update_until() -> None:
        update()
        clock.after(trainer.step + 1, lambda: as_ours(copy.deepcopy(trainer.ema.ema_model.model)))

    trainer.ema.update = update_until
    try:
        trainer.train()
    except Over:
        pass
    return clock


def import_ddp() -> tuple[Any, Any, Any]:
    import accelerate
    import ema_pytorch

    assert accelerate and ema_pytorch      # before there is what they would take for torchvision
    lacks = importlib.util.find_spec("torchvision") is None
    if lacks:
        _few_of_torchvision()
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    for name in [name for name in sys.modules if lacks and name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return GaussianDiffusion, Trainer, Unet


def _few_of_torchvision() -> None:
    """What denoising-diffusion-pytorch takes of torchvision, where it is not installed, with the same meaning."""
    def composed(parts: list[Any]) -> Any:
        def apply(picture: Any) -> Any:
            for part in parts:
                picture = part(picture)
            return picture

        return apply

    def tensor(picture: Any) -> Tensor:
        pixels = np.asarray(picture, np.float32) / 255
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)

    def same(*_: Any) -> Any:      # the pictures have the size already, and are not mirrored
        return lambda picture: picture

    transforms = types.ModuleType("torchvision.transforms")
    transforms.Compose, transforms.ToTensor, transforms.Lambda = composed, lambda: tensor, lambda function: function
    transforms.Resize = transforms.CenterCrop = transforms.RandomHorizontalFlip = same
    utils, package = types.ModuleType("torchvision.utils"), types.ModuleType("torchvision")
    package.transforms, package.utils = transforms, utils
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms, "torchvision.utils": utils}


def as_ours(network: nn.Module) -> Any:
    """A network of the chain's labels 0 .. 999 as a score model of the VP SDE, whose chain has the same linear betas."""
    return wrap(network, VPSDE(), predicts="eps", time=lambda sde, t: (LABELS * t - 1).clamp(min=0))


def judged(model: Any, config: Any, samples: int, examples: int) -> dict[str, float]:
    dataset, device = load_dataset(config.data), local_device("auto")
    model = model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    codec = codec_of(config.data, dataset)
    bits = score(model, dataset, codec, n=examples, device=device, progress=False, **LIKELIHOOD)
    prepare_sampling(model.network, "fp32", device)
    quality = evaluate(model, dataset, codec, n=samples, metrics=["fid"], device=device, progress=False)
    figure = quality.figures["fid"]
    return {"bits_per_dim": bits.mean, "bits_error": bits.standard_error, "frechet": figure.value, "low": figure.low,
            "high": figure.high}


def one(which: str, minutes: Sequence[float], data: str, samples: int, examples: int) -> list[dict[str, Any]]:
    """The rows of one trainer, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = config_of(data)
    with tempfile.TemporaryDirectory() as folder:
        train = {"ours": train_ours, "diffusers": train_diffusers, "ddp": train_ddp}[which]
        kept = train(config, minutes, Path(folder)).kept
    return [{"which": which, "minutes": taken, "steps": steps,
             "parameters": sum(parameter.numel() for parameter in model.parameters()),
             **judged(model, config, samples, examples)} for taken, steps, model in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", default="5,20")
    parser.add_argument("--which", default="ours,diffusers,ddp")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--examples", type=int, default=256, help="held-out pictures whose bits/dim is taken")
    parser.add_argument("--data", default=DEBIAN)
    parser.add_argument("--alone", action="store_true", help="train the one of --which in this process")
    asked = parser.parse_args()
    if asked.alone:
        minutes = [float(word) for word in asked.minutes.split(",")]
        print(json.dumps(one(asked.which, minutes, asked.data, asked.samples, asked.examples)))
        return
    rows: list[dict[str, Any]] = []
    for which in asked.which.split(","):
        missing = [name for name in NEEDS[which] if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{which} is left out: {', '.join(missing)} not installed", flush=True)
            continue
        words = [sys.executable, "-m", "benchmarks.trainers", "--alone", "--which", which, "--minutes", asked.minutes,
                 "--samples", str(asked.samples), "--examples", str(asked.examples), "--data", asked.data]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        print(which, rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trainers.json").write_text(f"{json.dumps({'batch': BATCH, 'rows': rows}, indent=2)}\n")
    print("\n| trainer | minutes | parameters | steps | bits/dim | Frechet distance |")
    print("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row["minutes"]):
        print("| {which} | {minutes:.1f} | {parameters:,} | {steps} | {bits_per_dim:.3f} +- {bits_error:.3f} | "
              "{frechet:.2f} ({low:.2f} to {high:.2f}) |".format(**row))


if __name__ == "__main__":
    main()
