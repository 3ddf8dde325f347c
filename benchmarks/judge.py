"""A classifier of clean digits that judges samples: it has never seen noise, and guides nothing.

    python -m benchmarks.judge

trains it in about half a minute, and prints its accuracy on the 360 held-out digits. Its 64 features are where the Frechet
distance is taken (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3):

    d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.data import load_dataset

LEVELS, STEPS, BATCH = 17, 1500, 128


class Judge(nn.Module):
    """Pictures (batch, 1, 8, 8) in [0, 1] to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((1, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout(0.3))
        self.hidden = nn.Linear(64 * 16, 64)
        self.logits = nn.Linear(64, 10)

    def features(self, pictures: Tensor) -> Tensor:
        """(batch, 64)."""
        return F.relu(self.hidden(self.convolutions(pictures).flatten(1)))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.logits(F.dropout(self.features(pictures), 0.3, self.training))


def as_pictures(levels: Tensor) -> Tensor:
    """Integer levels (batch, 1, 8, 8) as numbers in [0, 1]."""
    return levels.float() / (LEVELS - 1)


def train_judge(seed: int = 0) -> tuple[Judge, float]:
    """A judge trained on the 1,437 training digits, each shifted by up to a pixel, and its held-out accuracy."""
    data = load_dataset({"dataset": "digits"})
    (train, of_train), (test, of_test) = (split[torch.arange(len(split))] for split in (data.train, data.test))
    torch.manual_seed(seed)
    judge, generator = Judge(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    padded = F.pad(as_pictures(train), (1, 1, 1, 1))
    for _ in range(STEPS):
        index = torch.randint(len(train), (BATCH,), generator=generator)
        down, right = torch.randint(3, (2,), generator=generator).tolist()
        loss = F.cross_entropy(judge(padded[index, :, down:down + 8, right:right + 8]), of_train["label"][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    judge.eval()
    with torch.no_grad():
        accuracy = float((judge(as_pictures(test)).argmax(1) == of_test["label"]).double().mean())
    return judge, accuracy


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """d^2 between the Gaussians of two sets of features (n, D) and (m, D)."""
    a, b = a.double(), b.double()
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross)


if __name__ == "__main__":
    accuracies = [train_judge(seed)[1] for seed in range(3)]
    print("accuracy on the 360 held-out digits, 3 seeds:", ", ".join(f"{accuracy:.4f}" for accuracy in accuracies))
