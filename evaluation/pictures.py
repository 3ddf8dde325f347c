"""Samples as a folder of pictures, a file each, as other programs read them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from scorefield.evaluation.names import LONGEST
from scorefield.evaluation.plots import encode_png, to_bytes
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import temporary_beside, told_of

OURS = re.compile(r"[0-9]{8}\.png")


def write_pictures(folder: Path, samples: Iterable[tuple[Tensor, Tensor | None]], levels: int, names: Sequence[str] = ()
                   ) -> int:
    """Write batches of pictures as folder/00000000.png, ...; returns how many. Labelled ones go to a folder for each class.

    samples  batches (x, label): integers (B, C, H, W) in 0 .. levels-1 with C = 1 or 3, which are spread over 0 .. 255, and
             classes (B,) or None. A `SampleSet` is one
    names    of the classes. A class whose name a folder cannot have gets its number

    The folder is there whole, or as it was. One that holds anything but such pictures is refused with an ArgumentError.
    """
    refuse_foreign(folder)
    folders, written = _folders(names), 0
    new, old = (temporary_beside(folder, kind) for kind in ("new", "old"))
    try:
        new.mkdir()
        for x, label in samples:
            for i, pixels in enumerate(to_bytes(x, levels)):
                place = new if label is None else new / folders.get(int(label[i]), str(int(label[i])))
                place.mkdir(exist_ok=True)
                (place / f"{written:08d}.png").write_bytes(encode_png(pixels))
                written += 1
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise told_of(folder, error) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
    return written


def refuse_foreign(folder: Path) -> None:
    """Raise ArgumentError if the folder holds anything that `write_pictures` did not write there."""
    for place, folders, files in os.walk(folder):
        foreign = [name for name in files if not OURS.fullmatch(name)] + (folders if Path(place) != folder else [])
        if foreign:
            raise ArgumentError(f"{folder} is to be replaced by new pictures, but holds {Path(place, foreign[0])}, too; "
                                "move that elsewhere", "folder")


def _folders(names: Sequence[str]) -> dict[int, str]:
    """The name of the folder of each class that has a usable name; no two are the same in systems without capitals."""
    usable = {y: name for y, name in enumerate(names)
              if not {"/", "\\", "\0"} & set(name) and not name.startswith(".") and len(os.fsencode(name)) <= LONGEST}
    folded = [name.casefold() for name in usable.values()]
    return {y: name for y, name in usable.items()
            if folded.count(name.casefold()) == 1 and (not name.isdecimal() or name == str(y))}
