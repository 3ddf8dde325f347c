import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorefield.data.transforms import batch_indices, dequantize, quantize, random_flip, to_unit

INTERVALS = [(-1.0, 1.0), (0.0, 1.0), (-0.3, 1.7)]
SCALES = [(levels, low, high) for levels in (2, 17, 256) for low, high in INTERVALS]
DTYPES = [torch.float32, torch.float64]


def all_levels(levels):
    return torch.arange(levels, dtype=torch.uint8)


@pytest.mark.parametrize("levels, low, high", SCALES)
def test_to_unit_spreads_levels_evenly_from_end_to_end(levels, low, high):
    x = to_unit(all_levels(levels), levels, low, high)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.double(), np.linspace(low, high, levels), rtol=0, atol=3e-7)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0)])
def test_to_unit_never_leaves_the_interval(low, high):
    x = to_unit(all_levels(256), 256, low, high)
    assert x.min() == low and x.max() == high


@pytest.mark.parametrize("levels, low, high", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_inverts_to_unit_at_every_level(levels, low, high, dtype):
    k = all_levels(levels)
    back = quantize(to_unit(k, levels, low, high).to(dtype), levels, low, high, dequantized=False)
    assert back.dtype == torch.uint8
    assert torch.equal(back, k)


@pytest.mark.parametrize("levels, low, high", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_inverts_dequantize_at_the_very_ends_of_every_bin(levels, low, high, dtype):
    last = 1 - torch.finfo(dtype).eps / 2  # the number before 1
    for u in (0.0, 1e-30, 0.5, last):
        k = all_levels(levels)
        x = dequantize(k, torch.full((levels,), u, dtype=dtype), levels, low, high)
        assert x.dtype == dtype
        assert torch.equal(quantize(x, levels, low, high, dequantized=True), k), u
        assert (x >= low).all() and (x < high).all()
        starts = dequantize(k, torch.zeros(levels, dtype=dtype), levels, low, high)
        assert (x[:-1] < starts[1:]).all()  # strictly below the next bin


@pytest.mark.parametrize("levels, low, high", SCALES)
def test_dequantize_is_its_formula(levels, low, high):
    k, u = torch.randint(levels, (50, 3)), torch.rand(50, 3, dtype=torch.float64)
    expected = low + (high - low) * (k + u) / levels
    assert (dequantize(k.byte(), u, levels, low, high) - expected).abs().max() < 1e-15
    assert (dequantize(k.byte(), u.float(), levels, low, high) - expected).abs().max() < 3e-7


@pytest.mark.parametrize("levels, low, high", SCALES)
def test_quantize_takes_the_bin_or_the_nearest_level_between_and_beyond_the_levels(levels, low, high):
    x = low - 1 + (high - low + 2) * torch.rand(5000, dtype=torch.float64)
    y = (x - low) / (high - low)
    bins = (y * levels).floor().clamp(0, levels - 1)
    nearest = (y * (levels - 1)).round().clamp(0, levels - 1)
    assert torch.equal(quantize(x, levels, low, high, dequantized=True), bins.byte())
    assert torch.equal(quantize(x, levels, low, high, dequantized=False), nearest.byte())


def test_random_flip_mirrors_whole_images_in_half_of_the_cases():
    x = torch.arange(2000 * 2 * 3 * 4).view(2000, 2, 3, 4)
    y = random_flip(x, torch.Generator().manual_seed(0))
    same = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_random_flip_depends_on_its_generator_alone():
    x = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(1)
    first = random_flip(x, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    again = random_flip(x, torch.Generator().manual_seed(3))
    assert first.dtype == torch.uint8 and torch.equal(first, again)
    assert not torch.equal(first, random_flip(x, torch.Generator().manual_seed(4)))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 90), epochs=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_epoch_holds_each_index_once_whatever_the_batch_size(n, batch_size, epochs, seed):
    steps = range(math.ceil(n * epochs / batch_size))
    batches = [batch_indices(n, batch_size, step, seed) for step in steps]
    assert all(batch.shape == (batch_size,) and batch.dtype == torch.int64 for batch in batches)
    order = torch.cat(batches)[: n * epochs].view(epochs, n)
    assert torch.equal(order.sort(dim=1).values, torch.arange(n).expand(epochs, n))


def test_batches_do_not_depend_on_which_were_asked_for_before():
    forwards = {step: batch_indices(50, 16, step, seed=1) for step in range(40)}
    for step in torch.randperm(40).tolist():
        batch = batch_indices(50, 16, step, seed=1)
        assert torch.equal(batch, forwards[step])
        batch.zero_()  # a caller's own copy


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = [batch_indices(50, 50, step, seed).tolist() for step in range(4) for seed in range(4)]
    assert len({tuple(order) for order in orders}) == 16


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (1, 0, 0, 0), (1, 1, -1, 0), (1, 1, 0, -1)])
def test_batch_indices_refuses_what_has_no_batch(arguments):
    given = r"n={}, batch_size={}, step={}, seed={}\) needs".format(*arguments)
    with pytest.raises(ValueError, match=given):
        batch_indices(*arguments)
