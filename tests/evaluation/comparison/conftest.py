"""Small comparisons with exact models, and their pages."""

import numpy as np
import pytest
import torch

from scorefield.data import from_arrays, make_codec
from scorefield.evaluation import compare
from scorefield.models import GaussianMixture
from scorefield.sde_lib import VPSDE

EVIL = "</script><img src=x onerror=\"document.title='taken'\"><b>&amp;{{data}}"


def pictures(channels=1, side=6, name="tiles"):
    """Soft pictures of two kinds, 17 levels, and the exact model of their mixture as the codec shows them."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(2, 14, side)
    base = np.stack([np.broadcast_to(ramp, (channels, side, side)), np.broadcast_to(ramp[:, None], (channels, side, side))])
    y = rng.integers(2, size=150)
    x = np.clip(np.round(base[y] + rng.normal(0, 1, (150, channels, side, side))), 0, 16).astype(np.uint8)
    data = from_arrays(x, y_train=y, levels=17, class_names=("flat", EVIL), name=name)
    codec = make_codec(17)
    means = codec.encode(torch.from_numpy(np.round(base))).flatten(1)
    return GaussianMixture(VPSDE(), means, torch.full((2,), 1 / 64), labels=[0, 1]), data, codec


def points(oracle, n=2000):
    """The 2-D mixture of the oracles, with draws of it as data."""
    model = GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])
    draw = torch.Generator().manual_seed(3)
    train, test = (model.sample(n, generator=draw).float() for _ in range(2))
    return model, from_arrays(train, test, name="mixture")


@pytest.fixture(scope="package")
def of_pictures(tmp_path_factory):
    """A comparison of pictures whose names are hostile, and its folder."""
    model, data, codec = pictures(name=EVIL)
    made = compare(model, data, ("auto", "ddim:eta=0.5", "rk4", "ode"), (3, 6), n=70, codec=codec, batch_size=50,
                   metrics=("sliced_wasserstein", "energy"), bootstrap=50, likelihood=8, title=EVIL, facts={"run": EVIL},
                   progress=False)
    folder = tmp_path_factory.mktemp("of_pictures") / "compare"
    made.write(folder)
    return made, folder
