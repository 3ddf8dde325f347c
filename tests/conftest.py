"""Fixtures that several test files share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models import GaussianMixture
from sde_lib import VESDE, VPSDE, CosineVPSDE, SubVPSDE

SDES = {"vp": VPSDE(), "cosine": CosineVPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
SHARED_ORACLES = Path(__file__).parents[2] / "shared" / "oracles"


@pytest.fixture(params=SDES)
def any_sde(request):
    return SDES[request.param]


@pytest.fixture
def oracle():
    """The shared ground truth, or a skip with the reason where a clone does not have it."""
    path = Path(os.environ.get("SCOREFIELD_ORACLES", SHARED_ORACLES)) / "gmm2_vp_linear.npz"
    if not path.exists():
        pytest.skip(f"no oracle file {path}; set SCOREFIELD_ORACLES to the folder that has it")
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture
def mixture(any_sde):
    """A 2-D mixture of three Gaussians under each SDE."""
    return GaussianMixture(any_sde, torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                           torch.tensor([0.04, 0.1, 0.02]), torch.tensor([1.0, 2.0, 1.5]))
