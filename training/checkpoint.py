"""Checkpoints: checkpoints/step_00001000.pt in a run's folder, there whole or not at all. Read by models.serialization.
"""

import os
from pathlib import Path
from typing import Any

import torch

from models.serialization import DIGEST, digest


def write_atomically(path: Path, write: Any) -> None:
    """Call write(file) on a temporary file beside `path`, bring it to disk, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps, then remove all but the `keep` newest checkpoints."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    sealed = state | {DIGEST: digest(state)}
    write_atomically(path, lambda file: torch.save(sealed, file))
    for old in sorted(folder.glob("step_*.pt"))[:-keep]:
        old.unlink()
    return path
