"""Which files below a folder are pictures. A file's content decides, never its name.

Hidden files and folders, and those in which a system keeps its own thumbnails, are not data. Linked folders are followed,
but no real file is taken twice, and no link leads back to a folder above it. What is left out is counted, with the reason.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from scorefield.numerics.errors import ArgumentError

PICTURE_SUFFIXES = (".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm",
                    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp")
# Folders that are not hidden by name: of macOS's archives, of Synology's and Windows' file systems.
_OF_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_HEAD = 64      # bytes that tell every format
# How a file of each format begins (regular expressions). A BMP's two letters are too few: the size of its header follows.
_BEGINNINGS = {
    "PNG": rb"\x89PNG\r\n\x1a\n", "JPEG": rb"\xff\xd8\xff", "GIF": rb"GIF8[79]a", "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]", "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "AVIF": rb"....ftypavi[fs]", "QOI": rb"qoif",
    "PPM": rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s"}
_FORMATS = {name: re.compile(beginning, re.DOTALL) for name, beginning in _BEGINNINGS.items()}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, such as the ._00.png of macOS, or one of a system's own."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def format_of(head: bytes) -> str | None:
    """The format of the picture whose file begins with these bytes: a name that Pillow knows, or None for anything else."""
    return next((name for name, beginning in _FORMATS.items() if beginning.match(head)), None)


def shown(name: object) -> str:
    """A file's name as text that any terminal can print, also where it is not UTF-8."""
    return os.fsencode(str(name)).decode(errors="replace")


@dataclass
class Found:
    """The pictures below a folder, and what was left out.

    files     in sorted order
    formats   how many files have each format
    left_out  how many files and folders were left out, by the reason
    real      the real paths of the files
    unread    linked folders that were not read, since their pictures are there without them
    """

    files: list[Path] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    real: set[str] = field(default_factory=set)
    unread: set[Path] = field(default_factory=set)

    def said(self, place: str) -> str:
        """One line: how many files were taken, and how many were left out for which reason."""
        taken = f"took {len(self.files):,} files as pictures{_listed(self.formats)}"
        return f"{place}: {taken}, left out {sum(self.left_out.values()):,}{_listed(self.left_out)}"


def _listed(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{reason} {n:,}' for reason, n in sorted(counts.items()))})" if counts else ""


def find_pictures(folder: Path, argument: str = "data.path") -> Found:
    """Every picture below `folder`.

        found = find_pictures(Path("pictures"))
        print(found.said("pictures"))

    The first bytes of every file are read. Raises ArgumentError for a file that has the name of a picture and is none; it
    names the file and `argument`, with which the user gave the folder.
    """
    files, found = _Walk(folder).run()
    for path, real, head in _heads(files):
        kind, suffix = format_of(head), path.suffix.lower()
        if kind is None and suffix in PICTURE_SUFFIXES:
            begins = f"begins with {head[:24]!r}" if head else "is empty"
            raise ArgumentError(f"{argument}: {shown(path)} is named as a picture, but {begins}, as no picture of a known "
                                f"format does ({', '.join(_FORMATS)}); repair or remove it", argument)
        if kind is None:
            found.left_out[shown(suffix) or "without a suffix"] += 1
        elif kind == "TIFF" and suffix and suffix not in PICTURE_SUFFIXES:
            found.left_out[f"{shown(suffix)}, a TIFF of its own kind"] += 1      # a camera's raw file shows its thumbnail
        else:
            found.files.append(path)
            found.real.add(real)
            found.formats[kind] += 1
    found.files.sort()
    return found


def count_pictures(folder: Path) -> int:
    """How many pictures there are below a folder that is not read."""
    return sum(format_of(head) is not None for _, _, head in _heads(_Walk(folder).run()[0]))


def _heads(files: Sequence[tuple[Path, str]]) -> Iterable[tuple[Path, str, bytes]]:
    """The first bytes of each file, read by several threads, since a disk or a network answers late."""
    def read(part: Sequence[tuple[Path, str]]) -> list[tuple[Path, str, bytes]]:
        result = []
        for path, real in part:
            with open(path, "rb", buffering=0) as file:
                result.append((path, real, file.read(_HEAD)))
        return result

    with ThreadPoolExecutor(8) as pool:
        for part in pool.map(read, [files[i:i + 256] for i in range(0, len(files), 256)]):
            yield from part


class _Walk:
    """One walk through a tree: real files first, then links in sorted order, so that a file keeps its own name."""

    def __init__(self, root: Path):
        self.root, self.found = root, Found()
        self.taken: dict[str, Path] = {}      # by their real paths
        self.read: set[str] = set()           # real paths of folders
        self.links: list[tuple[Path, str]] = []      # each with the real path of the folder that holds it

    def run(self) -> tuple[list[tuple[Path, str]], Found]:
        self._read(self.root, os.path.realpath(self.root))
        while self.links:
            links, self.links = sorted(self.links), []
            for link, inside in links:
                self._follow(link, inside)
        return [(path, real) for real, path in self.taken.items()], self.found

    def _read(self, folder: Path, real: str) -> None:
        waiting = [(folder, real)]
        while waiting:
            folder, real = waiting.pop()
            if real in self.read:      # below a linked folder
                self._leave_out("folders that were read already", folder)
                continue
            self.read.add(real)
            with os.scandir(folder) as entries:
                for entry in entries:
                    path, own = folder / entry.name, os.path.join(real, entry.name)
                    if is_hidden(entry.name):
                        self.found.left_out["hidden folders" if entry.is_dir() else "hidden files"] += 1
                    elif entry.is_symlink():
                        self.links.append((path, real))
                    elif entry.is_dir():
                        waiting.append((path, own))
                    elif entry.is_file():
                        self._take(path, own)
                    else:
                        self.found.left_out["no files: devices, sockets or pipes"] += 1

    def _follow(self, link: Path, inside: str) -> None:
        target = os.path.realpath(link)
        if os.path.isfile(target):
            self._take(link, target)
        elif not os.path.isdir(target):
            self.found.left_out["links that lead nowhere"] += 1
        elif os.path.join(inside, "").startswith(os.path.join(target, "")):
            self._leave_out("links back to a folder above", link)
        else:
            self._read(link, target)

    def _take(self, path: Path, real: str) -> None:
        if self.taken.setdefault(real, path) != path:
            self.found.left_out["links to files that were taken already"] += 1

    def _leave_out(self, reason: str, folder: Path) -> None:
        self.found.left_out[reason] += 1
        self.found.unread.add(folder)
