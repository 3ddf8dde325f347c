"""What tells a data set from another one, at a small part of the cost of reading it.

    {"train": {"examples": 1437, "shape": [1, 8, 8], "type": "uint8", "digest": "5f1c...", "of": "all"}, "test": {...}}

The digest is SHA-256 of examples and their conditions in their order: of all that lie in memory; else of SAMPLED examples,
evenly spaced from the first to the last, and, where each example is a file, of the names of all files and the sizes of up
to SIZED of them. Paths of folders and times of files do not count, so data may be moved and copied. What it does not see: a
file on disk whose content changes while its size stays, unless it is among those that are read.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset, Examples, Split
from scorefield.data.degradations import Degraded

SAMPLED, SIZED = 64, 4096
_CHUNK = 1 << 26      # bytes of examples at a time


def fingerprint(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The fingerprint of both splits, and of those of the target of a pair, as "target_train" and "target_test".

        fingerprint(load_dataset(config.data))["train"]["examples"]
    """
    found = {name: _of(getattr(dataset, name)) for name in ("train", "test")}
    if dataset.target is not None:
        found |= {f"target_{name}": part for name, part in fingerprint(dataset.target).items()}
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between two fingerprints of one data set, in words; "" if nothing does."""
    words = []
    for name in dict.fromkeys(("train", "test", *before, *after)):
        old, new = before.get(name) or {}, after.get(name) or {}
        if old.get("examples") != new.get("examples"):
            words.append(f"{name} has {new.get('examples')} examples, not {old.get('examples')}")
        elif differing := [key for key in ("shape", "type") if old.get(key) != new.get(key)]:
            key = differing[0]
            words.append(f"{name} has examples of {key} {new.get(key)}, not {old.get(key)}")
        elif old.get("of") == new.get("of") and old.get("digest") != new.get("digest"):
            words.append(f"{name} has other examples, or another order of them")
    return "; ".join(words)


def _of(split: Split) -> dict[str, Any]:
    split = split.split if isinstance(split, Degraded) else split      # what is made of examples says nothing new
    n, hasher = len(split), hashlib.sha256()
    if n == 0:
        return {"examples": 0}
    first = split[torch.arange(1)][0]
    described = {"examples": n, "shape": list(first.shape[1:]), "type": str(first.dtype).removeprefix("torch.")}
    if getattr(split, "in_memory", False):
        rows = max(1, _CHUNK // max(1, first.nbytes))
        for begin in range(0, n, rows):
            _hash(hasher, *_rows(split, begin, min(begin + rows, n)))
        return described | {"digest": hasher.hexdigest(), "of": "all"}
    part = _spaced(n, SAMPLED)
    _add(hasher, split, part)
    again = hashlib.sha256()
    _add(again, split, part[:2])
    once = hashlib.sha256()
    _add(once, split, part[:2])
    if again.digest() != once.digest():      # examples that are drawn anew at each reading
        return described | {"digest": "", "of": "their number"}
    if files := getattr(getattr(split, "data", None), "files", None):
        sizes = [os.stat(files[i]).st_size for i in _spaced(n, SIZED).tolist()]
        names = b"\0".join(os.fsencode(os.path.basename(file)) for file in files)
        hasher.update(names + str(sizes).encode())
        return described | {"digest": hasher.hexdigest(), "of": f"{len(part)} examples, names and sizes"}
    return described | {"digest": hasher.hexdigest(), "of": f"{len(part)} examples"}


def _spaced(n: int, most: int) -> Tensor:
    """Indices 0 .. n-1, or that many of them, evenly spaced with both ends."""
    return torch.arange(n) if n <= most else torch.arange(most) * (n - 1) // (most - 1)


def _rows(split: Split, begin: int, end: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The examples begin .. end-1, without a copy where that can be had."""
    if isinstance(split, Examples) and isinstance(split.data, Tensor):
        return split.data[begin:end], {name: values[begin:end] for name, values in split.condition.items()}
    return split[torch.arange(begin, end)]


def _add(hasher: Any, split: Split, index: Tensor) -> None:
    _hash(hasher, *split[index])


def _hash(hasher: Any, data: Tensor, condition: Mapping[str, Tensor]) -> None:
    for name, values in (("", data), *sorted(condition.items())):
        values = values.detach().cpu().contiguous()
        if values.dtype == torch.bfloat16:
            values = values.float()
        hasher.update(f"{name} {values.dtype} {tuple(values.shape[1:])}".encode())
        hasher.update(values.numpy().data if values.numel() else b"")
