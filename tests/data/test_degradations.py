"""Degradations of pictures, smaller pictures, and the condition low_res of a data set."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.configs.sections import data
from scorefield.data import Dataset, Examples, from_arrays, load_dataset
from scorefield.data.degradations import (
    Degraded,
    LowRes,
    make_degradation,
    noisy,
    pictures_as_said,
    reduced,
)
from scorefield.data.fingerprint import fingerprint
from scorefield.guidance.operators import make_operator
from scorefield.numerics.errors import ArgumentError

NONE = torch.zeros(2, 0)


def pictures(n=2, channels=1, side=8, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", ["downsample:factor=2", "downsample:factor=4", "downsample:factor=2:kernel=bicubic",
                                  "downsample:factor=2:kernel=linear", "grey", "grey:weights=0.299,0.587,0.114"])
def test_a_degradation_is_the_operator_of_the_same_words(text):
    x = pictures(channels=3, side=16)
    operator = make_operator(text, (3, 16, 16))
    torch.testing.assert_close(make_degradation(text)(x, NONE), operator(x), atol=1e-6, rtol=0)
    assert make_degradation(text).shape((3, 16, 16)) == operator.measured


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("size", [6, 7])
def test_the_missing_half_is_that_of_the_operator(side, size):
    x = pictures(channels=3, side=size)
    low_res = make_degradation(f"mask:half={side}")(x, NONE)
    keep = make_operator(f"mask:half={side}", (3, size, size)).keep
    assert torch.equal(low_res[:, 3:], keep[:1].expand(2, 1, size, size).float())
    assert torch.equal(low_res[:, :3], torch.where(keep, x, 0.5))


def test_a_box_lies_anywhere_in_the_picture_with_equal_chances():
    mask = make_degradation("mask:box=0.5")
    steps = (torch.arange(5) + 0.5) / 5
    u = torch.cartesian_prod(steps, steps)      # the box of 4x4 has 5 places along each side
    missing = ~mask.known(u, 8, 8)
    assert (missing.sum((1, 2)) == 16).all()
    corners = {(int(m.any(1).nonzero()[0]), int(m.any(0).nonzero()[0])) for m in missing}
    assert corners == {(i, j) for i in range(5) for j in range(5)}


def test_a_random_mask_hides_its_share_and_a_border_all_but_the_middle():
    u = torch.rand(50, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float((~make_degradation("mask:random=0.3").known(u, 8, 8)).float().mean()) == pytest.approx(0.3, abs=0.03)
    known = make_degradation("mask:border=0.5").known(torch.zeros(1, 0), 8, 8)[0]
    assert known.sum() == 16 and known[2:6, 2:6].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_writes_and_reads(channels):
    k = (255 * pictures(1, channels, 16)).round().to(torch.uint8)
    file = io.BytesIO()
    array = k[0].permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if channels == 1 else array).save(file, "JPEG", quality=10)
    expected = torch.from_numpy(np.array(Image.open(file))).reshape(16, 16, channels).permute(2, 0, 1)
    found = make_degradation("jpeg:quality=10")(k / 255, torch.zeros(1, 0))
    assert torch.equal((255 * found[0]).round().to(torch.uint8), expected)


@pytest.mark.parametrize(("text", "shape", "says"), [
    ("shrink", (1, 8, 8), "unknown degradation 'shrink'; choose from downsample, grey, mask, jpeg"),
    ("downsample:factor=1", (1, 8, 8), "a factor of at least 2"), ("downsample:factor=3", (1, 8, 8), "divides both sides"),
    ("downsample:kernel=sharp", (1, 8, 8), "box, linear, bicubic"), ("grey", (1, 8, 8), "these have one"),
    ("grey:weights=1,1,1", (3, 8, 8), "weights of sum 1"), ("mask", (1, 8, 8), "one of box, random, half and border"),
    ("mask:box=0.5:half=left", (1, 8, 8), "got box and half"), ("mask:box=1.5", (1, 8, 8), "between 0 and 1"),
    ("mask:half=middle", (1, 8, 8), "left, right, top, bottom"), ("mask:box=0.01", (1, 8, 8), "leaves all"),
    ("mask:border=0.99", (1, 8, 8), "leaves nothing"), ("jpeg:quality=0", (1, 8, 8), "1 .. 95"),
    ("jpeg", (2, 8, 8), "1 or 3 channels")])
def test_a_degradation_that_cannot_be_is_refused(text, shape, says):
    with pytest.raises(ArgumentError, match=says) as error:
        make_degradation(text).shape(shape)
    assert error.value.arguments == ("degradation",)


def test_low_res_lies_in_the_range_of_the_model_whatever_the_codec():
    rule = LowRes("downsample:factor=2", (1, 8, 8), 17, low=-1.0, high=1.0)
    white = torch.full((1, 1, 8, 8), 16, dtype=torch.uint8)
    for k, value in ((0 * white, -1.0), (white, 1.0), (white // 2, 0.0)):
        assert torch.equal(rule.of(k, torch.zeros(1, 0)), torch.full((1, 1, 4, 4), value))


def test_noise_keeps_the_variance_of_data_with_variance_one():
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(4, 1, 100, 100, generator=generator) for _ in range(2))
    level = torch.tensor([0.0, 0.3, 0.6, 0.9])
    made = noisy(z, level, eps)
    assert torch.equal(made[0], z[0])
    torch.testing.assert_close(made.var((1, 2, 3)), torch.ones(4), atol=0.03, rtol=0)
    assert [float((made[i] * eps[i]).mean()) for i in range(4)] == pytest.approx(level.tolist(), abs=0.03)


def test_smaller_pictures_are_the_nearest_levels_of_the_means_of_blocks():
    k = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    means = k.double().reshape(5, 3, 2, 4, 2, 4).mean((3, 5))
    assert torch.equal(reduced(k, 4), (means + 0.5).floor().to(torch.uint8))


def test_reduced_digits_keep_their_labels_and_their_split():
    small, whole = load_dataset(data("digits", reduce=2)), load_dataset(data("digits"))
    assert small.shape == (1, 4, 4) and small.levels == 17 and len(small.test) == len(whole.test)
    index = torch.tensor([3, 1])
    assert torch.equal(small.test[index][1]["label"], whole.test[index][1]["label"])
    assert torch.equal(small.test[index][0], reduced(whole.test[index][0], 2))


class Lazy:
    """A split that reads its examples from a disk."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8) + index[:, None, None, None].to(torch.uint8), {}


