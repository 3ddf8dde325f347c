"""The files of mode likelihood with --classify: likelihood/classification.json, .csv and .png, and a line of figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.evaluation.score import Score


def write_classification(scores: Sequence[Score], label: Tensor, prior: Tensor, names: Sequence[str],
                         described: dict[str, Any], folder: Path, suffix: str = "") -> None:
    """Write what the scores of every class say of the examples, and print the accuracy.

    scores  one for each class; label (n,); prior (classes,); names of the classes
    suffix  what the files' names say of settings
    """
    from scorefield.evaluation import plots
    from scorefield.evaluation.classify import classify
    from scorefield.evaluation.names import name_of_place, whole
    from scorefield.evaluation.score import write_csv
    from scorefield.numerics.files import write_json

    result, first = classify(scores, label, prior), scores[0]
    scale = 1 / (first.dimensions * math.log(2))
    own = result.log_likelihood.gather(1, label[:, None])[:, 0]
    bits = {"bits_per_dim_given_label": own, "bits_per_dim": result.log_joint.logsumexp(1)}      # p(x) = sum_y p(y) p(x | y)
    figures = {name: first.offset - scale * float(log_prob.mean()) for name, log_prob in bits.items()}
    nfe, seconds = sum(score.nfe for score in scores), sum(score.seconds for score in scores)
    source = described.get("images") or described["split"]
    parts = [*([described["estimator"]] if described["estimator"] != "ode" else []), "classification",
             *([f"images_{name_of_place(source)}"] if "images" in described else [source] if source != "test" else [])]
    stem = folder / whole("_".join(parts) + suffix)
    folder.mkdir(exist_ok=True)
    write_csv(Path(f"{stem}.csv"), result.rows(names))
    plots.save_png(Path(f"{stem}.png"), plots.confusion(result.confusion, names))
    write_json(Path(f"{stem}.json"), result.summary() | figures | {
        "class_names": list(names), "nfe": nfe, "seconds": round(seconds, 3), "draws": len(first.log_prob)} | described)
    low, high = result.interval
    print(f"{len(label)} {source} examples: accuracy {result.accuracy:.4f} +- {result.standard_error:.4f} (95 % interval "
          f"{low:.4f} to {high:.4f}), calibration error {result.calibration_error:.4f}, mean confidence "
          f"{float(result.confidence.mean()):.4f}")
    print(f"{figures['bits_per_dim_given_label']:.4f} bits/dim given the label, {figures['bits_per_dim']:.4f} without; "
          f"{nfe:g} evaluations, {seconds:.1f} s; wrote {stem}{{.csv,.png,.json}}")
