"""The fingerprint of a data set: equal for equal data, and in words what differs."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield.data.pictures
from scorefield.configs.sections import data
from scorefield.data import from_arrays, load_dataset
from scorefield.data.dataset import Dataset
from scorefield.data.fingerprint import changes, fingerprint

X = torch.arange(200 * 3 * 4 * 4, dtype=torch.int64).reshape(200, 3, 4, 4) % 251
Y = torch.arange(200) % 7


def of(x=X, y=Y):
    return fingerprint(from_arrays(x.clone(), y_train=y))


def test_the_same_data_have_the_same_fingerprint():
    assert of() == of() and changes(of(), of()) == "" and of()["train"]["examples"] == 180


@pytest.mark.parametrize(("x", "y", "words"), [
    (X[:100], Y[:100], "train has 90 examples, not 180; test has 10 examples, not 20"),
    (X.flip(0), Y, "other examples, or another order"),
    (X, (Y + 1) % 7, "other examples"),
    (torch.cat([X[:77], 250 - X[77:78], X[78:]]), Y, "other examples"),
    (X.float(), Y, "examples of type float32, not uint8"),
    (X[:, :, :2], Y, r"examples of shape \[3, 2, 4\], not \[3, 4, 4\]"),
], ids=["fewer", "order", "labels", "one picture", "type", "shape"])
def test_a_difference_is_named(x, y, words):
    assert re.search(words, changes(of(), of(x, y)))


def pictures(folder, n=30, size=4):
    for i in range(n):
        path = folder / ("ab"[i % 2]) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(path)
    return folder


def of_folder(path):
    return fingerprint(load_dataset(data("folder", path=str(path), image_size=4)))


def test_pictures_may_be_moved_and_touched_but_not_replaced_renamed_or_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(scorefield.data.pictures, "EAGER_BYTES", 0)      # as if there were too many for the memory
    folder = pictures(tmp_path / "one")
    first = of_folder(folder)
    folder = folder.rename(tmp_path / "two")
    for path in folder.rglob("*.png"):
        path.touch()
    assert changes(first, of_folder(folder)) == "" and first["train"]["of"].endswith("names and sizes")
    some = sorted((folder / "a").iterdir())[-1]
    content = some.read_bytes()
    some.write_bytes(sorted((folder / "a").iterdir())[0].read_bytes())
    assert changes(first, of_folder(folder)) != ""
    some.write_bytes(content)
    assert changes(first, of_folder(folder)) == ""
    some.rename(some.with_name("zzz.png"))
    assert changes(first, of_folder(folder)) != ""
    some.with_name("zzz.png").unlink()
    assert "examples, not" in changes(first, of_folder(folder))


def test_examples_that_are_drawn_anew_at_each_reading_are_told_by_their_number():
    class Random:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

        def __getitem__(self, index):
            return torch.randn(len(index), 2), {}

    def data_set(n):
        return Dataset("random", Random(n), Random(10), (2,), None)

    assert changes(fingerprint(data_set(300)), fingerprint(data_set(300))) == ""
    assert "train has 200 examples, not 300" in changes(fingerprint(data_set(300)), fingerprint(data_set(200)))
