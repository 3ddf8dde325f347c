"""Fetch a file of a data set once, whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tqdm import tqdm

from scorefield.data.damage import one_line
from scorefield.numerics.files import write_atomically
from scorefield.numerics.processes import launched

_CHUNK, _TIMEOUT = 2**20, 30      # bytes; seconds without an answer


def fetch(url: str, file: Path, sha256: str) -> None:
    """Download `url` to `file`, with progress, unless it is there already.

    Raises OSError of one line if the network fails or the content has another SHA-256. Nothing stays behind then.
    """
    once(file, lambda: _download(url, file, sha256))


def once(result: Path, make: Callable[[], None]) -> None:
    """Call `make`, which makes `result`, unless it exists. Of a machine's processes the first one does; the others wait."""
    if result.exists():
        return
    if launched().size == 1 or os.environ.get("LOCAL_RANK", "0") == "0":
        make()
    while not result.exists():      # torchrun stops this process if the first one fails
        time.sleep(0.5)


def _download(url: str, file: Path, sha256: str) -> None:
    def write(target: IO[bytes]) -> None:
        hasher = hashlib.sha256()
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as source:
            total = int(source.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=file.name, disable=None) as bar:
                while chunk := source.read(_CHUNK):
                    hasher.update(chunk)
                    target.write(chunk)
                    bar.update(len(chunk))
        if hasher.hexdigest() != sha256:
            raise OSError(f"the SHA-256 of what came is {hasher.hexdigest()}, expected {sha256}")

    print(f"downloading {url} to {file}", flush=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, write)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"the download of {url} failed ({one_line(error)})") from error
