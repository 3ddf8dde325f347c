"""The weights in a folder of diffusers: one file or shards with an index, plain or as a variant, .safetensors or .bin.

    diffusion_pytorch_model.safetensors, .bin                     one file
    diffusion_pytorch_model.fp16.safetensors                      a variant: other weights, or these in 16 bits
    diffusion_pytorch_model.safetensors.index.json                {"weight_map": {name of a tensor: file name of its shard}}
    diffusion_pytorch_model.safetensors.index.fp16.json           the same of a variant (.fp16.index.json in old folders)
    diffusion_pytorch_model-00001-of-00002.safetensors            a shard
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from scorefield.checkpoints.formats.pickles import read_pickle
from scorefield.checkpoints.formats.tensors import read_safetensors
from scorefield.numerics.files import read_json

BASE = "diffusion_pytorch_model"
SHARD_BYTES = 10 * 10**9      # of weights in a file that is written, as diffusers has it
_SHARD = re.compile(rf"{BASE}(?:\.([^./]+))?-(\d{{5}})-of-(\d{{5}})(?:\.([^./]+))?\.(safetensors|bin)")
_SINGLE = re.compile(rf"{BASE}(?:\.(?P<variant>[^./]+))?\.(?P<suffix>safetensors|bin)")
_INDEX = re.compile(rf"{BASE}\.(?P<suffix>safetensors|bin)(?:\.(?P<old>[^./]+))?\.index(?:\.(?P<variant>[^./]+))?\.json")


def variants(names: Collection[str]) -> dict[str, str]:
    """For each variant among the names of files ("" is the plain one) the file to read first: one file or an index.

    Safetensors go before .bin, and one file before shards.
    """
    found: dict[str, list[tuple[bool, bool, str]]] = {}
    for name in names:
        match = None if _SHARD.fullmatch(name) else _SINGLE.fullmatch(name) or _INDEX.fullmatch(name)
        if match:
            parts = match.groupdict()
            variant = parts["variant"] or parts.get("old") or ""
            found.setdefault(variant, []).append((parts["suffix"] == "bin", name.endswith(".json"), name))
    return {variant: min(files)[2] for variant, files in found.items()}


def chosen(names: Collection[str]) -> str | None:
    """The file to read first: the plain weights, else the variant fp16, else the only variant; None if that is not clear."""
    files = variants(names)
    return files.get("") or files.get("fp16") or (next(iter(files.values())) if len(files) == 1 else None)


def parts_of(name: str, names: Collection[str]) -> list[str]:
    """`name`, one of `variants(names)`, and if it is an index, all shards among `names` that may be its own."""
    index = _INDEX.fullmatch(name)
    if index is None:
        return [name]
    own = index["suffix"], index["variant"] or index["old"]
    shards = [(shard, match) for shard in names if (match := _SHARD.fullmatch(shard))]
    return [name, *(shard for shard, match in shards if (match[5], match[1] or match[4]) == own)]


def is_whole(files: Collection[str]) -> bool:
    """Whether what `parts_of` returned is one file, or an index and as many shards as their names say."""
    shards = [match for name in files if (match := _SHARD.fullmatch(name))]
    return len(files) == 1 and not shards and not any(map(_INDEX.fullmatch, files)) or (
        bool(shards) and {int(match[2]) for match in shards} == set(range(1, int(shards[0][3]) + 1)))


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a folder by name, and the file that holds or indexes them.

    Raises ValueError of one line if there are none or several variants and none of them is fp16, if a file is damaged or
    would run code, and if a shard is missing or does not hold exactly the tensors that the index says.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()]
    name = chosen(names)
    if name is None:
        found = sorted(file for file in names if file.startswith(BASE))
        if several := variants(names):
            raise ValueError(f"{folder} has the weights only as the variants {', '.join(sorted(several))}; keep the files "
                             "of the one that you mean")
        others = f", but {', '.join(found)}; save the weights again (save_pretrained)" if found else ""
        raise ValueError(f"{folder} has neither {BASE}.safetensors nor {BASE}.bin{others}")
    path = folder / name
    return (_sharded(path) if name.endswith(".json") else _of_file(path)), path


def _of_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    state = read_pickle(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, list(state)[:3])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a mapping of names to tensors, as diffusers writes it, but holds "
                         f"{found or 'nothing'}; give the weights alone (a Lightning checkpoint has them under state_dict)")
    return state


def _sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards of an index."""
    places = _weight_map(index)
    shards = sorted(set(places.values()))
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise ValueError(f"{index} lists {len(shards)} shards, but {', '.join(missing[:3])}"
                         f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''} not there; fetch what is missing")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        held = _of_file(index.parent / shard)
        listed = {name for name, place in places.items() if place == shard}
        if differing := sorted(listed ^ set(held), key=str):
            what = "lacks" if differing[0] in listed else "also holds"
            more = f" and differs in {len(differing) - 1} more" if len(differing) > 1 else ""
            raise ValueError(f"{index.parent / shard} does not fit {index.name}: it {what} {differing[0]}{more}; fetch both "
                             "again")
        tensors |= held
    return tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    """For the name of each tensor, the file name of its shard, which lies beside the index."""
    places: Any = read_json(index, "; fetch it again").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index} is damaged (its weight_map does not map names of tensors to files); fetch it again")
    for place in places.values():
        if place in ("", ".", "..") or set(place) & set("/\\:\0") or not place.endswith((".safetensors", ".bin")):
            raise ValueError(f"{index} is refused: its weight_map names {place!r:.100}, which is not a file of weights "
                             "beside it; fetch it again")
    return places


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write one .safetensors, or above SHARD_BYTES shards of at most that size (or one tensor) and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    alone = len(shards) == 1
    files = [f"{BASE}{'' if alone else f'-{i:05d}-of-{len(shards):05d}'}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        (folder / file).write_bytes(safetensors.torch.save(shard, {"format": "pt"}))
    if not alone:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{BASE}.safetensors.index.json").write_text(f"{json.dumps(index, indent=2, sort_keys=True)}\n")
