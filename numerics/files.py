"""Files: checksums of contents, and writing that leaves a whole file or folder, or none."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIGEST = "sha256"      # the key of a checkpoint that holds the checksum of all other content


def digest(state: Any) -> str:
    """SHA-256 over nested mappings and sequences of tensors and plain values: names, types, shapes and contents."""
    hasher = hashlib.sha256()

    def note(text: str) -> None:      # with its length, so that two different lists of texts never give the same bytes
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


def json_digest(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """SHA-256 of a plain value as JSON; `default` makes plain what JSON does not have."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents; of a folder, of the names and contents of the files in it."""
    if path.is_dir():
        return json_digest({file.name: sha256_of(file) for file in path.iterdir()})
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """The mapping in a file; if it is damaged, a ValueError whose message ends with `advice`."""
    try:
        content = json.loads(path.read_text())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({textwrap.shorten(str(error), 100)}){advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it does not hold a mapping){advice}")
    return content


def write_atomically(path: Path, write: Any) -> None:
    """Call write(file) on a temporary file beside `path`, flush it to disk, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise told_of(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping. Numbers that are not finite become null, since JSON does not have them."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: known(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [known(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_atomically(path, lambda file: file.write((json.dumps(known(content), indent=2, allow_nan=False) + "\n").encode()))


def told_of(path: Path, error: OSError) -> OSError:
    """The error of a temporary file, with the path that the caller asked for."""
    return error if error.errno is None else OSError(error.errno, error.strerror, str(path))


@contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """A name of a file or folder for libraries that take UTF-8 alone: its own, or that of a link that exists meanwhile."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, f"link{os.fsencode(path.suffix).decode('ascii', 'ignore')}")
            os.symlink(path.resolve(), link)
            yield link
    else:
        yield str(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill. Afterwards it is flushed to disk and renamed to `path`.

    Raises ValueError if `path` exists and is not empty, or is the current folder.
    """
    path = Path(os.path.expanduser(path)).resolve()
    if path == Path.cwd():
        raise ValueError(f"{path} is the current folder; choose another one")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty; choose another folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
        if path.exists():
            path.rmdir()      # not every system can rename onto an empty folder
        temporary.rename(path)
    except OSError as error:
        raise told_of(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
