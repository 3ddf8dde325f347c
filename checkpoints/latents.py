"""The codec of a run: that of its pictures or numbers, or of the latents of the autoencoder that its data name.

A run of latents keeps in its config.json what its codec needs beside the autoencoder (data/latents.py, `Latents.stored`),
with a digest of that. Another autoencoder, or the same one trained further, is refused: its latents mean something else.
"""

from collections.abc import Mapping
from typing import Any

import torch

from scorefield.checkpoints.load import Trained, autoencoder_at
from scorefield.data import datasets
from scorefield.data.codec import Codec
from scorefield.data.dataset import Dataset
from scorefield.data.latents import Latents
from scorefield.numerics.errors import ArgumentError


def codec_of(section: Any, told: Dataset | Mapping[str, Any], device: Any = "cpu") -> Codec:
    """The codec of a config's section `data`, for a data set or for what config.json of a run holds, as data.codec_of; of a
    run of latents only the latter is enough.

        codec = codec_of(config["data"], config)

    device  of an autoencoder

    Raises ArgumentError (data.autoencoder) if the autoencoder is not there, or is another one.
    """
    source = section.get("autoencoder")
    require_kind(source, {} if isinstance(told, Dataset) else told)
    if not source or isinstance(told, Dataset):
        return datasets.codec_of(section, told)
    found = autoencoder_at(source, device, told["shape"])
    require_same(found, told["latents"])
    return latents_of(found, told["latents"])


def require_kind(source: str | None, stored: Mapping[str, Any]) -> None:
    """ArgumentError unless a run has learned latents where data.autoencoder names a source, and only there."""
    if source and not stored.get("latents"):
        raise ArgumentError(f"data.autoencoder={source!r} is for models of its latents, and this one has learned none; "
                            "leave it out, or train another run", "data.autoencoder")
    if not source and stored.get("latents"):
        raise ArgumentError("this model has learned the latents of an autoencoder; name that as data.autoencoder",
                            "data.autoencoder")


def latents_of(found: Trained, stored: Mapping[str, Any]) -> Latents:
    """The codec of an autoencoder and of what `Latents.stored` returned."""
    mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
    return Latents(found.network, found.pixels, found.shape, found.network.latent, mean, std, float(stored["decoder_std"]),
                   found.digest)


def require_same(found: Trained, stored: Mapping[str, Any]) -> None:
    """ArgumentError unless an autoencoder is the one whose latents a run has learned."""
    if found.digest != stored["digest"]:
        raise ArgumentError(f"{found.source} is another autoencoder ({found.digest}) than the one whose latents this run "
                            f"has learned ({stored['digest']}), or was trained further since; name that one",
                            "data.autoencoder")


def require_fit(found: Trained, section: Mapping[str, Any], dataset: Dataset) -> None:
    """ArgumentError unless an autoencoder is one of pictures as those of a data set."""
    here = {"shape": tuple(dataset.shape), "levels": dataset.levels, "low": section.get("low"), "high": section.get("high"),
            "dequantize": section.get("dequantize")}
    there = {"shape": found.shape, "levels": found.pixels.levels, "low": found.pixels.low, "high": found.pixels.high,
             "dequantize": found.pixels.noisy}
    for name, value in here.items():
        if value != there[name]:
            raise ArgumentError(f"the autoencoder {found.source} is one of data of another kind: {name} is {there[name]} "
                                f"there and {value} here", "data.autoencoder")


def standard_noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Uniform noise that is the same every time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
