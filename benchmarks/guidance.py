"""What the scale of guidance does to the digits: accuracy, spread within a class and Frechet distance against the scale.

    python -m benchmarks.guidance [--run runs/vp_digits_labels] [--classifier runs/digits_classifier] [--seeds 3]
        [--scales 0 1 3] [--interval 0.1 0.6] [--threshold dynamic] [--picture docs/images/guidance_curve.png]

For each scale, 1,000 samples a seed, 100 of each class, with sampler `auto` in 20 steps. A judge (judge.py), trained on
clean digits and independent of what guides, says which digit each sample is. Reported are

    accuracy   share of the samples that it takes for the digit that was asked for, and Wilson's 95 % interval
    spread     within a class: the root of the mean over classes and features of the variance of the judge's features
    Frechet    distance of the judge's features to those of the 1,437 training digits; the mean over seeds, and their range
    outside    share of the pixels outside of the range [-1, 1]

The rows of held-out digits are the floor. Writes docs/images/guidance_curve.png with --picture.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.judge import as_pictures, frechet_distance, train_judge
from scorefield.checkpoints import load_denoiser
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation import draw
from scorefield.guidance import guided
from scorefield.samplers import make_sampler

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SAMPLES, CLASSES = 1000, 10


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of n (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def spread(features: Tensor, label: Tensor) -> float:
    """Root of the mean variance of the features (n, D) within a class."""
    return math.sqrt(sum(float(features[label == y].var(0).mean()) for y in range(CLASSES)) / CLASSES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/vp_digits_labels")
    parser.add_argument("--classifier")
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--threshold", choices=("static", "dynamic"))
    parser.add_argument("--interval", type=float, nargs=2)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--gallery", type=Path, help="draw a row of digits for each kind of guidance here, and stop")
    options = parser.parse_args()
    if options.gallery:
        gallery(options.run, options.classifier or "runs/digits_classifier", options.gallery)
        return
    judge, accuracy = train_judge()
    print(f"judge: {accuracy:.2%} of the 360 held-out digits")
    data = load_dataset({"dataset": "digits"})
    with torch.no_grad():
        of_train = judge.features(as_pictures(data.train[torch.arange(len(data.train))][0]))
        test, condition = data.test[torch.arange(len(data.test))]
        of_test = judge.features(as_pictures(test))
    print(f"held-out digits: spread {spread(of_test, condition['label']):.3f}, "
          f"Frechet {frechet_distance(of_test, of_train):.2f} (360 pictures; the floor)")
    model = load_denoiser(options.run)
    classifier = load_denoiser(options.classifier) if options.classifier else None
    codec, sampler = make_codec(17, dequantize=True), make_sampler(options.sampler, steps=options.steps)
    label = torch.arange(SAMPLES) % CLASSES
    print(f"{'scale':>6} {'accuracy':>9} {'95 % interval':>17} {'spread':>7} {'Frechet':>8} {'range':>13} {'NFE':>4} "
          "outside")
    rows = []
    for scale in options.scales:
        right, distances, spreads, outside, nfe = 0, [], [], [], 0.0
        for seed in range(options.seeds):
            def of_batch(batch: range, scale: float = scale):
                if classifier is not None:      # which alone knows the label
                    chosen = {"classifier": classifier, "classifier_scale": scale,
                              "scale": 0.0 if model.takes.names else None}
                else:
                    chosen = {"scale": scale, "interval": tuple(options.interval) if options.interval else None}
                if scale in (0, 1):
                    chosen.pop("interval", None)
                return guided(model, label[batch.start:batch.stop], threshold=options.threshold, **chosen)

            samples = draw(of_batch, sampler, (1, 8, 8), SAMPLES, seed, 250, progress=False)
            with torch.no_grad():
                pictures = as_pictures(codec.decode(samples.x))
                features = judge.features(pictures)
                right += int((judge(pictures).argmax(1) == label).sum())
            distances.append(frechet_distance(features, of_train))
            spreads.append(spread(features, label))
            outside.append(float((samples.x.abs() > 1).double().mean()))
            nfe = samples.nfe
        n = SAMPLES * options.seeds
        low, high = wilson(right / n, n)
        mean = sum(distances) / len(distances)
        rows.append((scale, right / n, sum(spreads) / len(spreads), mean))
        print(f"{scale:6g} {right / n:9.2%} {low:8.2%} {high:8.2%} {rows[-1][2]:7.3f} {mean:8.2f} {min(distances):6.2f} "
              f"{max(distances):6.2f} {nfe:4g} {sum(outside) / len(outside):.3%}", flush=True)
    if options.picture:
        _draw(rows, options.picture)


def gallery(run: str, classifier: str, path: Path) -> None:
    """A row of digits, 0 to 9 twice, for each kind of guidance, from the same noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    model, judge = load_denoiser(run), load_denoiser(classifier)
    kinds: dict[str, dict[str, Any]] = {
        "no label": {"label": None}, "label": {}, "guidance 2": {"scale": 2.0}, "guidance 4": {"scale": 4.0},
        "guidance 4 in 0.1, 0.6": {"scale": 4.0, "interval": (0.1, 0.6)},
        "classifier, scale 4": {"scale": 0.0, "classifier": judge, "classifier_scale": 4.0},
        "guidance 8": {"scale": 8.0}, "guidance 8, static": {"scale": 8.0, "threshold": "static"},
        "guidance 8, dynamic": {"scale": 8.0, "threshold": "dynamic"}}
    label, sampler, codec = torch.arange(20) % CLASSES, make_sampler("auto", steps=20), make_codec(17, dequantize=True)
    figure = Figure(figsize=(10.5, 0.46 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, settings) in zip(figure.subplots(len(kinds), 1), kinds.items(), strict=True):
        guide = guided(model, **{"label": label, **settings})
        x = draw(guide, sampler, (1, 8, 8), len(label), 0, 20, progress=False).x
        axes.imshow(torch.nn.functional.pad(codec.decode(x)[:, 0], (0, 1)).permute(1, 0, 2).flatten(1), cmap="gray")
        axes.set_yticks([3.5], [name], fontsize=8)
        axes.set_xticks([])
    figure.savefig(path, dpi=90)


def _draw(rows: list[tuple[float, float, float, float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scales, accuracies, spreads, distances = zip(*rows, strict=True)
    figure = Figure(figsize=(9, 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, values, title in zip(figure.subplots(1, 3), (accuracies, spreads, distances), (
            "accuracy (judged by an independent classifier)", "spread within a class", "Frechet distance"), strict=True):
        axes.plot(scales, values, "o-")
        axes.set(xlabel="scale of guidance", title=title)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
