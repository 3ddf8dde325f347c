"""Read arrays in files. A file may be truncated, damaged or hostile. This raises an ArgumentError that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scorefield.data.damage import damage_named
from scorefield.data.picture_files import format_of
from scorefield.numerics.errors import ArgumentError

ARRAY_NAMES = ("x", "arr_0", "images")


def read_array(file: Path, argument: str = "path") -> np.ndarray:
    """The array of an .npy, or the only array of an .npz, or its first array with a name in ARRAY_NAMES.

    Raises ArgumentError for a file of another kind, that is damaged or would run code, or whose arrays have other names.
    """
    kind = _kind_of(file)
    if kind not in ("npy", "npz"):
        raise ArgumentError(f"{argument}: {file} is {kind}; give an .npy, an .npz or a folder of pictures", argument)
    with damage_named(file, argument), _no_objects():
        loaded = np.load(file)
    if isinstance(loaded, np.ndarray):
        return loaded
    with damage_named(file, argument), _no_objects(), loaded as arrays:
        names = list(arrays.files)
        name = next((name for name in (*ARRAY_NAMES, *names[:1] * (len(names) == 1)) if name in names), None)
        if name is not None:
            return arrays[name]
    raise ArgumentError(f"{argument}: {file} holds the arrays {', '.join(names) or '(none)'}; give one of them the name "
                        f"{' or '.join(ARRAY_NAMES)}", argument)


def _kind_of(file: Path) -> str:
    """What a file is by its content: "npy", "npz", or words that say what else."""
    with open(file, "rb") as opened:
        head = opened.read(256)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if picture := format_of(head):
        return f"one picture ({picture})"
    if not head:
        return "empty"
    text = not set(head) & set(range(9)) and b"\0" not in head
    return "a text" if text else "no array file"


@contextmanager
def _no_objects() -> Iterator[None]:
    """numpy refuses Python objects, which could run code, and advises to allow them; this does not."""
    try:
        yield
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError("it holds Python objects, which could run code; store an array of numbers") from None
        raise
