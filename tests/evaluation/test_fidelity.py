"""PSNR and SSIM against their definitions."""

import math

import pytest
import torch

from scorefield.evaluation.fidelity import C1, C2, psnr, ssim
from scorefield.numerics.errors import ArgumentError


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_is_that_of_the_mean_square_error_of_clamped_pictures():
    x, y = noise(3, 2, 5, 5), noise(3, 2, 5, 5, seed=1)
    expected = [-10 * math.log10(float((a - b).square().mean())) for a, b in zip(x, y, strict=True)]
    assert psnr(x, y).tolist() == pytest.approx(expected)
    assert psnr(x, x).tolist() == [math.inf] * 3
    assert float(psnr(torch.full((1, 4), 7.0), torch.full((1, 4), 0.9))) == pytest.approx(20)


@pytest.mark.parametrize("side", [8, 16])
def test_ssim_is_the_mean_over_windows_of_its_formula(side):
    x, y = noise(1, 1, side, side), noise(1, 1, side, side, seed=1)
    size = {8: 7, 16: 11}[side]
    line = torch.exp(-(torch.arange(size, dtype=torch.float64) - size // 2) ** 2 / (2 * 1.5**2))
    weights = line[:, None] * line / line.sum() ** 2
    values = []
    for i in range(side - size + 1):
        for j in range(side - size + 1):
            a, b = (z[0, 0, i:i + size, j:j + size] for z in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb, cov = (weights * (a - ma)**2).sum(), (weights * (b - mb)**2).sum(), (weights * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + C1) * (2 * cov + C2) / ((ma**2 + mb**2 + C1) * (va + vb + C2)))
    assert float(ssim(x, y)) == pytest.approx(float(torch.stack(values).mean()), rel=1e-9)


def test_ssim_of_a_picture_with_itself_is_one_and_of_plain_ones_compares_their_levels():
    x = noise(2, 3, 12, 9)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    a, b = 0.2, 0.7
    plain = ssim(torch.full((1, 1, 8, 8), a), torch.full((1, 1, 8, 8), b))
    assert float(plain) == pytest.approx((2 * a * b + C1) / (a**2 + b**2 + C1), rel=1e-6)


def test_ssim_is_of_pictures():
    with pytest.raises(ArgumentError, match="of pictures"):
        ssim(torch.zeros(3, 4), torch.zeros(3, 4))
