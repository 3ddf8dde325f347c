"""Forward-mode derivatives of networks, which continuous-time consistency models are trained by."""

import torch

from scorefield.models import UNet
from scorefield.numerics.devices import set_memory_format
from tests.helpers import randomised


def test_a_network_has_one_forward_derivative_in_both_memory_formats():
    torch.manual_seed(0)
    network, time = randomised(UNet(8, 1, 16, (1, 2), 1, (4,), 0.0)).eval(), torch.full((2,), 500.0)
    x, v = torch.randn(2, 2, 1, 8, 8)
    plain = torch.func.jvp(lambda x: network(x, time), (x,), (v,))
    set_memory_format(network, "channels_last")
    for mine, other in zip(torch.func.jvp(lambda x: network(x, time), (x,), (v,)), plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    difference = (network(x + 1e-2 * v, time) - network(x - 1e-2 * v, time)) / 2e-2
    torch.testing.assert_close(plain[1], difference, rtol=2e-2, atol=2e-2)
