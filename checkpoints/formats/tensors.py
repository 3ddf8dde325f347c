"""Reading .safetensors."""

import textwrap
from pathlib import Path

import safetensors
from torch import Tensor


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, on the CPU, and its metadata; ValueError if it is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}      # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, altered or not a .safetensors ({textwrap.shorten(str(error), 100)}); fetch "
                         "it again") from None
