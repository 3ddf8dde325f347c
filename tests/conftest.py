"""Fixtures that several test files share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import GaussianMixture
from sde_lib import VESDE, VPSDE, CosineVPSDE, SubVPSDE

SDES = {"vp": VPSDE(), "cosine": CosineVPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}


@pytest.fixture(params=SDES)
def any_sde(request):
    return SDES[request.param]


@pytest.fixture
def oracle():
    """Ground truth: a 2-D mixture, exact scores, and end points of the reference implementations (oracles/README.md)."""
    with np.load(Path(__file__).parent / "oracles" / "gmm2_vp_linear.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture
def mixture(any_sde):
    """A 2-D mixture of three Gaussians under each SDE."""
    return GaussianMixture(any_sde, torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                           torch.tensor([0.04, 0.1, 0.02]), torch.tensor([1.0, 2.0, 1.5]))
