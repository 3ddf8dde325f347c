"""A table of the results in a run's folder: training, samples, likelihood; as Markdown."""

import json
import math
from pathlib import Path
from typing import Any

from scorefield.evaluation.evaluate import lines_of
from scorefield.evaluation.names import words_of_weights
from scorefield.training.stats import read_stats


def report(run: Path) -> str:
    """One row for each result, with its figures and its file. Raises FileNotFoundError if there are no results."""
    rows = [*_training(run), *_samples(run), *_evaluation(run), *_comparison(run), *_likelihood(run)]
    if not rows:
        raise FileNotFoundError(f"{run} holds no results yet")
    header = ("what", "figure", "evaluations", "seconds", "file")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, tuple("-" * w for w in widths), *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
                     for line in lines)


def _training(run: Path) -> list[tuple[str, ...]]:
    lines, damaged = read_stats(run)
    lines = [line for line in lines if all(isinstance(line.get(name), int | float) for name in ("loss", "seconds"))]
    if not lines:
        return []
    held_out = next((f", held out {line['held_out_loss']:.4f}" for line in reversed(lines) if "held_out_loss" in line),
                    "")
    figure = f"step {lines[-1]['step']}, loss {lines[-1]['loss']:.4f}{held_out}"
    figure += f"; {damaged} damaged line{'s'[:damaged > 1]} left out" if damaged else ""
    return [("training", figure, "", f"{lines[-1]['seconds']:.0f}", str(run / "stats.jsonl"))]


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def _samples(run: Path) -> list[tuple[str, ...]]:
    found: list[tuple[dict[str, Any], Path]] = [
        (_parse(path.read_text(), path), path) for path in sorted((run / "samples").glob("*.json"))]
    return [(_sampler(s), f"{s['num_samples']} samples{_guidance(s)}", f"{s['nfe']:.4g}", f"{s['seconds']:.1f}",
             _shown(path)) for s, path in found]


def _shown(record: Path) -> str:
    """The picture of the samples of a record; of those that mode evaluate drew, which have none, the samples."""
    stem = str(record).removesuffix(".json")
    return f"{stem}.png" if Path(f"{stem}.png").exists() else f"{stem}.npz"


def _sampler(s: dict[str, Any]) -> str:
    """The sampler and its options that are not the default, in words."""
    return " ".join([s["sampler"], *(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                                     for name, value in s.get("options", {}).items())])


def _evaluation(run: Path) -> list[tuple[str, ...]]:
    """A row for each metric of each evaluated checkpoint."""
    rows: list[tuple[str, ...]] = []
    for path in sorted((run / "evaluation").glob("*.json")):
        told = _parse(path.read_text(), path)
        what = f"examples of {told['images']}" if "images" in told else _sampler(told) + _guidance(told)
        for step, row in told.get("results", {}).items():
            of = f"{row['num_samples']} samples" + (f", step {step}" if step.isdecimal() else "")
            cost = ("" if row["nfe"] is None else f"{row['nfe']:.4g}", f"{row['seconds']:.1f}", str(path))
            rows += [(what, f"{line}, {of}", *cost) for line in lines_of(row)]
    return rows


def _guidance(s: dict[str, Any]) -> str:
    """What the record of samples says of labels, guidance, seed and weights, in words."""
    shown = {"guidance": "guidance", "guidance_interval": "in", "autoguidance": "away from",
             "classifier": "by classifier", "classifier_scale": "scale", "threshold": "threshold", "quantile": "quantile"}
    label = s.get("label")
    words = [] if not label else [f"label {label[0]}" if len(label) == 1 else f"{len(label)} labels"]
    words += [f"seed {seed}"] if (seed := s.get("seed")) else []
    words += [f"{word} weights" for word in words_of_weights(s.get("ema", True))]
    words += [str(s.get("precision"))] * (s.get("precision", "fp32") != "fp32")
    words += [f"{word} {s[name]:g}" if isinstance(s[name], float) else f"{word} {s[name]}"
              for name, word in shown.items() if name in s]
    return "".join(f", {word}" for word in words)


def _comparison(run: Path) -> list[tuple[str, ...]]:
    """A row for each page of mode compare: what it recommends."""
    rows: list[tuple[str, ...]] = []
    for path in sorted(run.glob("compare*/results.json")):
        s = _parse(path.read_text(), path)
        chosen, pairs = s["recommendation"], f"{len(s['rows'])} {s.get('rows_are', 'pairs of a sampler and a budget')}"
        told = f"{chosen['sampler']}, {'' if chosen['at_floor'] else 'not '}at the floor" if chosen["sampler"] else "none"
        told = chosen["sampler"] if s.get("counted") == "measurements" else told
        nfe, seconds = f"{chosen['nfe']:.4g}" if chosen["nfe"] else "", s["seconds"]["sampling"] + s["seconds"]["other"]
        rows.append((path.parent.name.replace("compare", "comparison", 1),
                     f"{told}; {pairs}, {s['num_samples']} {s.get('counted', 'samples')} each", nfe, f"{seconds:.1f}",
                     str(path.with_name("index.html"))))
    return rows


def _likelihood(run: Path) -> list[tuple[str, ...]]:
    return [_score(_parse(path.read_text(), path), path) for path in sorted((run / "likelihood").glob("*.json"))]


def _score(s: dict[str, Any], path: Path) -> tuple[str, ...]:
    what = "examples of " + s["images"] if s.get("images") else f"{s['split']} examples"
    if "accuracy" in s:
        figure = f"accuracy {s['accuracy']:.4f} +- {s['standard_error']:.4f}, {s['num_images']} {what}"
        return (path.stem, figure, f"{s['nfe']:.4g}", f"{s['seconds']:.1f}", str(path))
    if "label" in s:
        what += " given their labels" if s["label"] == "true" else f" given label {s['label']}"
    figure = f"{s['bits_per_dim']:.4f} +- {s['standard_error'] or math.nan:.4f} bits/dim, {s['num_images']} {what}"
    if "compare" in s:
        figure += f"; {s['compare']['bits_per_dim']:.4f} of {s['compare']['source']}, AUROC {s['auroc']:.4f}"
    name = f"likelihood {path.stem.removeprefix('summary').removeprefix('_')}".strip()
    return (name, figure, f"{s['nfe']:.4g}", f"{s['seconds']:.1f}", str(path))
