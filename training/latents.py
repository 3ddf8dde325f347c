"""Training in the latents of an autoencoder: pictures are encoded once, and kept.

What is kept are the moments of q(z given x) of every example, float32, from which each step draws z anew:

    $SCOREFIELD_DATA/latents/<digits>/train.npy    (N, 2 channels, rows, columns), read from where they lie
                                      test.npy
                                      latents.json

The digits change with the autoencoder and with the data. Data that are mirrored have 2 N rows, the second half those of the
mirrored pictures, since mirrored latents are not the latents of mirrored pictures; an epoch sees each example both ways.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.checkpoints.formats.run import read_config
from scorefield.checkpoints.latents import (
    Trained,
    autoencoder_at,
    latents_of,
    require_fit,
    require_kind,
    require_same,
    standard_noise,
)
from scorefield.data.codec import Codec
from scorefield.data.dataset import Condition, Dataset, Split
from scorefield.data.datasets import cache_folder, codec_of
from scorefield.data.fingerprint import fingerprint
from scorefield.data.latents import Latents, Moments
from scorefield.numerics.files import json_digest, new_folder, read_json, write_json
from scorefield.numerics.locks import Locked, locked
from scorefield.training.batches import PIXELS, without_low_res

VERSION = 1
PART = 512             # examples that are encoded at once
CALIBRATION = 256      # training examples by which the decoder's standard deviation is chosen


@dataclass(frozen=True, eq=False)
class Encoded:
    """A split whose data are moments (N, 2 channels, rows, columns); its conditions are those of the split.

    whole  whether a batch has the levels, too, as the condition PIXELS
    """

    moments: np.ndarray
    split: Split
    whole: bool = False
    in_memory = True

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Condition]:
        own = index % len(self.split)      # the second half of mirrored data
        if not self.whole and not hasattr(self.split, "made") and hasattr(self.split, "condition"):
            condition = {name: tensor[own] for name, tensor in self.split.condition.items()}
        else:
            levels, condition = self.split[own]
            if self.whole:
                mirror = (index >= len(self.split)).reshape(-1, *[1] * (levels.ndim - 1))
                condition = {**condition, PIXELS: torch.where(mirror, levels.flip(-1), levels)}
        return torch.from_numpy(self.moments[index.numpy()]), condition


def codec_to_train(section: Any, dataset: Dataset, run: Path, device: torch.device, say: Callable[[str], None] = print
                   ) -> Codec:
    """The codec of a run that is to be trained. That of latents of a new run is measured, as its first command encodes the
    data; a run goes on with its own.

    Raises ArgumentError (data.autoencoder) for an autoencoder of other data, and for another one than the run's.
    """
    source, there = section.get("autoencoder"), read_config(run) if (run / "config.json").is_file() else None
    if there is not None:
        require_kind(source, there)
    if not source:
        return codec_of(section, dataset)
    found = autoencoder_at(source, device, dataset.shape)
    require_fit(found, section, dataset)
    if there is not None:
        require_same(found, there["latents"])
        return latents_of(found, there["latents"])
    folder = cached(found, dataset, say)
    return latents_of(found, read_json(folder / "latents.json"))


def codec_of_encoded(codec: Codec) -> Codec:
    """The codec of what `encoded` returns."""
    return Moments(codec) if isinstance(codec, Latents) else codec


def encoded(codec: Codec, dataset: Dataset) -> Dataset:
    """The data set of moments, if `codec` is one of latents; else the data set itself."""
    if not isinstance(codec, Latents):
        return dataset
    found = Trained(codec.network, codec.pixels, codec.shape, codec.digest, "")      # type: ignore[arg-type]
    folder = cached(found, dataset)
    whole = dataset.low_res is not None
    train, test = (Encoded(np.load(folder / f"{name}.npy", mmap_mode="r"), split, whole and name == "train")
                   for name, split in (("train", without_low_res(dataset.train)), ("test", dataset.test)))
    c, rows, columns = codec.latent
    return dataclasses.replace(dataset, train=train, test=test, shape=(2 * c, rows, columns), levels=None, flip=False)


def cached(found: Trained, dataset: Dataset, say: Callable[[str], None] = print) -> Path:
    """The folder of the moments of both splits, which are encoded unless they are there; one process does, others wait."""
    train, test = without_low_res(dataset.train), without_low_res(dataset.test)
    dataset = dataclasses.replace(dataset, train=train, test=test, low_res=None)
    key = json_digest([VERSION, found.digest, fingerprint(dataset), dataset.flip])[:32]
    folder = cache_folder() / "latents" / key
    while not (folder / "latents.json").is_file():
        try:
            with locked(folder.with_name(f"{key}.work"), _silent):
                if not (folder / "latents.json").is_file():
                    say(f"{found.source or 'the autoencoder'} encodes {len(dataset.train) + len(dataset.test)} examples of "
                        f"{dataset.name} once; they are kept in {folder}")
                    _encode(found, dataset, folder)
        except Locked:
            time.sleep(0.5)
    return folder


def _silent(text: str) -> None:
    """Says nothing."""


def _encode(found: Trained, dataset: Dataset, folder: Path) -> None:
    codec, shape = latents_of(found, found.stored()), found.network.latent
    with new_folder(folder) as temporary:
        for name in ("train", "test"):
            split = getattr(dataset, name)
            flips = (False, True) if name == "train" and dataset.flip else (False,)
            moments = np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", np.float32,
                                                (len(flips) * len(split), 2 * shape[0], *shape[1:]))
            for i, flip in enumerate(flips):
                for part in torch.arange(len(split)).split(PART):
                    levels = split[part][0]
                    codec.check(levels, f"data set {dataset.name!r}", int(part[0]))
                    made = codec.moments(levels.flip(-1) if flip else levels)
                    Moments(codec).check(made, f"data set {dataset.name!r}")
                    moments[i * len(split) + int(part[0]):][:len(part)] = made.cpu().numpy()
            moments.flush()
            if name == "train":
                stored = measured(found, moments, split)
        write_json(temporary / "latents.json", stored)


def measured(found: Trained, moments: Any, split: Split) -> dict[str, Any]:
    """What `Latents.stored` returns of an autoencoder, by the moments (N, 2 channels, ...) of training examples.

    mean and std of each channel of z, unless the network has a scaling; and the decoder's standard deviation under which
    some of the examples are likeliest
    """
    stored, c = found.stored(), found.network.latent[0]
    if found.network.scaling is None:
        count, first, second = 0, np.zeros(c), np.zeros(c)
        for begin in range(0, len(moments), PART):
            part = np.asarray(moments[begin:begin + PART], dtype=np.float64)
            mean, variance = part[:, :c], np.exp(part[:, c:])
            count += part[:, 0].size
            first, second = first + mean.sum((0, 2, 3)), second + (mean**2 + variance).sum((0, 2, 3))
        mean = first / count
        stored |= {"mean": mean.tolist(), "std": np.sqrt(np.maximum(second / count - mean**2, 1e-20)).tolist()}
    stored["decoder_std"] = _decoder_std(latents_of(found, stored), split)
    return stored


def _decoder_std(codec: Latents, split: Split) -> float:
    from scipy.optimize import minimize_scalar  # slow to import

    n = len(split)
    levels = split[torch.arange(min(n, CALIBRATION)) * n // min(n, CALIBRATION)][0]
    x_hat = codec.pictures(codec.encode(levels, standard_noise((len(levels), *codec.latent)))).detach()
    width = codec.pixels.high - codec.pixels.low

    def cost(log_std: float) -> float:
        return -float(codec.log_prob(levels, x_hat, math.exp(log_std)).mean())

    found = minimize_scalar(cost, bounds=(math.log(width / 1e4), math.log(width)), method="bounded", options={"xatol": 1e-3})
    return math.exp(float(found.x))


def latent_fields(codec: Codec) -> dict[str, Any]:
    """What config.json of a run holds of its codec, beside the section `data`."""
    return {"latents": codec.stored()} if isinstance(codec, Latents) else {}
