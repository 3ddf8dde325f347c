"""The exponential moving average against its recursion by hand."""

import pytest
import torch
from torch import nn

from scorefield.models import EMA
from scorefield.numerics.errors import ArgumentError


def with_weight(value):
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[value, -2 * value]]))
        network.bias.fill_(0.5 * value)
    return network


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_is_the_recursion_with_warm_up(decay):
    """After n updates the decay in force is min(decay, (1 + n) / (10 + n))."""
    values = [1.0, 3.0, -2.0, 0.5, 4.0, 4.0, -1.0, 2.5] * 5
    ema, average = EMA(with_weight(7.0), decay), 7.0
    for n, value in enumerate(values, 1):
        ema.update(with_weight(value))
        weight = min(decay, (1 + n) / (10 + n))
        average = weight * average + (1 - weight) * value
        expected = torch.tensor([[average, -2 * average]])
        torch.testing.assert_close(ema.module.weight, expected, rtol=1e-5, atol=1e-6)
        assert float(ema.module.bias) == pytest.approx(0.5 * average, rel=1e-5, abs=1e-6)
    assert ema.updates == 40


def test_a_decay_of_zero_is_a_copy():
    ema = EMA(with_weight(1.0), decay=0.0)
    ema.update(with_weight(-3.0))
    assert torch.equal(ema.module.weight, with_weight(-3.0).weight)


def test_the_random_start_is_forgotten_in_few_updates():
    ema = EMA(with_weight(1e6), decay=0.9999)
    for _ in range(100):
        ema.update(with_weight(1.0))
    assert float(ema.module.weight[0, 0]) == pytest.approx(1, abs=1e-3)      # without warm-up: 990,000


def test_buffers_are_copied():
    network = nn.BatchNorm1d(2)
    ema = EMA(network, decay=0.999)
    for seed in range(3):
        network(5 + torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)))
        ema.update(network)
        assert torch.equal(ema.module.running_mean, network.running_mean)
        assert torch.equal(ema.module.running_var, network.running_var)
        assert int(ema.module.num_batches_tracked) == seed + 1


def test_the_average_does_not_depend_on_what_requires_gradients():
    emas = [EMA(with_weight(2.0).requires_grad_(flag)) for flag in (True, False)]
    for ema, flag in zip(emas, (False, True), strict=True):
        ema.update(with_weight(5.0).requires_grad_(flag))
    assert torch.equal(emas[0].module.weight, emas[1].module.weight)
    for ema in emas:
        assert not any(p.requires_grad or p.grad_fn for p in ema.module.parameters())


def test_the_averaged_network_is_a_copy_in_evaluation_mode_and_leaves_the_network_alone():
    network = nn.Sequential(with_weight(1.0), nn.Dropout())
    ema = EMA(network, decay=0.5)
    assert type(ema.module) is nn.Sequential and not ema.module.training and network.training
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        network[0].weight.fill_(9.0)
    assert float(ema.module[0].weight[0, 0]) == 1
    ema.update(network)
    assert network[0].weight[0, 0].item() == 9 and not ema.module.training


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_decay_outside_zero_to_one_is_refused(decay):
    with pytest.raises(ArgumentError, match=rf"\[0, 1\), got {decay}$") as caught:
        EMA(with_weight(1.0), decay)
    assert caught.value.arguments == ("ema_decay",)
