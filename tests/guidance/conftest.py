"""What the tests of guidance share: labelled mixtures, whose scores and classes are known exactly, and points."""

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.sde_lib import VESDE, VPSDE, FlowSDE, SubVPSDE


def labelled(sde):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]])
    variances, weights = torch.tensor([0.04, 0.1, 0.02]), torch.tensor([1.0, 2.0, 1.5])
    return GaussianMixture(sde, means, variances, weights, labels=torch.tensor([0, 1, 1]))


@pytest.fixture(params=[VPSDE(), SubVPSDE(), VESDE(0.01, 5.0), FlowSDE()], ids=lambda sde: type(sde).__name__)
def mixture(request):
    return labelled(request.param)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def t():
    """A time for each sample; the first is t_max of flow matching, the last near the data."""
    return torch.linspace(1 - 2**-10, 0.01, 6, dtype=torch.float64)
