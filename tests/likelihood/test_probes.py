"""Probes along a trajectory: their variance and mean against closed forms, and what they depend on."""

import math

import pytest
import torch
from torch import nn

from scorefield.likelihood import log_prob
from scorefield.likelihood.exponential import QUADRATURE, quadrature
from scorefield.likelihood.probes import probes_along
from scorefield.models import Denoiser, GaussianMixture
from scorefield.numerics.grids import sinh
from scorefield.sde_lib import VPSDE

REPEATS, STEPS = 4000, 16      # the variance of 4000 is known to 2 or 3 %


class Linear(nn.Module):
    """eps = A x at every time, so that the Jacobian is A at every node."""

    def __init__(self, d):
        super().__init__()
        self.matrix = 0.2 * torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, x, time):
        return x @ self.matrix.to(x).T


def estimates(d, repeats=REPEATS, **settings):
    """log p of one x by `repeats` seeds, and by the exact trace; and the network."""
    network = Linear(d)
    model, x = Denoiser(network, VPSDE()), torch.full((1, d), 0.1, dtype=torch.float64)
    exact = log_prob(model, x, method="exponential", steps=STEPS).value
    many = log_prob(model, x.expand(repeats, d), "hutchinson", method="exponential", steps=STEPS, seeds=range(repeats),
                    **settings)
    return many, exact, network


def node_weights():
    """c_i, of v_i^T A v_i in log p."""
    sde = VPSDE()
    t = sinh(sde, STEPS - 1, sde.t_min, width=1.0).flip(0)
    t[0], t[-1] = sde.t_min, sde.t_max
    lam = sde.half_log_snr(t)
    return -torch.from_numpy(quadrature(lam.numpy(), QUADRATURE)) * sde.alpha(t) * (1 + torch.exp(-2 * lam))


@pytest.mark.parametrize("d", [4, 6, 16, 40])
@pytest.mark.parametrize("kind, fresh", [("rademacher", False), ("rademacher", True), ("gaussian", True),
                                         ("hadamard", True)])
def test_the_variance_of_an_estimate_is_the_formula_of_its_probes(d, kind, fresh):
    many, _, network = estimates(d, probe_kind=kind, fresh_probes=fresh)
    c, s = node_weights(), (network.matrix + network.matrix.T) / 2
    one = 2 * float(s.square().sum() - (0 if kind == "gaussian" else s.diagonal().square().sum()))
    total, squares = float(c.sum()) ** 2, float(c.square().sum())
    expected = one * (squares if fresh else total)
    if kind == "hadamard":      # pairs of nodes in one block of N have the covariance -one / (N - 1)
        order = 1 << (d - 1).bit_length()
        blocks = sum(float(block.sum()) ** 2 for block in c.split(min(order, STEPS)))
        expected -= one * (blocks - squares) / (order - 1)
    assert float(many.value.var()) == pytest.approx(expected, rel=0.12), (float(many.value.var()), expected)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hadamard"])
def test_fresh_probes_are_unbiased(kind):
    many, exact, _ = estimates(12, probe_kind=kind)
    error = float(many.value.std()) / math.sqrt(REPEATS)
    assert abs(float(many.value.mean() - exact)) < 3 * error


def test_the_error_bar_of_fresh_probes_covers():
    many, exact, _ = estimates(12, 1000, probes=8)
    z = (many.value - exact) / many.probe_error
    assert 0.9 <= float((z.abs() < 2.365).double().mean()) <= 0.99      # 95 % of Student's t with 7 degrees of freedom


def test_a_mixture_has_a_quarter_of_the_variance_at_equal_cost():
    model = GaussianMixture(VPSDE(), torch.randn(6, 16, generator=torch.Generator().manual_seed(1)), torch.full((6,), 0.1))
    x = model.sample(1, 1e-5, torch.Generator().manual_seed(0)).expand(1000, 16)
    exact = log_prob(model, x[:1], method="exponential").value
    fixed, fresh = (log_prob(model, x, "hutchinson", method="exponential", seeds=range(1000), fresh_probes=f)
                    for f in (False, True))
    assert fixed.nfe == fresh.nfe == 30
    assert float(fresh.value.var()) < float(fixed.value.var()) / 4
    for result in (fixed, fresh):
        assert abs(float(result.value.mean() - exact)) < 3 * float(result.value.std()) / math.sqrt(1000)


@pytest.mark.parametrize("d", [1, 5, 8, 13])
def test_a_block_of_hadamard_rows_gives_the_exact_trace(d):
    order = 1 << (d - 1).bit_length()
    x, matrix = torch.zeros(3, d, dtype=torch.float64), torch.randn(d, d, dtype=torch.float64)
    draw = probes_along(x, "hadamard", 2, range(3), 5 * order, fresh=True)
    for _ in range(2):      # the next block has rows and signs of its own
        v = torch.stack([draw() for _ in range(order)])
        assert bool((v.abs() == 1).all())
        mean = torch.einsum("npbi,ij,npbj->pb", v, matrix, v) / order
        torch.testing.assert_close(mean, matrix.trace().expand(2, 3))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hadamard"])
def test_the_probes_of_an_example_depend_on_its_seed_and_the_node_alone(kind):
    def drawn(seeds, dtype=torch.float32):
        draw = probes_along(torch.zeros(len(seeds), 2, 3, dtype=dtype), kind, 2, seeds, 10, fresh=True)
        return torch.stack([draw() for _ in range(10)])

    together = drawn([(3, i) for i in range(5)])
    torch.testing.assert_close(drawn([(3, 4), (3, 1)]), together[:, :, [4, 1]], rtol=0, atol=0)
    assert len({tuple(row.flatten().tolist()) for row in together.flatten(0, 2)}) > 30      # of 100 vectors of 2^6
    if kind != "gaussian":
        torch.testing.assert_close(drawn([(3, i) for i in range(5)], torch.float64).float(), together, rtol=0, atol=0)


def test_the_estimated_error_of_the_solver_is_free_of_the_probes_noise():
    model = GaussianMixture(VPSDE(), torch.randn(6, 16, generator=torch.Generator().manual_seed(1)), torch.full((6,), 0.1))
    x = model.sample(1, 1e-5, torch.Generator().manual_seed(0)).expand(50, 16)
    error = log_prob(model, x, "hutchinson", method="exponential", seeds=range(50)).solver_error
    torch.testing.assert_close(error, error[:1].expand(50))
