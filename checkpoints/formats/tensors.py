"""Reading .safetensors."""

import textwrap
from pathlib import Path

import safetensors
from torch import Tensor

from scorefield.numerics.files import utf8_name


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, on the CPU, and its metadata; ValueError if it is damaged."""
    try:
        with utf8_name(path) as name, safetensors.safe_open(name, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}      # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, altered or not a .safetensors ({textwrap.shorten(str(error), 100)}); fetch "
                         "it again") from None
