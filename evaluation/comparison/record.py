"""A comparison on disk: index.html, results.csv and results.json, and the pictures behind the page.

    index.html                    the page, which needs none of the others
    results.csv                   a line for each row, every figure with its interval, floor and numbers of samples
    results.json                  the same with all settings, what was left out, and the recommendation
    SAMPLER_BUDGET.png            the samples of each pair; exact_flow.png, the tight solution
    METRIC_over_evaluations.svg   the charts, and _over_seconds.svg
    likelihood.svg, likelihood.csv, density.png, score_*.png, paths.svg   where they apply

All files are written to a folder beside this one first. So if the disk fills, nothing is left half-written and an earlier
comparison stays. Then each is moved to its name, and files of the earlier comparison that this one has not are removed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.evaluation.page import build
from scorefield.numerics.files import temporary_beside, told_of, write_atomically, write_json
from scorefield.numerics.text import printable

if TYPE_CHECKING:
    from scorefield.evaluation.comparison.compare import Comparison, Row

PAGE, RESULTS = "index.html", "results.json"


def write(comparison: Comparison, folder: Path) -> Path:
    """Write all of it; returns the path of the page. OSError with the folder's path if that cannot be done."""
    page = build(comparison)
    files = page.files | {"results.csv": printable(table(comparison)).encode(), PAGE: page.html.encode()}
    if comparison.extras.likelihood:
        files["likelihood.csv"] = _likelihoods(comparison).encode()
    described = describe(comparison) | {"files": sorted([*files, RESULTS])}
    temporary = temporary_beside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, content in files.items():
            write_atomically(temporary / name, lambda file, content=content: file.write(content))
        write_json(temporary / RESULTS, described)
        before = _files_of(folder)
        for name in sorted(described["files"], key=lambda name: name == PAGE):      # the page last
            os.replace(temporary / name, folder / name)
        for name in before - set(described["files"]):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        if not any(folder.iterdir() if folder.is_dir() else ()):
            shutil.rmtree(folder, ignore_errors=True)
        raise told_of(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / PAGE


def _files_of(folder: Path) -> set[str]:
    """The files that the comparison in this folder says are its own."""
    try:
        names = json.loads((folder / RESULTS).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")}


def describe(comparison: Comparison) -> dict[str, Any]:
    """All figures and settings, as plain values."""
    recommended = comparison.recommendation
    return {
        "title": comparison.title, "facts": comparison.facts, "num_samples": comparison.n, "seed": comparison.seed,
        "device": comparison.device, "budgets": list(comparison.budgets), "metrics": list(comparison.metrics),
        "rows_are": comparison.words.rows, "counted": comparison.words.counted,
        "recommendation": {
            "sampler": recommended.row.name if recommended.row else None,
            "nfe": recommended.row.nfe if recommended.row else None,
            "budget": recommended.row.budget if recommended.row else None,
            "at_floor": recommended.at_floor, "words": str(recommended)},
        "rows": [_row(row) for row in comparison.rows],
        "left_out": [vars(out) for out in comparison.left_out],
        "seconds": {"sampling": round(comparison.sampling_seconds, 3), "other": round(comparison.other_seconds, 3)},
    }


def _row(row: Row) -> dict[str, Any]:
    settings = {name: value for name, value in row.sampler.settings.items() if name != "points"}
    return {"sampler": row.name, "budget": row.budget, "nfe": row.nfe, "seconds": row.seconds, "error": row.error,
            "accuracy": row.accuracy, "settings": settings, "figures": {k: vars(v) for k, v in row.figures.items()},
            "figures_of_as_many_as_held_out": {k: vars(v) for k, v in row.matched.items()}}


def table(comparison: Comparison) -> str:
    """The rows as CSV; empty where a number does not exist."""
    fields = ("value", "low", "high", "floor", "samples", "reference", "floor_samples")
    matched = [metric for metric in comparison.metrics if metric in comparison.rows[0].matched]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sampler", "budget", "nfe", "seconds", "error", "accuracy", "recommended",
                     *(f"{metric}_{field}".removesuffix("_value") for metric in comparison.metrics for field in fields),
                     *(f"{metric}_of_first{field}" for metric in matched for field in ("", "_low", "_high", "_samples"))])
    for row in comparison.rows:
        figures = [getattr(row.figures[metric], field) if metric in row.figures else None
                   for metric in comparison.metrics for field in fields]
        figures += [getattr(row.matched[metric], field) for metric in matched for field in fields[:3] + fields[4:5]]
        writer.writerow(["" if cell is None or cell != cell else cell for cell in (      # no number, or NaN
            row.name, row.budget, row.nfe, row.seconds, row.error, row.accuracy,
            int(row is comparison.recommendation.row), *figures)])
    return text.getvalue()


def _likelihoods(comparison: Comparison) -> str:
    lines = [f"{name},{i},{value!r}" for name, values in comparison.extras.likelihood.items()
             for i, value in enumerate(values)]
    return "\n".join(["set,index,bits_per_dim", *lines]) + "\n"
