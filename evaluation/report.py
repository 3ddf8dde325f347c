"""The table of what a run's folder holds: training, samples, likelihood; as Markdown."""

import json
from pathlib import Path
from typing import Any


def report(run: Path) -> str:
    """One row for each result, with its figures and its file. Raises FileNotFoundError where there is nothing."""
    rows = [*_training(run), *_samples(run), *_likelihood(run)]
    if not rows:
        raise FileNotFoundError(f"{run} holds no results yet (--workdir)")
    header = ("what", "figure", "evaluations", "seconds", "file")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, tuple("-" * w for w in widths), *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
                     for line in lines)


def _training(run: Path) -> list[tuple[str, ...]]:
    path = run / "stats.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines:
        return []
    held_out = next((f", held out {line['held_out_loss']:.4f}" for line in reversed(lines) if "held_out_loss" in line),
                    "")
    figure = f"step {lines[-1]['step']}, loss {lines[-1]['loss']:.4f}{held_out}"
    return [("training", figure, "", f"{lines[-1]['seconds']:.0f}", str(path))]


def _samples(run: Path) -> list[tuple[str, ...]]:
    found: list[tuple[dict[str, Any], Path]] = [
        (json.loads(path.read_text()), path) for path in sorted((run / "samples").glob("*.json"))]
    return [(f"{s['sampler']}", f"{s['num_samples']} samples", f"{s['nfe']:g}", f"{s['seconds']:.1f}",
             str(path.with_suffix(".png"))) for s, path in found]


def _likelihood(run: Path) -> list[tuple[str, ...]]:
    path = run / "likelihood" / "summary.json"
    if not path.exists():
        return []
    s = json.loads(path.read_text())
    figure = f"{s['bits_per_dim']:.4f} +- {s['standard_error']:.4f} bits/dim, {s['num_images']} {s['split']} examples"
    return [("likelihood", figure, f"{s['nfe']:g}", f"{s['seconds']:.1f}", str(path))]
