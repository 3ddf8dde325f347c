"""Files: checksums of contents, and writing that leaves a whole file or folder, or none."""

import glob
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.numerics.locks import machine

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


def seal(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of named arrays, to be kept beside them in a file: NumPy's own checksums are renewed by whoever edits one."""
    hasher = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        hasher.update(f"{name} {array.dtype.str} {np.shape(value)} ".encode())
        hasher.update(array.data if array.dtype.kind in "biufc" and array.size else str(value).encode())
    return hasher.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as one .npz with their seal; the file is whole or not there."""
    write_atomically(path, lambda file: np.savez(file, seal=seal(arrays), **arrays))


def read_arrays(path: Path) -> dict[str, Any]:
    """What `write_arrays` wrote. Raises ValueError if it was edited, and errors of every type for damaged files."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}      # checks each array's checksum
    if str(arrays.pop("seal")) != seal(arrays):
        raise ValueError("its checksum is another")
    return arrays


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


class _Noting(io.FileIO):
    """A file that remembers why it could not be written: libraries such as torch raise another error in its place."""

    error: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def write_atomically(path: Path, write: Any) -> None:
    """Call write(file) on a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Raises OSError with `path` and the system's reason if that fails; what `path` held before is then as it was.
    """
    temporary, raw = temporary_beside(path), None
    try:
        raw = _Noting(temporary, "w")
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise told_of(path, error) from None
    except Exception:
        if raw is not None and raw.error is not None:
            raise told_of(path, raw.error) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path, kind: str = "tmp") -> Path:
    """A name for what this process writes before it becomes `path`. It says which process of which machine writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_tag()}.{kind}")


def _tag() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)(-(?P<tag>[0-9a-f]{8}))?\.(?P<kind>tmp|new|old)")
_DAY = 86400.0      # nobody writes one file for longer


def remove_leftovers(folder: Path, own: str = "") -> tuple[int, int]:
    """Remove what killed processes left of files and folders that they were writing in a folder and below it, and beside it
    under its name. Returns how many there were, and their bytes.

    own  a regular expression for the names of files that nobody but the caller writes now; for others, only what a process
         of this machine left that is dead, and what nobody has touched for a day
    """
    count = size = 0
    beside = [path for path in folder.parent.glob(f".{glob.escape(folder.name)}.*") if _TEMPORARY.fullmatch(path.name)]
    for place, folders, files in os.walk(folder):
        inside = [Path(place, name) for name in (*folders, *files) if _TEMPORARY.fullmatch(name)]
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
        for path in [*inside, *beside]:
            found = _TEMPORARY.fullmatch(path.name)
            assert found is not None
            if not (own and re.fullmatch(own, found["name"]) and path.parent == Path(place)) and not _is_dead(path, found):
                continue
            original = path.with_name(found["name"])
            if found["kind"] == "old" and not original.exists():      # moved aside for one that never came
                path.rename(original)
                continue
            count, size = count + 1, size + _bytes_of(path)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        beside = []
    return count, size


def _is_dead(path: Path, found: re.Match[str]) -> bool:
    """Whether nobody writes a temporary file or folder any more, as far as this machine can tell."""
    try:
        if time.time() - path.lstat().st_mtime > _DAY:
            return True
        if found["tag"] != _tag():
            return False
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def _bytes_of(path: Path) -> int:
    return sum(file.lstat().st_size for file in ([path] if not path.is_dir() else path.rglob("*")) if file.is_file())


def known_to_json(value: Any) -> Any:
    """A nested value as JSON returns it: sequences are lists. Numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {k: known_to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [known_to_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping. Numbers that are not finite become null, since JSON does not have them."""
    text = json.dumps(known_to_json(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


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
    temporary = temporary_beside(path)
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
