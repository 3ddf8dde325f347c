"""The flow that dequantises: a density on the cube whatever its weights, and uniform noise to the bit at first."""

import math

import pytest
import torch

from scorefield.models import Dequantizer, UNet
from scorefield.models.networks.dequantizer import dequantizer_of
from scorefield.numerics.errors import ArgumentError
from tests.helpers import randomised


def flow(channels=1, scale=0.5):
    network = randomised(Dequantizer(channels, width=8)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network


def example(*shape, n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre, r = (torch.rand(n, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return 2 * centre - 1, r


def test_its_density_integrates_to_one_over_the_square():
    """By the trapezoidal rule over z = logit u, where the integrand is smooth and falls exponentially."""
    z = torch.linspace(-45, 45, 241, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 1, 2, 1)
    network = flow()
    with torch.no_grad():
        for centre in torch.tensor([[0.3, -0.5]], dtype=torch.float64):
            k = centre.view(1, 1, 2, 1).expand(len(grid), -1, -1, -1)
            r, log_q = network.inverse_of_logits(k, grid)
            slope = (torch.nn.functional.logsigmoid(grid) + torch.nn.functional.logsigmoid(-grid)).flatten(1).sum(1)
            total = float((log_q + slope).exp().sum() * (z[1] - z[0]) ** 2)
            assert abs(total - 1) < 1e-8
            assert float((log_q.exp() - 1).abs().max()) > 0.1      # which is no triviality


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 8, 8), (3, 5, 4), (1, 28, 28), (3, 32, 32)])
def test_the_inverse_gives_back_the_uniform_numbers_and_the_same_density(shape):
    centre, r = example(*shape)
    network = flow(shape[0], 0.5 if len(shape) and shape[0] * shape[1] < 20 else 0.2)
    u, log_q = network(centre, r)
    back, again = network.inverse(centre, u)
    assert float((u - r).abs().max()) > 0.05 and bool(((u > 0) & (u < 1)).all())
    torch.testing.assert_close(back, r, rtol=0, atol=1e-7)      # u near 1 is rounded
    torch.testing.assert_close(again, log_q, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(network(centre, back)[0], u, rtol=0, atol=1e-12)


def test_log_q_is_minus_the_log_determinant_of_the_jacobian():
    centre, r = example(3, 2, 3, n=2)
    network = flow(3)
    log_q = network(centre, r)[1]
    for i in range(2):
        one = centre[i:i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, one=one: network(one, v)[0].flatten(), r[i:i + 1])
        expected = -torch.linalg.slogdet(jacobian.reshape(18, 18)).logabsdet
        torch.testing.assert_close(log_q[i], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_untrained_one_leaves_uniform_noise_as_it_is_to_the_bit(dtype):
    r = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    r[0, 0, 0, :2] = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)      # the ends of random numbers
    u, log_q = Dequantizer(1)(torch.zeros_like(r), r)
    assert torch.equal(u, r) and torch.equal(log_q, torch.zeros(5, dtype=dtype))


def test_the_ends_of_random_numbers_have_a_finite_density_and_gradient():
    for network in (Dequantizer(1), flow().float()):
        r = torch.tensor([0.0, 1 - 2.0**-24]).view(1, 1, 2, 1)
        u, log_q = network(torch.zeros_like(r), r)
        (u.sum() + log_q.sum()).backward()
        assert bool(u.isfinite().all() and log_q.isfinite().all()) and bool(((u >= 0) & (u <= 1)).all())
        assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_it_correlates_neighbours_which_a_flow_of_single_elements_cannot():
    centre, r = example(1, 2, 1, n=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow()(centre, v)[0].flatten(), r).reshape(2, 2)
    assert float(jacobian[0, 1].abs()) > 1e-4 and float(jacobian[1, 0].abs()) > 1e-4


def test_a_network_has_one_only_if_asked_and_its_other_weights_stay_as_they_are():
    def made(**settings):
        torch.manual_seed(0)
        return UNet(image_size=8, channels=1, width=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), **settings)

    plain, with_flow = made(), made(dequantizer=4)
    assert dequantizer_of(plain) is None and dequantizer_of(with_flow) is with_flow.dequantizer
    weights = with_flow.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())
    assert all(name.startswith("dequantizer.") for name in weights.keys() - plain.state_dict().keys())


def test_what_it_cannot_dequantise_is_refused_in_one_line():
    with pytest.raises(ArgumentError, match="takes pictures .batch, 3, height, width., got .2, 1, 8, 8."):
        Dequantizer(3)(torch.zeros(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    with pytest.raises(ArgumentError, match="couplings of a dequantizer must be at least 1, got 0"):
        Dequantizer(1, couplings=0)
    with pytest.raises(ArgumentError, match="for pictures"):
        UNet(image_size=(8,), channels=1, width=8, multipliers=(1,), attention_resolutions=(), dequantizer=4)
    with pytest.raises(ArgumentError, match="must be a width"):
        UNet(image_size=8, channels=1, width=8, multipliers=(1,), attention_resolutions=(), dequantizer=-1)
    assert math.isclose(float(Dequantizer(1).inverse(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.25))[0]), 0.25)
