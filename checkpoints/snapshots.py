"""Snapshots of a run's power-function averages, snapshots/step_00001000.pt, and averages of other widths made from them.

A snapshot holds "step" and "averages": for each name "weights", "updates", the number t
of updates in the average, and "since", the step at which the average started. It has a checksum as a checkpoint has.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.checkpoints.formats.run import read_state
from scorefield.models.ema import gamma_of, parse_average
from scorefield.models.post_hoc import combination
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import DIGEST, digest, write_atomically

FAR = 0.1      # relative distance of profiles above which an average is not the one that was asked for
NAME = re.compile(r"step_(\d{8,})\.pt")


def snapshots_of(run: Path) -> list[tuple[int, Path]]:
    """The snapshots in a run's folder, by step."""
    return sorted((int(name[1]), path) for path in (run / "snapshots").glob("step_*.pt")
                  if (name := NAME.fullmatch(path.name)))


def write_snapshot(run: Path, step: int, averages: Mapping[str, Mapping[str, Any]], precision: str = "fp32") -> Path:
    """Write the states of averages (`EMA.state`) after `step` updates; in fp16, but for tensors that overflow there."""
    def small(tensor: Tensor) -> Tensor:
        half = tensor.half()
        return half if precision == "fp16" and bool(half.isfinite().all()) else tensor

    path = run / "snapshots" / f"step_{step:08d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "averages": {
        name: {**average, "weights": {key: small(tensor.detach().cpu()) for key, tensor in average["weights"].items()}}
        for name, average in averages.items()}}
    sealed = state | {DIGEST: digest(state)}
    write_atomically(path, lambda file: torch.save(sealed, file))
    return path


def drop_snapshots(run: Path, after: int) -> None:
    """Remove those of later steps, which a run that goes on from step `after` writes anew."""
    for step, path in snapshots_of(run):
        if step > after:
            path.unlink()


def reconstructed(run: Path, averages: Mapping[str, Mapping[str, Any]], name: str, trained: set[str]) -> dict[str, Tensor]:
    """The weights `trained` of the average `name`, such as "power0.13", at the end of the averages of a checkpoint.

    averages  the states of those that the checkpoint holds; those of the snapshots before it are combined with them
    trained   the names of the parameters that training changes

    Raises ArgumentError if there are none, or if their profiles do not combine to that of `name`.
    """
    powers = {key: average for key, average in averages.items() if key.startswith("power")}
    if not powers:
        raise ArgumentError(f"{run} holds no averages with a power function, of which {name} could be made; train with "
                            "training.averages=power0.05,power0.1 and training.snapshots_every", "average")
    longest = max(powers.values(), key=lambda average: average["updates"])
    end, since = longest["updates"], longest["since"]
    places: dict[tuple[Path | None, str], tuple[int, float]] = {}      # the profile of each average that may be used
    for path, found in [(None, powers), *((path, _outline(path)) for _, path in snapshots_of(run))]:
        for key, average in found.items():
            if average["since"] == since and 0 < average["updates"] < end + (path is None):
                places[path, key] = average["updates"], gamma_of(parse_average(key)[1])
    if not places:
        raise ArgumentError(f"{run} has no updates yet of which {name} could be made; train first", "average")
    x, distance = combination(list(places.values()), (end, gamma_of(parse_average(name)[1])))
    if distance > FAR:
        raise ArgumentError(f"{name} cannot be made of the {len(places)} averages in {run}: the nearest profile is "
                            f"{100 * distance:.0f} % away ({100 * FAR:.0f} % are allowed); take a width nearer to "
                            f"{', '.join(powers)}, or train with more snapshots (training.snapshots_every)", "average")
    total: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for path, _ in places):
        found = powers if path is None else read_state(path)["averages"]
        for factor, (where, key) in zip(x, places, strict=True):
            if where == path:
                for weight in found[key]["weights"].keys() & trained:
                    part = float(factor) * found[key]["weights"][weight].double()
                    total[weight] = part if weight not in total else total[weight] + part
    return {weight: tensor.to(longest["weights"][weight].dtype) for weight, tensor in total.items()}


def _outline(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The averages of a snapshot, with weights that are not read from the disk before they are used."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["averages"]
    except Exception:      # the reader of damaged archives raises errors of every type; this one says what is wrong
        return read_state(path)["averages"]
