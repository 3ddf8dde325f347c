"""What several tests share: data sets written in their official formats, a small checkpoint."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from ml_collections import ConfigDict
from torch import nn

from scorefield.checkpoints import Checkpoint
from scorefield.checkpoints.formats.run import checkpoints_of, read_state
from scorefield.cli.main import main
from scorefield.models import build_denoiser
from scorefield.numerics.files import DIGEST, digest

ROOT = Path(__file__).parents[1]
# A U-Net of the digits and four steps of training that take seconds.
SMALL = ["--config.model.width=8", "--config.model.multipliers=(1,2)", "--config.model.num_blocks=1",
         "--config.model.attention_resolutions=()", "--config.training.steps=4", "--config.training.batch_size=8",
         "--config.training.log_every=2", "--config.training.eval_every=2", "--config.training.sample_every=4",
         "--config.training.sample_steps=3", "--config.training.checkpoint_every=2"]


def train_briefly(config: str, run: Path, *more: str) -> Path:
    """Four steps of configs/<config>.py on a small U-Net, by the command line; returns the run."""
    main(["--config", str(ROOT / "configs" / f"{config}.py"), "--mode", "train", "--workdir", str(run), *SMALL, *more])
    return run


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder of this worker with what `make` puts into a folder: the first worker that needs it does, the others copy."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    place, made = shared / f"shared_{name}", shared / f"shared_{name}.made"
    with FileLock(f"{place}.lock"):
        if not made.exists():
            place.mkdir()
            make(place)
            made.touch()
    return Path(shutil.copytree(place, factory.mktemp(name), dirs_exist_ok=True))


def randomised(network: nn.Module) -> nn.Module:
    """The same network with weights that let everything through, the layers that start at zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def smooth_pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """(n, 3, size, size) uint8: three soft blobs of random colour and place on a random plain ground."""
    rng = np.random.default_rng(seed)
    axis = (np.arange(size) + 0.5) / size
    place, width = rng.uniform(0, 1, (n, 3, 2, 1)), rng.uniform(0.1, 0.3, (n, 3, 1, 1))
    profile = np.exp(-(((axis - place) / width) ** 2) / 2)  # (n, 3 blobs, rows and columns, size)
    colours = rng.uniform(-120, 120, (n, 3, 3))
    ground = rng.uniform(60, 200, (n, 3, 1, 1))
    blobs = np.einsum("nkc,nkh,nkw->nchw", colours, profile[:, :, 0], profile[:, :, 1])
    return np.clip(np.round(ground + blobs), 0, 255).astype(np.uint8)


def write_cifar10(folder: Path | str, num_train: int = 200, num_test: int = 50, seed: int = 0) -> Path:
    """Write `folder/cifar-10-batches-py` as the official one is laid out and return its path.

    data_batch_1 .. 5 (num_train >= 5 pictures among them), test_batch and batches.meta: pickles of protocol 2
    with bytes keys. The pictures are `smooth_pictures(num_train + num_test, seed=seed)`, the last held out.
    """
    batches = Path(folder) / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    pictures = smooth_pictures(num_train + num_test, seed=seed).reshape(-1, 3072)
    splits = [*np.array_split(pictures[:num_train], 5), pictures[num_train:]]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, data in zip(names, splits, strict=True):
        labels = [i % 10 for i in range(len(data))]
        files = [f"{name}_{i}.png".encode() for i in range(len(data))]
        content = {b"batch_label": name.encode(), b"labels": labels, b"data": data, b"filenames": files}
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))
    label_names = [b"class %d" % i for i in range(10)]
    meta = {b"num_cases_per_batch": len(splits[0]), b"label_names": label_names, b"num_vis": 3072}
    (batches / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return batches


def write_cifar10_archive(folder: Path | str, batches: Path) -> Path:
    """Pack what `write_cifar10` wrote as `folder/cifar-10-python.tar.gz` and return its path."""
    return write_archive(folder, batches, "cifar-10-python.tar.gz")


def write_cifar100(folder: Path | str, num_train: int = 40, num_test: int = 7, seed: int = 0) -> Path:
    """Write `folder/cifar-100-python` as the official one is laid out and return its path: train, test and meta.

    The pictures are those of `write_cifar10`. Picture i of a split has the fine label 99 - i and the coarse label i % 20.
    """
    root = Path(folder) / "cifar-100-python"
    root.mkdir(parents=True)
    pictures = smooth_pictures(num_train + num_test, seed=seed).reshape(-1, 3072)
    for name, data in (("train", pictures[:num_train]), ("test", pictures[num_train:])):
        content = {b"filenames": [b"%d.png" % i for i in range(len(data))], b"batch_label": name.encode(),
                   b"fine_labels": [99 - i for i in range(len(data))], b"coarse_labels": [i % 20 for i in range(len(data))],
                   b"data": data}
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {b"fine_label_names": [b"fine %d" % i for i in range(100)],
            b"coarse_label_names": [b"coarse %d" % i for i in range(20)]}
    (root / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return root


def write_archive(folder: Path | str, contents: Path, name: str) -> Path:
    """Pack a folder as the .tar.gz `folder/name`, in which it keeps its own name, and return its path."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tarfile.open(Path(folder) / name, "w:gz") as archive:
        archive.add(contents, arcname=contents.name)
    return Path(folder) / name


def without_config(run: Path) -> None:
    """Make a run's checkpoints those of before version 0.2, which hold no config, and take its history."""
    for _, path in checkpoints_of(run):
        state = {key: value for key, value in read_state(path).items() if key != "config"}
        torch.save(state | {DIGEST: digest(state)}, path)
    (run / "history.jsonl").unlink()


def small_checkpoint():
    """A checkpoint of an MLP for points, its weights random, at step 5."""
    config = {"sde": {"name": "vp"}, "data": {"low": -1.0, "high": 1.0}, "training": {}, "shape": [2], "levels": None,
              "config": "x",
              "model": {"network": "mlp", "parametrization": "eps", "time_input": "999t", "width": 8, "layers": 1}}
    network = build_denoiser(ConfigDict(config), config["shape"]).network
    return Checkpoint(config, network.state_dict(), step=5)
