import numpy as np
import pytest
import torch

from scorefield.data import Dataset, Examples, Points, codec_of, from_arrays, in_units_of
from scorefield.numerics.errors import ArgumentError


def test_a_tensor_in_place_of_a_split_has_no_conditions():
    x = torch.randn(6, 2)
    dataset = Dataset("mine", x, x[:2], (2,), None)
    data, condition = dataset.train[torch.tensor([4, 1])]
    assert torch.equal(data, x[[4, 1]]) and condition == {} and len(dataset.test) == 2


def test_conditions_come_with_their_examples():
    examples = Examples(torch.arange(5).float()[:, None], {"label": torch.arange(5), "low_res": torch.rand(5, 3)})
    data, condition = examples[torch.tensor([3, 0])]
    assert condition["label"].tolist() == data[:, 0].tolist() == [3, 0] and condition["low_res"].shape == (2, 3)
    with pytest.raises(ValueError, match="5 examples and 4 of condition 'label'"):
        Examples(torch.zeros(5, 1), {"label": torch.arange(4)})


def test_arrays_of_integers_are_pictures_and_floats_are_points():
    pictures = from_arrays(np.random.default_rng(0).integers(0, 200, (20, 1, 4, 4)), y_train=np.arange(20) % 3)
    assert pictures.levels == 256 and pictures.shape == (1, 4, 4) and pictures.train.data.dtype == torch.uint8
    points = from_arrays(np.random.default_rng(0).standard_normal((20, 2)), torch.zeros(3, 2))
    assert points.levels is None and points.train.data.dtype == torch.float32
    assert (len(points.train), len(points.test)) == (20, 3)


def test_without_a_test_array_every_tenth_example_is_held_out_with_its_label():
    x = torch.arange(25).float()[:, None]
    dataset = from_arrays(x, y_train=torch.arange(25), class_names=[f"class {i}" for i in range(26)])
    assert dataset.test.data[:, 0].tolist() == [0, 10, 20] and len(dataset.train) == 22
    data, condition = dataset.train[torch.arange(22)]
    assert torch.equal(data[:, 0].long(), condition["label"]) and dataset.class_names[3] == "class 3"
    assert dataset.classes == 26      # by their names, though no example has the last


def test_conditions_of_any_name_can_be_given():
    dataset = from_arrays(torch.zeros(4, 2), torch.zeros(1, 2), {"angle": np.zeros((4, 3))}, {"angle": np.zeros((1, 3))})
    assert dataset.train[torch.arange(2)][1]["angle"].shape == (2, 3)


@pytest.mark.parametrize("arguments, match", [
    ((torch.zeros(0, 2),), r"x_train must be .* got shape \(0, 2\)"), ((torch.zeros(5),), "x_train must be"),
    ((["a", "b"],), "array of numbers"), ((torch.tensor([[float("nan")]] * 3),), "x_train .* not finite"),
    ((torch.full((3, 2), 300),), r"300 to 300, and levels are 0 .. 255; scale"), ((torch.full((3, 2), -1),), "integers -1"),
    ((torch.zeros(3, 2), torch.zeros(3, 4)), r"shape \(2,\), but x_test of shape \(4,\)"),
    ((torch.zeros(3, 2) > 0,), "bool"),
    ((torch.zeros(3, 2), None, torch.zeros(3)), "y_train must hold a whole number"),
    ((torch.zeros(3, 2), None, torch.zeros(2).long()), "3 examples and 2 of condition 'label'"),
    ((torch.zeros(1, 2),), "at least 2 examples"),
    ((torch.zeros(3, 2), None, None, torch.zeros(3)), "y_test is given without x_test"),
])
def test_arrays_that_do_not_fit_are_refused_by_the_name_of_their_argument(arguments, match):
    with pytest.raises(ValueError, match=match) as caught:
        from_arrays(*arguments)
    assert caught.value.arguments


def test_levels_can_be_said_and_bound_the_integers():
    assert from_arrays(torch.full((3, 2), 16), levels=17).levels == 17
    with pytest.raises(ValueError, match="17 to 17, and levels are 0 .. 16"):
        from_arrays(torch.full((3, 2), 17), levels=17)
    with pytest.raises(ValueError, match="floats, which are points"):
        from_arrays(torch.zeros(3, 2), levels=17)


# Standardised arrays


def test_floats_are_standardised_by_the_training_examples_if_asked():
    x = torch.randn(100, 3, 7, generator=torch.Generator().manual_seed(0)).double() * 3 + 1.7e9
    dataset = from_arrays(x, standardise=True)
    assert dataset.standard.dtype == dataset.train.data.dtype == torch.float64
    train = torch.cat([x[i : i + 1] for i in range(100) if i % 10])
    assert dataset.standard == Points.standardising(train) and torch.equal(dataset.train.data, train)
    small = from_arrays(x - 1.7e9, standardise=True)
    assert small.train.data.dtype == torch.float32 and from_arrays(x - 1.7e9).standard is None


def test_names_of_columns_are_kept_without_standardisation_too():
    dataset = from_arrays(torch.randn(20, 2), columns=("a", "b"))
    assert dataset.standard == Points(columns=("a", "b")) and dataset.standard.offset == 0


def test_only_numbers_can_be_standardised():
    with pytest.raises(ArgumentError) as caught:
        from_arrays(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), standardise=True)
    assert caught.value.arguments == ("standardise",)
    with pytest.raises(ArgumentError) as caught:
        from_arrays(torch.zeros(20, 3), standardise=True)
    assert caught.value.arguments == ("x_train",) and "column 0 is 0" in str(caught.value)
    with pytest.raises(ArgumentError, match="cannot be standardised by"):
        Dataset("x", torch.zeros(3, 2), torch.zeros(3, 2), (2,), None, standard=Points((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(ArgumentError, match="which float32 does not hold"):
        from_arrays(torch.full((20, 2), 1e300, dtype=torch.float64))


def test_data_are_seen_in_the_units_of_a_run():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    dataset = from_arrays(x, standardise=True, columns=("a", "b"))
    stored = {"levels": None, "standard": dataset.standard.stored()}
    assert in_units_of(dataset, None) is dataset and in_units_of(dataset, stored).notes == ()
    more = in_units_of(from_arrays(torch.cat([x, x + 0.01]), standardise=True), stored)
    assert more.standard == dataset.standard and more.notes == ()
    other = in_units_of(from_arrays(3 * x, standardise=True), stored)
    assert other.standard == dataset.standard and "of a these were" in other.notes[0]
    wider = from_arrays(torch.randn(50, 3), standardise=True)
    assert in_units_of(wider, stored | {"shape": [2]}) is wider
    old = in_units_of(dataset, {"levels": None})      # a run of before, which knew no standardisation
    assert old.standard is None and codec_of({}, old) == codec_of({}, {"levels": None}) == Points()
