"""Mode restore: several answers for each measurement, such as a picture with a missing part, with their mean and spread."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.drawing import options as of_samplers
from scorefield.cli.drawing import parsed_options
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, EMA, SEED, STRICT, Flag
from scorefield.cli.low_res import rule_of
from scorefield.cli.measurements import DATA, LEARNED, THRESHOLD, Given, check, given_of, guided_of, label_of, name_of
from scorefield.cli.measurements import FLAGS as MEASUREMENT
from scorefield.numerics import stopping
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide
    from scorefield.cli.tuned import Restoring
    from scorefield.evaluation.restore import Restored
    from scorefield.models import Denoiser, ScoreModel
    from scorefield.samplers import Sampler

ROWS, BAD = 20, 3        # measurements that one picture shows; residual over noise that is too much
SUMMARY = "writes restore/NAME.png, .npz and .json: answers for damaged pictures, their mean, spread and figures"
FLAGS = (
    CHECKPOINT,
    *MEASUREMENT,
    Flag("method", str, None, "how the measurement guides, with options after colons, by default tmpd"),
    Flag("sampler", str, None, "which sampler, by default twisted_smc, whose particles are weighted; auto for learned "
                               "degradations"),
    Flag("samples", int, 8, "answers for each measurement"),
    Flag("label", str, None, "the class of all pictures: a number or a name"),
    THRESHOLD,
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
RENAMED = {"method": "solver_method"}      # options of samplers that have the same name as a flag above


def options() -> Mapping[str, Mapping[str, Flag]]:
    """The options of each sampler, by flag name."""
    return {name: {RENAMED.get(option, option): dataclasses.replace(flag, name=RENAMED.get(option, option))
                   for option, flag in own.items()} for name, own in of_samplers().items()}


def run(command: Command) -> None:
    """Restore, and write restore/NAME.npz, .json and .png in the run's folder, and pictures of their own in restore/NAME.

    Finished parts stay in restore/NAME.parts until all are done. So a killed command continues where it stopped, and the
    processes of torchrun share the work there.
    """
    from scorefield.data.latents import Latents
    from scorefield.data.measured import unit_of
    from scorefield.evaluation.latents import decoded, of_latents
    from scorefield.evaluation.names import changed, with_suffix
    from scorefield.evaluation.restoration import Restoration
    from scorefield.evaluation.restore import restored
    from scorefield.numerics.processes import launched, meet

    values, world = command.asked.values, launched()
    denoiser = command.denoiser()
    rule = rule_of(command) if "low_res" in denoiser.takes.names else None
    check(command, rule is not None)
    latents = command.codec if isinstance(command.codec, Latents) else None
    name = values["sampler"] or ("twisted_smc" if rule is None else "auto")
    method = values["method"] or ("tmpd" if rule is None else LEARNED)
    sampler = _sampler(command, name, denoiser)
    given = given_of(command, rule)
    with renamed(names={"noise_std": "noise", "y": "measurement"}):
        problem = given.problem if latents is None else of_latents(given.problem, latents)
        work = Restoration(guided_of(command, denoiser, rule is not None), problem, sampler, method, values["samples"],
                           values["seed"], values["batch_size"], command.device)
    settings = {"operator": values["operator"] if rule is None else rule.text, "method": method, "sampler": name,
                "settings": sampler.settings, "options": changed(sampler), "noise": values["noise"],
                "threshold": values["threshold"] if rule is None and latents is None else "none"}
    command.write_imported()
    stem, key = command.run / "restore" / _stem(command, settings), work.identity_of(_identity(command, given, settings))
    if (record := _finished(stem, key)) is not None:
        if world.first:
            _say(record, stem, "restored before")
        return
    folder = with_suffix(stem, ".parts")
    parts = work.begun(folder, key)
    with stopping.keeping(parts.kept):
        meet(world, [folder], command.device, key)
        work.run(parts, world, progress=True)
    if not world.first:
        return
    found = restored(work, parts) if latents is None else decoded(restored(work, parts), latents)
    with stopping.keeping(parts.kept):
        figures = found.figures(given.problem, given.truth, lambda x: unit_of(x, command.codec.of_pictures))
        _write(command, given, found, figures, settings | {"identity": key}, stem)
    shutil.rmtree(folder, ignore_errors=True)


def _identity(command: Command, given: Given, settings: Mapping[str, Any]) -> list[Any]:
    """All that the files depend on, beside what Restoration knows."""
    from scorefield.numerics.files import digest, sha256_of

    values = command.asked.values
    return [sha256_of(command.newest), command.stored, values["ema"], values["label"], settings["threshold"],
            settings["operator"], list(given.names), None if given.truth is None else digest(given.truth)]


def _finished(stem: Path, key: str) -> dict[str, Any] | None:
    """The record of a finished restoration of this identity whose files are there; None if there is none."""
    from scorefield.evaluation.names import with_suffix
    from scorefield.numerics.files import read_arrays, read_json

    try:
        record = read_json(with_suffix(stem, ".json"))
        if record["identity"] != key or not all((stem.parent / name).exists() for name in record["files"]):
            return None
        read_arrays(with_suffix(stem, ".npz"))
    except Exception:      # the parsers of damaged files raise errors of every type
        return None
    return record


def _sampler(command: Command, name: str, denoiser: Denoiser) -> Sampler:
    from scorefield.cli.tuned import tuned_for
    from scorefield.samplers import FITTED, make_sampler

    back = {flag: option for option, flag in RENAMED.items()}
    with renamed(names=RENAMED):
        settings = parsed_options(name, {back.get(flag, flag): text for flag, text in command.asked.texts.items()})
        if name not in FITTED:
            return make_sampler(name, **settings)
    if command.asked.values["operator"] is None:
        raise ArgumentError(f"sampler {name!r} restores by an operator, and this run by the degradation that it has "
                            "learned; choose another sampler", "sampler")
    return tuned_for(command, _guide(command, denoiser), name, settings, _restoring(command))


def _restoring(command: Command) -> Restoring:
    from scorefield.cli.tuned import Restoring

    values = command.asked.values
    return Restoring(values["operator"], values["method"] or "tmpd", values["noise"], values["threshold"] or "static")


def _guide(command: Command, denoiser: Denoiser) -> Guide:
    from scorefield.cli.guide import Guide

    label = label_of(command, denoiser)
    return Guide() if label is None else Guide([label], text=command.asked.values["label"])


def restoring_of(command: Command, denoiser: Denoiser) -> tuple[Restoring, Guide, Callable[[range], ScoreModel]]:
    """For mode tune: how a measurement guides, the label, and the models of samples, which restore measurements in turn."""
    import torch

    from scorefield.data.latents import Latents
    from scorefield.evaluation.latents import of_latents

    check(command, False)
    if "low_res" in denoiser.takes.names:
        raise ArgumentError("the run has learned to restore from its own degradation; leave out operator", "operator")
    problem, method = given_of(command, None).problem, command.asked.values["method"]
    if isinstance(command.codec, Latents):
        problem = of_latents(problem, command.codec)
    model = guided_of(command, denoiser, False)

    def of(numbers: range) -> ScoreModel:
        return problem.given(model, torch.tensor(numbers) % len(problem.y), method)

    return _restoring(command), _guide(command, denoiser), of


# ---- files -------------------------------------------------------------------------------------------------------------


def _write(command: Command, given: Given, restored: Restored, figures: dict[str, list[float]],
           settings: dict[str, Any], stem: Path) -> None:
    import numpy as np

    from scorefield.data import Pixels
    from scorefield.evaluation.names import with_suffix
    from scorefield.evaluation.restore import means
    from scorefield.numerics.files import write_arrays, write_json

    values, codec = command.asked.values, command.codec.of_pictures
    stem.parent.mkdir(exist_ok=True)
    answers = codec.decode(restored.x.flatten(0, 1)).unflatten(0, restored.x.shape[:2])
    arrays = {"x": answers, "mean": restored.mean, "std": restored.std, "y": given.problem.y.cpu()}
    arrays |= {} if given.truth is None else {"truth": given.truth}
    write_arrays(with_suffix(stem, ".npz"), {name: np.asarray(value) for name, value in arrays.items()})
    files = [with_suffix(stem, ".npz")]
    if isinstance(codec, Pixels) and restored.x.ndim == 5 and restored.x.shape[2] in (1, 3):
        files += _write_pictures(command, given, restored, stem)
    record = {**settings, "measurement": values["measurement"], "samples": values["samples"], "seed": values["seed"],
              "label": values["label"], "ema": values["ema"], "checkpoint": str(command.newest),
              "measurements": len(given.names), "evaluations": restored.evaluations, "seconds": round(restored.seconds, 3),
              "means": means(figures), "names": list(given.names), "figures": figures,
              "files": [str(path.relative_to(stem.parent)) for path in files]}
    write_json(with_suffix(stem, ".json"), record)
    _say(record, stem)


def _say(record: Mapping[str, Any], stem: Path, before: str = "") -> None:
    """A line of what was restored, its figures, and where it lies."""
    known = {name: value for name, value in record["means"].items() if value is not None}
    n, suffixes = record["measurements"], [".npz", ".json"]
    suffixes += [".png"] * any(name == f"{stem.name}.png" for name in record["files"])
    suffixes += ["/"] * any(name.startswith(f"{stem.name}/") for name in record["files"])
    print(f"{n} measurement{'s' * (n != 1)}{f', {before}' * bool(before)}, {record['samples']} answers each by "
          f"{record['sampler']} and {record['method']}: {record['evaluations']:g} evaluations each, "
          f"{record['seconds']:.1f} s; " + ", ".join(f"{name} {value:.4g}" for name, value in known.items()))
    if record["noise"] and (known.get("residual") or math.inf) > BAD * record["noise"]:
        print(f"the answers do not fit the measurement: their residual is {known.get('residual', math.nan):.3g}, and the "
              f"noise {record['noise']:g}; take twisted_smc, or sampler ddim with eta=1, or more steps")
    print(f"wrote {stem}{{{','.join(suffixes)}}}")


def _stem(command: Command, settings: Mapping[str, Any]) -> str:
    """The name of the files: what was measured and of what, and how it was restored."""
    from scorefield.evaluation.names import suffix_of, suffix_of_drawing, whole

    values = command.asked.values
    said = {"noise": values["noise"]} if values["noise"] else {}
    said |= {"threshold": "none"} if "threshold" in command.asked.given and values["threshold"] == "none" else {}
    said |= {"samples": values["samples"]} | ({"degraded": True} if values["degraded"] else {})
    said |= {} if values["num_images"] is None else {"num_images": values["num_images"]}
    said |= {} if values["label"] is None else {"label": values["label"]}
    drawing = suffix_of_drawing(values["seed"], values["ema"], "fp32", None, values["batch_size"])
    what = name_of(values["measurement"], settings["operator"], settings["method"])
    return whole(f"{what}_{settings['sampler']}" + suffix_of(settings["options"]) + suffix_of(said) + drawing)


def _write_pictures(command: Command, given: Given, restored: Restored, stem: Path) -> list[Path]:
    """The picture with a row for each measurement; and each picture as a file of its own, of a user's measurements. Their
    paths.
    """
    import torch

    from scorefield.data import Pixels
    from scorefield.data.measured import unit_of
    from scorefield.evaluation.names import with_suffix
    from scorefield.evaluation.plots import encode_png, image_grid, save_png
    from scorefield.numerics.files import write_atomically

    codec = command.codec.of_pictures
    assert isinstance(codec, Pixels)

    def levels(x: Tensor) -> Tensor:
        return (255 * unit_of(x.cpu(), codec).clamp(0, 1)).round().to(torch.uint8)

    std = (255 * (2 * restored.std / (codec.high - codec.low)).clamp(0, 1)).round().to(torch.uint8)
    simple = given.problem.simple()
    columns = {"truth": None if given.truth is None else levels(given.truth),
               "measured": None if simple is None else levels(simple), "mean": levels(restored.mean), "std": std}
    columns |= {f"{i:02d}": levels(restored.x[:, i]) for i in range(restored.x.shape[1])}
    shown = {name: tiles for name, tiles in columns.items() if tiles is not None}
    rows = min(ROWS, len(given.names))
    tiles = torch.stack([tile[:rows] for tile in shown.values()], 1).flatten(0, 1)
    written = [with_suffix(stem, ".png")]
    save_png(written[0], image_grid(tiles, 256, torch.arange(rows).repeat_interleave(len(shown))))
    if command.asked.values["measurement"] == DATA:
        return written
    for name in ("mean", "std", *(f"{i:02d}" for i in range(restored.x.shape[1]))):
        for of, picture in zip(given.names, shown[name], strict=True):
            path = stem / f"{of}_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = encode_png(picture)
            write_atomically(path, lambda file, content=content: file.write(content))
            written.append(path)
    return written
