"""Reading checkpoints: nothing but tensors and plain values is ever unpickled, and what was altered is refused."""

import hashlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIGEST = "sha256"      # the key of a checkpoint under which the digest of all the rest stands


def digest(state: Any) -> str:
    """SHA-256 over nested mappings and sequences of tensors and plain values: names, types, shapes and contents."""
    hasher = hashlib.sha256()

    def note(text: str) -> None:      # with its length, so that no two lists of texts run together alike
        hasher.update(f"{len(text)}:{text}".encode())

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            note(f"{value.dtype} {tuple(value.shape)}")
            hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            note(f"mapping of {len(value)}")
            for key, item in value.items():
                note(repr(key))
                add(item)
        elif isinstance(value, list | tuple):
            note(f"sequence of {len(value)}")
            for item in value:
                add(item)
        else:
            note(repr(value))

    add(state)
    return hasher.hexdigest()


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder, or None."""
    return max((run / "checkpoints").glob("step_*.pt"), default=None)


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU, after comparing it with its digest: torch itself reads flipped bytes in
    silence. Raises ValueError for a truncated, altered or foreign file.
    """
    advice = "delete it to go on from the one before"
    with open(path, "rb") as file:      # what the system refuses is its own error
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:      # the reader of damaged archives raises errors of every type
            raise ValueError(f"checkpoint {path} is truncated, damaged or none ({textwrap.shorten(str(error), 100)}); "
                             f"{advice}") from None
    written = state.pop(DIGEST, None) if isinstance(state, dict) else None
    if written is None:
        raise ValueError(f"checkpoint {path} was not written by Scorefield: it has no checksum; {advice}")
    if written != digest(state):
        raise ValueError(f"checkpoint {path} is damaged: it does not match its checksum; {advice}")
    return state