def test_examples_that_are_read_from_a_disk_are_reduced_and_degraded_when_they_are_read():
    lazy = Dataset("lazy", Lazy(), Lazy(), (1, 8, 8), 256)
    made = pictures_as_said(lazy, {"reduce": 2, "degradation": "downsample:factor=2", "low": 0.0, "high": 1.0})
    index = torch.tensor([5, 2])
    k, condition = made.test[index]
    assert torch.equal(k, reduced(Lazy()[index][0], 2))
    assert torch.equal(condition["low_res"], torch.nn.functional.avg_pool2d(k / 255, 2))


def test_the_mask_of_a_held_out_example_depends_on_its_number_alone():
    digits = load_dataset(data("digits", degradation="mask:box=0.5"))
    every = digits.test[torch.arange(10)][1]["low_res"]
    assert torch.equal(digits.test[torch.tensor([7, 2])][1]["low_res"], every[[7, 2]])
    assert len({tuple(mask.flatten().tolist()) for mask in every[:, 1]}) > 3


def test_a_degradation_says_nothing_new_of_what_the_data_are():
    assert fingerprint(load_dataset(data("digits", degradation="jpeg"))) == fingerprint(load_dataset(data("digits")))


@pytest.mark.parametrize(("fields", "says"), [({"reduce": 3}, "cannot be made 3 times smaller"),
                                              ({"degradation": "grey"}, "these have one")])
def test_a_setting_that_does_not_fit_names_its_field(fields, says):
    with pytest.raises(ArgumentError, match=says) as error:
        load_dataset(data("digits", **fields))
    assert error.value.arguments == (f"data.{next(iter(fields))}",)


def test_points_have_no_low_res():
    points = from_arrays(torch.randn(20, 2))
    with pytest.raises(ArgumentError, match="for pictures of levels"):
        pictures_as_said(points, {"degradation": "downsample:factor=2"})
    assert not isinstance(pictures_as_said(points, {}).train, Degraded) and isinstance(points.train, Examples)
