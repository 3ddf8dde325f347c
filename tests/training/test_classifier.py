"""A classifier of noisy examples is an objective on the same loop (Dhariwal and Nichol 2021)."""

import json
import math

import pytest
import torch
from torch import nn

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.configs.loading import load_config
from scorefield.data import from_arrays, load_dataset, make_codec
from scorefield.numerics.processes import World
from scorefield.sde_lib import VPSDE
from scorefield.training import Batch, Batches, Classification, train
from scorefield.training.objectives.classifier import Noise

CPU = torch.device("cpu")
MEANS, STD, WEIGHTS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), 0.3, torch.tensor([0.2, 0.5, 0.3])


class Posterior(nn.Module):
    """log p(y given x_t) of a labelled mixture of Gaussians, off by `error`."""

    def __init__(self, sde, error=0.0):
        super().__init__()
        self.sde, self.error = sde, error

    def forward(self, x, t):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        variance = alpha.square() * STD**2 + sigma.square()
        squares = (x[:, None] - alpha[:, None] * MEANS).square().sum(-1) / variance
        return WEIGHTS.log() - 0.5 * squares + self.error * torch.stack([x[:, 0], x[:, 1], x.sum(1)], 1).sin()


def labelled(n):
    generator = torch.Generator().manual_seed(0)
    label = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return from_arrays(MEANS[label] + STD * torch.randn(n, 2, generator=generator), y_train=label)


def test_no_classifier_has_less_loss_than_the_exact_posterior():
    objective = Classification(VPSDE())
    batch, noise = Batches(labelled(20_000), make_codec(None), objective, 18_000, 0, CPU)(0)
    least, other = (objective.loss(Posterior(VPSDE(), error), batch, noise) for error in (0.0, 0.4))
    excess = other - least
    assert float(excess.mean()) > 3 * float(excess.std()) / math.sqrt(len(excess))


def test_the_loss_is_the_surprise_of_the_label_and_accuracy_that_it_is_likeliest():
    x, eps, t = torch.randn(6, 2), torch.randn(6, 2), torch.linspace(0.1, 0.9, 6).double()
    label, objective = torch.tensor([0, 1, 2, 0, 1, 2]), Classification(VPSDE())
    log_p = Posterior(VPSDE())(VPSDE().perturb(x, t, eps), t).log_softmax(1)
    batch, noise = Batch(x, {"label": label}), Noise(t, eps)
    torch.testing.assert_close(objective.loss(Posterior(VPSDE()), batch, noise), -log_p[torch.arange(6), label])
    assert torch.equal(objective.metrics(Posterior(VPSDE()), batch, noise)["accuracy"], (log_p.argmax(1) == label).double())


def test_processes_share_the_draw_of_a_single_one():
    whole, *shares = (Batches(labelled(64), make_codec(None), Classification(VPSDE()), 16, 0, CPU, world)(2)[1]
                      for world in (World(), World(0, 2), World(1, 2)))
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(one, torch.stack(parts, 1).flatten(0, 1))


def test_data_without_labels_are_refused():
    batches = Batches(load_dataset({"dataset": "swiss_roll", "size": 50}), make_codec(None), Classification(VPSDE()), 8, 0,
                      CPU)
    with pytest.raises(ValueError, match="needs labels"):
        batches(0)


@pytest.fixture(scope="module")
def digits_classifier(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "classifier"
    settings = {"training.steps": 300, "training.log_every": 100, "training.eval_every": 100, "training.batch_size": 64,
                "training.checkpoint_every": 300, "training.ema_decay": 0.98, "training.learning_rate": 4e-3,
                "training.precision": "fp32", "model.width": 16, "model.dropout": 0.0}
    return train("configs/digits_classifier.py", workdir=run, device="cpu", overrides=settings, progress=False)


def test_it_learns_the_digits_where_the_noise_is_low(digits_classifier):
    config, model = load_config("configs/digits_classifier.py"), load_denoiser(digits_classifier)
    k, condition = load_dataset(config.data).test[torch.arange(360)]
    x0 = make_codec(17, dequantize=True).encode(k, torch.rand(k.shape, generator=torch.Generator().manual_seed(0)))
    accuracy = {}
    for t in (0.05, 1.0):
        x = model.sde.perturb(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)))
        accuracy[t] = float((model(x, t).argmax(1) == condition["label"]).double().mean())
    assert accuracy[0.05] > 0.8      # 0.1 is chance
    assert accuracy[1.0] < 0.25      # where there is nothing to be seen


def test_the_log_has_its_accuracy_on_held_out_examples(digits_classifier):
    lines = [json.loads(line) for line in (digits_classifier / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out_loss"] < lines[0]["held_out_loss"] < math.log(10)
    assert 0.3 < lines[-1]["held_out_accuracy"] <= 1      # over all times


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    ends = []
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        for steps in stops:
            train("configs/digits_classifier.py", workdir=tmp_path / name, device="cpu", progress=False,
                  overrides={"training.steps": steps, "training.decay": "constant", "training.batch_size": 8,
                             "training.precision": "fp32", "model.width": 16})
        ends.append(read_state(newest_checkpoint(tmp_path / name)))
    for part in ("network", "ema"):
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])
