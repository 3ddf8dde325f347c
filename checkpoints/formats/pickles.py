"""Read torch.save pickles of other programs: only tensors and plain values, and no code runs.

NumPy scalars are read too, as Python numbers, since published checkpoints store a learning rate as one; and the settings of
a command line, argparse.Namespace, as an object without methods. torch's own safe loader does the rest.
"""

import pickle
import re
import textwrap
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


class _NumberType:
    """Replaces numpy.dtype in a pickle: the type of one number, such as "f8"."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.type = np.dtype(code if code[:1] in ("f", "i", "u", "b") else "V")
        if self.type.kind not in "fiub":
            raise ValueError(f"a NumPy scalar of type {code!r:.20}")

    def __setstate__(self, state: tuple) -> None:      # the byte order; the rest is None for numbers
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


def _number(kind: Any, data: bytes) -> float | int | bool:
    """Replaces numpy's `scalar`: a Python number from its type and bytes."""
    if not isinstance(kind, _NumberType) or not isinstance(data, bytes) or len(data) != kind.type.itemsize:
        raise ValueError("a damaged NumPy scalar")
    return np.frombuffer(data, kind.type)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """Replaces codecs.encode, with which a pickle of protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r:.20}")
    return text.encode("latin1")


class _Settings:
    """Replaces argparse.Namespace."""


# The only names that a file may use besides torch's own, and what replaces them.
_ALLOWED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"), (_number, "numpy._core.multiarray.scalar"), (_NumberType, "numpy.dtype"),
    (_latin1, "_codecs.encode"), (_Settings, "argparse.Namespace"),
]


def read_pickle(path: Path) -> Any:
    """The content of a torch.save file, on the CPU. No code in the file runs.

    Raises OSError if the file cannot be read; ValueError if it is truncated, altered or of another kind, if it would run
    code, or if it holds anything but tensors and plain values.
    """
    with open(path, "rb") as file:
        if file.read(1) not in (b"P", b"\x80"):      # a zip archive, or a pickle
            raise ValueError(f"{path} is truncated, altered or not a checkpoint (torch.save does not write such files); "
                             "fetch it again, or give it the suffix of its own format")
        try:
            require_uncompressed(file)
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if (damaged := archive.testzip()) is not None:
                        raise ValueError(f"the checksum of {damaged} does not match")
            file.seek(0)
            with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
                warnings.simplefilter("ignore")      # about the protocol of another program's pickle
                state = torch.load(file, map_location="cpu", weights_only=True)
            require_owned(state)
        except Exception as error:      # the reader of damaged archives raises errors of every type
            text = " ".join(str(error).split()).partition("WeightsUnpickler error: ")
            reason = (text[2] or text[0]).partition(" Please ")[0]
            asked = re.search(r"(?:GLOBAL|class|function) ([\w.]*\w)", reason)
            if isinstance(error, pickle.UnpicklingError) and asked:
                raise ValueError(f"{path} is refused, and nothing of it was run: its pickle uses {asked[1]}, but only "
                                 "tensors, plain values and NumPy numbers are read; ask its author for a file of those alone"
                                 ) from None
            raise ValueError(f"{path} is truncated, altered or not a checkpoint "
                             f"({textwrap.shorten(reason, 100) or type(error).__name__}); fetch it again") from None
    return state


def require_uncompressed(file: Any) -> None:
    """ValueError if a file is an archive that holds more bytes than the file: torch.save compresses nothing."""
    size = file.seek(0, 2)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if (claimed := sum(entry.file_size for entry in archive.infolist())) > size:
                raise ValueError(f"its {size:,} bytes claim to hold {claimed:,}")
    file.seek(0)


def require_owned(state: Any) -> None:
    """ValueError for a tensor with more elements than its storage has, such as one of stride 0: a copy of it could ask for
    any amount of memory.
    """
    if isinstance(state, torch.Tensor):
        if state.layout is torch.strided and state.device.type == "cpu" and not state.is_quantized \
                and state.nbytes > state.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(state.shape)} claims more bytes than the file holds")
    elif isinstance(state, dict):
        for value in state.values():
            require_owned(value)
    elif isinstance(state, list | tuple):
        for value in state:
            require_owned(value)
