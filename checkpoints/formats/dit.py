"""Read the .pt files of DiT (Peebles and Xie 2023), such as DiT-XL-2-256x256.pt: the state dict of their network, or a
checkpoint of their training, {"model", "ema", "opt", "args"}, of which the weights are read, averaged and raw.

    x_embedder.proj             the patches: a convolution (width, channels, patch, patch)
    pos_embed                   (1, tokens, width), fixed sines and cosines
    t_embedder.mlp.0, .2        the embedding of time
    y_embedder.embedding_table  a row for each label, and behind them that of "no label"
    blocks.N                    attn.qkv, attn.proj, mlp.fc1, mlp.fc2, adaLN_modulation.1
    final_layer                 linear, adaLN_modulation.1

The network is a `DiT` with freq_shift 0. Its settings are read off names and shapes. What a file does not tell has the
default of their program, unless the config says otherwise:

    sde                         ddpm with schedule linear and steps 1000
    model.heads                 those of the published network of this width, else width / 64
    model.parametrization       eps
    model.classes               one less than there are rows, whose last is "no label"; as many, if labels were never dropped
    shape                       square pictures
    levels                      256 for 1 or 3 channels; none for others, which are latents
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from scorefield.checkpoints.checkpoint import (
    Checkpoint,
    Config,
    Weights,
    merged,
    other_types,
    outline_of,
    require_dense,
    require_fit,
    require_network,
)
from scorefield.checkpoints.formats.dit_layout import ours, published_keys, theirs
from scorefield.checkpoints.formats.pickles import read_pickle
from scorefield.models.networks.dit import SIZES, positions

SUFFIX = ".pt"
FIRST, POSITIONS, LABELS = "x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight"
KEYS = {FIRST, POSITIONS, "t_embedder.mlp.0.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight"}
PEEKED = 2**22      # bytes in which the first names of a file stand
# What a config may say beside a file, since that does not tell it, or since it is of training.
ASSUMED = ("heads", "parametrization", "dropout", "classes", "time_input")


def recognises(path: Path) -> bool:
    """Whether `path` is a .pt whose names begin as those of DiT."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return FIRST.encode() in file.read(PEEKED)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not names:
                return False
            with archive.open(names[0]) as content:
                return FIRST.encode() in content.read(PEEKED)
    except (OSError, RuntimeError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return False      # damaged: what reads .pt files says so


def read(path: Path, config: Config | None = None) -> Checkpoint:
    """The checkpoint in a .pt of DiT.

    config  what the file does not store, see above

    Raises OSError if the file cannot be read, and ValueError of one line if it is truncated, altered, of another program or
    would run code, if its positions are learned, or if keys and shapes do not fit.
    """
    path, given = Path(path), config or {}
    state = read_pickle(path)
    trained = isinstance(state, dict) and isinstance(state.get("ema"), dict)
    averaged = state["ema"] if trained else state
    if not isinstance(averaged, dict) or not KEYS <= set(averaged):
        raise ValueError(f"{path} is not a DiT: it lacks {', '.join(sorted(KEYS - set(averaged)))}; give the state dict of "
                         "the network alone, or a checkpoint of DiT's train.py")
    require_dense(averaged, path)
    told, notes = _told(averaged, given, path)
    require_network(told, given, ASSUMED, path)
    resolved = merged(told, given)
    network = outline_of(resolved, path)
    counts = [side // network.patch for side in network.sides]
    expected = positions(counts, averaged[FIRST].shape[0])
    found = averaged[POSITIONS].float()
    if found.shape != (1, *expected.shape) or not torch.allclose(found[0], expected, atol=1e-3):
        raise ValueError(f"{path}: its positions {tuple(found.shape)} are not the fixed sines and cosines of "
                         f"{' x '.join(map(str, counts))} patches; give the shape of its pictures, if they are not square; "
                         "learned positions cannot be read")
    weights = _weights(averaged, network, path)
    raw = None
    if trained and isinstance(state.get("model"), dict):
        require_dense(state["model"], path)
        raw = _weights(state["model"], network, path)
    kinds = other_types(averaged)
    notes += [f"weights in {kinds} are read as float32"] if kinds else []
    return Checkpoint(resolved, weights, raw, source=str(path), note="; ".join(notes))


def _told(tensors: Mapping[str, Tensor], given: Config, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The config that the file implies, with their defaults for what neither it nor `given` says; and what was assumed."""
    first, said = tensors[FIRST], {k: v for k, v in given.get("model", {}).items() if v is not None}
    if first.ndim != 4 or first.shape[2] != first.shape[3] or tensors[POSITIONS].ndim != 3:
        raise ValueError(f"{path} is damaged, or not a DiT: {FIRST} is {tuple(first.shape)}; fetch it again")
    (width, channels, patch, _), tokens = first.shape, tensors[POSITIONS].shape[1]
    shape = list(given.get("shape") or [channels, *[math.isqrt(tokens) * patch] * 2])
    outputs = tensors["final_layer.linear.weight"].shape[0] // patch**2
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"{path} takes {channels} channels and gives {outputs}, and only as many or twice as many can be "
                         "read")
    heads = next((heads for size, _, heads in SIZES.values() if size == width), max(1, width // 64))
    model: dict[str, Any] = {
        "network": "dit", "patch": patch, "width": width, "heads": heads, "freq_shift": 0, "norm_eps": 1e-6, "skips": False,
        "layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}), "dropout": 0.0,
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width, "block_embedding": False,
        "learned_variance": outputs == 2 * channels, "parametrization": "eps", "time_input": "index", "classes": None}
    training: dict[str, Any] = {"objective": "learned_variance"} if model["learned_variance"] else {}
    notes = [] if "heads" in said else [f"{heads} heads of attention"]
    if LABELS in tensors:
        rows = tensors[LABELS].shape[0]
        dropped = said.get("classes") != rows      # else the file has no row of "no label"
        model["classes"] = rows - dropped
        training["label_dropout"] = 0.1 if dropped else 0.0
        notes += [f"{rows - 1} classes and a last one of no label"] if "classes" not in said else []
    chain = given.get("sde", {})
    notes += [] if chain.get("name") or chain.get("schedule") else ["the linear schedule"]
    told = {"sde": {"name": "ddpm", "schedule": "linear", "steps": 1000}, "model": model, "data": {"low": -1.0, "high": 1.0},
            "shape": shape, "levels": 256 if channels in (1, 3) else None, "training": training}
    lines = [f"assumed, since the file does not tell: {', '.join(notes)}"] if notes else []
    named = given.get("data", {}).get("autoencoder")
    return told, lines + ([] if channels in (1, 3) or named else [
        f"its data are taken to be latents of {channels} channels; name their autoencoder as data.autoencoder"])


def _weights(tensors: Mapping[str, Tensor], network: Any, path: Path) -> Weights:
    """Our parameters of theirs; ValueError unless they fit."""
    state, keys = network.state_dict(), published_keys(network)
    expected = {keys[name]: tuple(theirs(name, value, network).shape) for name, value in state.items()}
    if LABELS in tensors and network.classes == len(tensors[LABELS]):      # without a row of "no label"
        tensors = {**tensors, LABELS: pad(tensors[LABELS], (0, 0, 0, 1))}
    require_fit(expected, {name: value for name, value in tensors.items() if name != POSITIONS}, path,
                "fetch it again, or give the settings of this network")
    return {name: ours(name, tensors[keys[name]].float(), network).contiguous() for name in state}
