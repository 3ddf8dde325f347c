"""The multilayer perceptron for points: shapes, start at zero, dependence, errors."""

import pytest
import torch
from helpers import randomised

from scorefield.models import MLP
from scorefield.models.layers import timestep_embedding
from scorefield.numerics.errors import ArgumentError


@pytest.mark.parametrize("event", [(2,), (5,), (1, 3, 2)], ids=str)
def test_the_output_has_the_shape_of_x_and_is_zero_at_initialisation(event):
    network = MLP(event, width=16, layers=2)
    x = torch.randn(4, *event, generator=torch.Generator().manual_seed(0))
    output = network(x, torch.linspace(0, 999, 4))
    assert output.shape == x.shape and not output.any()
    assert bool((randomised(network)(x, torch.linspace(0, 999, 4)) != 0).all())


def test_a_block_adds_time_between_its_two_linear_maps():
    network = randomised(MLP((2,), width=8, layers=1))
    x, time = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 5.0, 300.0])
    silu = torch.nn.functional.silu
    told = network.time[2](silu(network.time[0](timestep_embedding(time, 8))))
    h = network.first(x)
    h = h + network.outer[0](silu(network.inner[0](network.norms[0](h)) + told))
    torch.testing.assert_close(network(x, time), network.last(silu(h)))


def test_the_output_depends_on_x_and_time_of_its_own_sample_only():
    network = randomised(MLP((2,), width=16, layers=3))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    time = torch.tensor([1.0, 400.0, 900.0], requires_grad=True)
    of_x, of_time = torch.autograd.grad(network(x, time)[1].sum(), (x, time))
    assert bool((of_x[1] != 0).all()) and float(of_time[1]) != 0
    assert not of_x[[0, 2]].any() and not of_time[[0, 2]].any()


def test_every_parameter_takes_part():
    network = randomised(MLP((2,), width=8, layers=3))
    network(torch.ones(4, 2), torch.linspace(0, 999, 4)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize("settings", [{"width": 2}, {"width": 7}, {"width": 0}, {"width": -4}, {"layers": 0}], ids=str)
def test_sizes_out_of_range_are_refused_by_their_names(settings):
    with pytest.raises(ArgumentError, match="even width of at least 4 and at least 1 layer, got ") as caught:
        MLP((2,), **settings)
    assert caught.value.arguments == ("width", "layers")


def test_the_smallest_width_and_one_layer_will_do():
    assert MLP((2,), width=4, layers=1)(torch.zeros(1, 2), torch.zeros(1)).shape == (1, 2)
