"""A checkpoint that several processes write together: the folder checkpoints/step_00001000/ of a run.

    __0_0.distcp, __1_0.distcp, ...   the shares of process 0, 1, ..., by torch.distributed.checkpoint
    .metadata                         where each part of each tensor lies, by the same
    state.pt                          the plain values, and which tensor belongs where among them
    digest.json                       the checksum of each of these files

It is written beside its name, and renamed when all of it is there. Any number of processes reads it, in whole or each its
share. `.metadata` is a pickle, of which only what describes tensors is read, so that no file can run code.
"""

import json
import os
import pickle
import shutil
import textwrap
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scorefield.numerics.files import read_json, sha256_of, temporary_beside
from scorefield.numerics.processes import World

SEAL = "digest.json"
_KNOWN = {("collections", "OrderedDict"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("torch", "Size"),
          ("torch.serialization", "_get_layout"), ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
          *(("torch.distributed.checkpoint.metadata", name) for name in
            ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
             "_MEM_FORMAT_ENCODING"))}
Keys = tuple[str | int, ...]      # the keys that lead to a tensor in a nested mapping
Target = Callable[[Keys, torch.Size], Tensor | None]


def is_sealed(folder: Path) -> bool:
    """Whether a path is a folder of this format whose writing was finished."""
    return (folder / SEAL).is_file()


def begin(folder: Path, state: Mapping[str, Any], world: World, group: Any) -> Callable[[], Path | None]:
    """Copy the state, of which each process holds its share, to the host, and write it in the background.

    All processes must call this. It returns what waits for the writing and then seals and names the folder, to be called in
    any thread: the path in the first process, None in the others. Further updates do not change what is written.

    group  of processes with gloo, which nothing else uses meanwhile
    """
    from torch.distributed.checkpoint import FileSystemWriter, async_save

    temporary = folder.with_name(f".{folder.name}.0.tmp")      # 0: of no process alone
    _made(temporary, world, group)
    tensors, keys, plain = _taken_apart(state)
    future: Any = async_save(dict(tensors), storage_writer=FileSystemWriter(temporary), process_group=group)

    def finish() -> Path | None:
        future.result()
        if not world.first:
            return None
        torch.save({"plain": plain, "keys": keys}, temporary / "state.pt")
        files = sorted(path.name for path in temporary.iterdir())
        (temporary / SEAL).write_text(json.dumps({name: sha256_of(temporary / name) for name in files}, indent=2) + "\n")
        for path in temporary.iterdir():
            with open(path, "rb+") as written:
                os.fsync(written.fileno())
        if folder.exists():      # of the same step: written before, and trained again since
            shutil.rmtree(folder.rename(temporary_beside(folder)))
        temporary.rename(folder)
        return folder

    return finish


def _made(folder: Path, world: World, group: Any) -> None:
    """Make an empty folder for all processes; if the first one cannot, all raise OSError."""
    problem: OSError | None = None
    if world.first:
        try:
            shutil.rmtree(folder, ignore_errors=True)      # of a run that was killed
            folder.mkdir(parents=True)
        except OSError as error:
            problem = error
    failed = torch.tensor(float(problem is not None))
    dist.all_reduce(failed, group=group)
    if failed:
        raise problem or OSError(f"the first process could not make {folder}")


def read(folder: Path, target: Target | None = None, verify: bool = True) -> dict[str, Any]:
    """The state that was written, on the CPU, in whole or as this process's share.

    target  of the keys and the shape of a tensor: a tensor, such as a share, like which it shall be; None: a whole one
    verify  whether to compare the files with their checksums

    Raises ValueError, which says what is wrong, if a file is missing, altered or of another program.
    """
    if verify:
        _require_unaltered(folder)
    try:
        return _read(folder, target or (lambda keys, shape: None))
    except OSError:
        raise
    except Exception as error:      # the readers of damaged files raise errors of every type
        raise ValueError(f"{folder} is damaged or not a checkpoint ({textwrap.shorten(str(error), 100)})") from None


def _read(folder: Path, target: Target) -> dict[str, Any]:
    from torch.distributed.checkpoint import load

    told = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    reader = _reader(folder)
    described, room = reader.read_metadata().state_dict_metadata, sum(p.stat().st_size for p in folder.iterdir())
    if described.keys() != told["keys"].keys():
        raise ValueError("its parts name different tensors")
    if sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in described.values()) > room:
        raise ValueError("it describes more than it holds")
    tensors: dict[str, Any] = {}
    for name, entry in described.items():
        like = target(tuple(told["keys"][name]), entry.size)
        tensors[name] = (torch.empty(entry.size, dtype=entry.properties.dtype) if like is None
                         else torch.empty_like(like, dtype=entry.properties.dtype))
    with warnings.catch_warnings():      # it says what it was told, that each process reads alone
        warnings.simplefilter("ignore")
        load(tensors, storage_reader=reader, no_dist=True)
    state = told["plain"]
    for name, keys in told["keys"].items():
        place = state
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = tensors[name]
    return state


def _taken_apart(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, list[str | int]], dict[Any, Any]]:
    """The tensors of a nested mapping by names, the keys that lead to each, and the mapping with None in their places."""
    tensors, keys = dict[str, Tensor](), dict[str, list[str | int]]()

    def plain(value: Any, path: Keys) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, Tensor):
            name = "/".join(map(str, path))
            tensors[name], keys[name] = value.detach(), list(path)
            return None
        return value

    return tensors, keys, plain(state, ())


def _require_unaltered(folder: Path) -> None:
    known = read_json(folder / SEAL)
    there = {path.name for path in folder.iterdir()} - {SEAL}
    if missing := {"state.pt", ".metadata", *known} - there:
        raise ValueError(f"{folder} is damaged: it lacks {', '.join(sorted(missing))}")
    for name in sorted(there):
        if sha256_of(folder / name) != known.get(name):
            raise ValueError(f"{folder / name} is damaged: it does not match its checksum")


class _Unpickler(pickle.Unpickler):
    """Reads what describes tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        """FileSystemReader, but its pickle cannot run code, and it reads no file elsewhere."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with open(folder / ".metadata", "rb") as file:
                metadata = _Unpickler(file).load()
            if any(Path(place.relative_path).name != str(place.relative_path) for place in metadata.storage_data.values()):
                raise ValueError("it names files elsewhere")
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(folder)
