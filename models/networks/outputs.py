"""A second output of a network: as many numbers again for each example."""

import torch
from torch import nn

from scorefield.numerics.errors import ArgumentError


def doubled(network: nn.Module) -> nn.Module:
    """The network itself, which from now on gives twice the channels: what it gave, and as many that begin with zero.

    Raises ArgumentError for a network whose output is no prediction. One use:

    >>> from scorefield.models import MLP
    >>> from scorefield.models.networks.outputs import doubled
    >>> doubled(MLP((2,)))(torch.zeros(4, 2), torch.zeros(4)).shape
    torch.Size([4, 4])
    """
    names = getattr(network, "last_layers", ())
    if not names:
        raise ArgumentError(f"{type(network).__name__} predicts nothing whose variance could be learned; choose the network "
                            "unet, ncsnpp, mlp or dit", "learned_variance", "network")
    for layer in map(network.get_submodule, names):
        for name, parameter in [*layer.named_parameters()]:
            setattr(layer, name, nn.Parameter(torch.cat([parameter.detach(), torch.zeros_like(parameter)])))
        for size in ("out_channels", "out_features"):
            if hasattr(layer, size):
                setattr(layer, size, 2 * getattr(layer, size))
    return network
