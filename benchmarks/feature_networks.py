"""Train the classifiers whose features the metrics compare, and write their weights to evaluation/metrics/weights.

    python -m benchmarks.feature_networks digits                # half a minute
    python -m benchmarks.feature_networks fashion_mnist         # three minutes; the data are Debian's dataset-fashion-mnist

Each is trained on the training examples alone, by AdamW with batch normalisation and dropout, on pictures shifted by up to a
pixel. The normalisation is folded into the convolutions, the features are scaled to a mean square of 1 over the training
examples, and the weights are rounded to float16. Another processor rounds otherwise, so the same command gives a network of
about the same accuracy there, not the same file.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from scorefield.data import load_dataset
from scorefield.evaluation.metrics.networks import DESIGNS, WEIGHTS, Design, SmallClassifier, accuracy, load_classifier

STEPS = {"digits": 2000, "fashion_mnist": 1500}
DROPOUT = {"digits": 0.3, "fashion_mnist": 0.1}
SHIFT, BATCH = 1, 128


class Trained(nn.Module):
    """The classifier with batch normalisation and dropout."""

    def __init__(self, design: Design, dropout: float):
        super().__init__()
        self.classifier, self.dropout = SmallClassifier(design), dropout
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in design.channels)

    def forward(self, pictures: Tensor) -> Tensor:
        part = self.classifier
        x = pictures.float() / (part.design.levels - 1)
        for convolution, norm, pool in zip(part.convolutions, self.norms, part.design.pools, strict=True):
            x = F.max_pool2d(F.relu(norm(convolution(x))), pool)
        x = F.dropout(x.flatten(1), self.dropout, self.training)
        return part.logits(F.dropout(F.relu(part.hidden(x)), self.dropout, self.training))

    @torch.no_grad()
    def folded(self, examples: Tensor) -> SmallClassifier:
        """The classifier that computes the same in evaluation, its features scaled over the examples and its weights
        rounded to float16."""
        for convolution, norm in zip(self.classifier.convolutions, self.norms, strict=True):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight *= scale[:, None, None, None]
            convolution.bias.copy_((convolution.bias - norm.running_mean) * scale + norm.bias)
        size = torch.cat([self.classifier(x)[0] for x in examples.split(1000)]).double().square().mean().sqrt()
        self.classifier.hidden.weight /= size
        self.classifier.hidden.bias /= size
        self.classifier.logits.weight *= size
        return self.classifier.half().float().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=tuple(DESIGNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry_run", action="store_true", help="write nothing")
    options = parser.parse_args()
    design, steps = DESIGNS[options.name], STEPS[options.name]
    data = load_dataset({"dataset": options.name})
    (train, of_train), (test, of_test) = (split[torch.arange(len(split))] for split in (data.train, data.test))
    torch.manual_seed(options.seed)
    network = Trained(design, DROPOUT[options.name]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    start, (height, width) = time.perf_counter(), design.shape[1:]
    padded = F.pad(train, (SHIFT,) * 4)
    for _ in range(steps):
        index = torch.randint(len(train), (BATCH,))
        down, right = torch.randint(2 * SHIFT + 1, (2,)).tolist()
        loss = F.cross_entropy(network(padded[index, :, down:down + height, right:right + width]), of_train["label"][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier = network.folded(train)
    score = accuracy(classifier, test, of_test["label"])
    of_its_own = accuracy(classifier, train, of_train['label'])
    print(f"accuracy {score:.4f} on {len(test)} held-out examples and {of_its_own:.4f} on "
          f"the {len(train)} training examples; {time.perf_counter() - start:.0f} s")
    if not options.dry_run:
        WEIGHTS.mkdir(exist_ok=True)
        path = WEIGHTS / f"{options.name}.safetensors"
        save_file({key: tensor.half().contiguous() for key, tensor in classifier.state_dict().items()}, path,
                  {"made_by": f"python -m benchmarks.feature_networks {options.name} --seed {options.seed}",
                   "accuracy": f"{score:.4f}", "torch": torch.__version__, "license": "MIT, as the project"})
        assert accuracy(load_classifier(options.name), test, of_test["label"]) == score
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
