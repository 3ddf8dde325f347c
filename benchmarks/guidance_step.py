"""What a guided evaluation costs against an unguided one: `python -m benchmarks.guidance_step`.

Classifier-free guidance as one call on twice the batch and as two calls, and the evaluation with the label alone, side by
side in alternating rounds on one thread. The figures are medians over the rounds of the ratio to the unguided one. The rule
`doubles` of guidance/classifier_free.py comes from this table. Writes benchmarks/results/guidance_step.json.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from scorefield.guidance import classifier_free
from scorefield.guidance.classifier_free import doubles
from scorefield.models import Denoiser, UNet
from scorefield.models.conditions import Condition
from scorefield.numerics.devices import local_device, set_memory_format
from scorefield.sde_lib import VPSDE

RESULTS = Path(__file__).parent / "results"
CLASSES, ROUNDS, SECONDS = 10, 21, 0.15
DIGITS = {"image_size": 8, "channels": 1, "width": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": ()}
CIFAR = {"image_size": 32, "channels": 3, "multipliers": (1, 2, 2, 2), "num_blocks": 2}
CASES = [*(("digits, width 32", DIGITS, batch) for batch in (1, 4, 16, 64, 128)),
         *((f"32 x 32, width {width}", CIFAR | {"width": width}, batch) for width in (64, 128) for batch in (1, 8))]


class Labelled(nn.Module):
    """A U-Net that is told a label, at no cost worth measuring: a shift of its input."""

    conditions, classes = ("label",), CLASSES

    def __init__(self, channels: int, **sizes):
        super().__init__()
        self.network, self.shift = UNet(channels=channels, **sizes), nn.Embedding(CLASSES + 1, channels)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.network(x + self.shift(condition["label"])[:, :, None, None], time)


@torch.no_grad()
def measure(name: str, sizes: dict, batch: int, device: torch.device) -> dict:
    network = Labelled(**sizes).to(device)
    set_memory_format(network, "channels_last")
    model, t = Denoiser(network, VPSDE(), label_dropout=True).eval(), torch.tensor(0.5, dtype=torch.float64)
    x = torch.randn(batch, sizes["channels"], sizes["image_size"], sizes["image_size"], device=device)
    label = torch.arange(batch) % CLASSES
    models = {"unguided": model.given(label=label), "doubled": classifier_free(model, 2.0, batched=True, label=label),
              "two calls": classifier_free(model, 2.0, batched=False, label=label)}

    def seconds(way: str, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            models[way].eps(x, t)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    calls = max(1, round(SECONDS / min(seconds("unguided", 1) for _ in range(3))))
    rounds = [{way: seconds(way, calls) for way in models} for _ in range(ROUNDS)]
    row = {"what": name, "batch": batch, "elements": x.numel(), "rule": "doubled" if doubles(x) else "two calls",
           "unguided_ms": 1e3 * statistics.median(r["unguided"] for r in rounds)}
    return row | {way: statistics.median(r[way] / r["unguided"] for r in rounds) for way in ("doubled", "two calls")}


def main() -> None:
    torch.set_num_threads(1)
    device = local_device("auto")
    print("| network | batch | unguided, ms | doubled batch | two calls | the rule takes |\n|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        rows.append(row := measure(*case, device))
        print(f"| {row['what']} | {row['batch']} | {row['unguided_ms']:.2f} | {row['doubled']:.3f} | "
              f"{row['two calls']:.3f} | {row['rule']} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    results = {"threads": 1, "device": str(device), "rows": rows}
    (RESULTS / "guidance_step.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
