"""Folders of pictures: a subfolder for each class, and trees that have no classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import load_dataset, pictures


def fill(folder, values):
    """Pictures 000.png, 001.png, ... of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, value in enumerate(values):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / f"{i:03}.png")


def load(path):
    return load_dataset({"dataset": "folder", "path": str(path), "image_size": 4, "channels": 1})


def pairs(split):
    """The colour of each picture and its label (None: it has none)."""
    data, condition = split[torch.arange(len(split))]
    colours = data[:, 0, 0, 0].tolist()
    return list(zip(colours, condition["label"].tolist() if condition else [None] * len(colours), strict=True))


def refused(path):
    with pytest.raises(ValueError) as caught:
        load(path)
    assert "\n" not in str(caught.value) and caught.value.arguments == ("data.path",)
    return str(caught.value)


def test_a_subfolder_is_a_class_and_every_tenth_picture_of_all_is_held_out_with_its_label(tmp_path):
    fill(tmp_path / "dog", range(100, 112))
    fill(tmp_path / "cat", range(13))
    fill(tmp_path / "Cow", range(200, 203))
    dataset = load(tmp_path)
    assert dataset.class_names == ("Cow", "cat", "dog") and dataset.classes == 3 and dataset.unlabelled == ""
    ordered = [(k, 0) for k in range(200, 203)] + [(k, 1) for k in range(13)] + [(k, 2) for k in range(100, 112)]
    assert pairs(dataset.test) == ordered[::10]
    assert pairs(dataset.train) == [pair for i, pair in enumerate(ordered) if i % 10]


def test_deeper_pictures_belong_to_the_class_of_the_top_and_hidden_folders_are_none(tmp_path):
    fill(tmp_path / "a/deep/deeper", [1, 2])
    fill(tmp_path / "b", [3])
    fill(tmp_path / "b/a", [4])
    fill(tmp_path / ".ipynb_checkpoints", [5])
    fill(tmp_path / "b/.thumbnails", [6])
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.txt").write_text("no picture")
    dataset = load(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert pairs(dataset.test) + pairs(dataset.train) == [(1, 0), (2, 0), (3, 1), (4, 1)]
    below_hidden = tmp_path / ".cache/set"      # the user's own path may be hidden
    fill(below_hidden / "a", [1, 2])
    fill(below_hidden / "b", [3])
    assert load(below_hidden).class_names == ("a", "b")


def test_splits_with_the_same_class_folders_have_labels(tmp_path):
    for split, start in (("train", 0), ("test", 100)):
        fill(tmp_path / split / "cat", range(start, start + 3))
        fill(tmp_path / split / "dog", range(start + 50, start + 52))
    fill(tmp_path / "val/other", [255])      # no part of either split
    (tmp_path / "val/other/000.txt").write_text("nor this")
    dataset = load(tmp_path)
    assert dataset.notes[-1] == "left out beside train and test: the folder val (1 pictures)"
    assert dataset.class_names == ("cat", "dog")
    assert pairs(dataset.train) == [(0, 0), (1, 0), (2, 0), (50, 1), (51, 1)]
    assert pairs(dataset.test) == [(100, 0), (101, 0), (102, 0), (150, 1), (151, 1)]


def test_pictures_that_lie_directly_in_the_folder_have_no_labels(tmp_path):
    fill(tmp_path / "flat", range(12))
    (tmp_path / "flat/empty").mkdir()      # no class lies beside it
    fill(tmp_path / "splits/train", range(3))
    fill(tmp_path / "splits/test", range(2))
    for name in ("flat", "splits"):
        dataset = load(tmp_path / name)
        assert dataset.classes is None and dataset.class_names == () and dataset.unlabelled == ""
        assert all(label is None for _, label in pairs(dataset.train) + pairs(dataset.test))


def unclear(tmp_path):
    """Trees whose classes are in doubt: what builds each, its pictures in order, and what is said of it."""
    def loose():
        fill(tmp_path / "b", range(10, 21))
        fill(tmp_path, [0])
        return [0, *range(10, 21)], rf"{tmp_path} holds pictures of no class, such as 000.png, beside the subfolder b"

    def no_pictures():
        fill(tmp_path / "images", range(12))
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes/boxes.json").write_text("{}")
        return range(12), f"{tmp_path}/notes holds no pictures, unlike the folders beside it"

    def only_splits():
        fill(tmp_path / "test/cat", range(5))
        fill(tmp_path / "test/dog", range(5, 9))
        fill(tmp_path / "val/cat", range(9, 12))
        return range(12), "are test, val, which look like splits and not like classes; splits are two subfolders, train and"

    return {"loose": loose, "no_pictures": no_pictures, "only_splits": only_splits}


@pytest.mark.parametrize("name", ["loose", "no_pictures", "only_splits"])
def test_a_tree_whose_classes_are_in_doubt_has_its_pictures_as_ever_and_no_labels_and_says_why(tmp_path, name):
    colours, words = unclear(tmp_path)[name]()
    dataset, expected = load(tmp_path), [(colour, None) for colour in colours]
    assert pairs(dataset.test) == expected[::10]
    assert pairs(dataset.train) == [pair for i, pair in enumerate(expected) if i % 10]
    assert dataset.classes is None and words in dataset.unlabelled and "\n" not in dataset.unlabelled


@pytest.mark.parametrize("train, test, words", [
    (["cat", "dog"], ["cat"], "differ: only train has dog"), (["cat"], ["cat", "dog"], "differ: only test has dog"),
    (["a", "b"], ["b", "c"], "differ: only train has a; only test has c"),
    ([*"abcdef"], ["a"], "only train has b, c, d and 2 more"), (["a"], [""], "differ: only train has a"),
])
def test_splits_with_other_class_folders_have_no_labels_and_say_the_difference(tmp_path, train, test, words):
    for split, names in (("train", train), ("test", test)):
        for name in names:
            fill(tmp_path / split / name, [1, 2])
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (2 * len(train), 2 * len(test))
    assert dataset.classes is None and words in dataset.unlabelled


@pytest.mark.parametrize("below", ["", "train", "test"])
@pytest.mark.parametrize("content", [None, "deep", ".hidden"])
def test_an_empty_class_folder_is_named_before_a_picture_is_read(tmp_path, monkeypatch, below, content):
    monkeypatch.setattr(pictures, "open_pictures", None)
    for split in ("train", "test") if below else ("",):
        fill(tmp_path / split / "cat", range(3))
        fill(tmp_path / split / "dog", range(3))
    empty = tmp_path / below / "eel"
    empty.mkdir()
    if content == "deep":
        (empty / "deep").mkdir()
    elif content:
        (empty / content).write_text("nothing")
    assert f"the class folder {empty} is empty; put its pictures there, or remove it" in refused(tmp_path)


def test_a_large_tree_is_decoded_on_access_and_has_its_labels_without(tmp_path, monkeypatch):
    fill(tmp_path / "cat", range(15))
    fill(tmp_path / "dog", range(100, 108))
    eager = load(tmp_path)
    monkeypatch.setattr(pictures, "EAGER_BYTES", 0)
    decoded = []
    decode = pictures.PictureFiles._decode
    monkeypatch.setattr(pictures.PictureFiles, "_decode", lambda self, file: decoded.append(file) or decode(self, file))
    lazy = load(tmp_path)
    assert lazy.classes == 2 and lazy.class_names == ("cat", "dog") and not lazy.train.in_memory and not decoded
    assert pairs(lazy.train) == pairs(eager.train) and pairs(lazy.test) == pairs(eager.test)
    index = torch.tensor([19, 0, 13])
    data, condition = lazy.train[index]
    assert torch.equal(data, eager.train[index][0]) and condition["label"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("train, test", [("train", "val"), ("train", "valid"), ("Training", "Validation"), ("train", "dev"),
                                         ("Train", "Test"), ("TRAIN", "testing")])
def test_splits_have_any_of_their_usual_names_in_capitals_or_not(tmp_path, train, test):
    for split, start in ((train, 0), (test, 100)):
        fill(tmp_path / split / "cat", range(start, start + 3))
        fill(tmp_path / split / "dog", range(start + 50, start + 52))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/boxes.json").write_text("{}")
    dataset = load(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert pairs(dataset.train) == [(0, 0), (1, 0), (2, 0), (50, 1), (51, 1)]
    assert pairs(dataset.test) == [(100, 0), (101, 0), (102, 0), (150, 1), (151, 1)]
    assert dataset.notes == (f"training examples {tmp_path / train}: took 5 files as pictures (PNG 5), left out 0",
                             f"held-out examples {tmp_path / test}: took 5 files as pictures (PNG 5), left out 0",
                             f"left out beside {train} and {test}: the folder annotations (0 pictures)")


def test_of_several_held_out_folders_test_comes_first_and_the_others_are_named(tmp_path):
    fill(tmp_path / "train", [1, 2])
    fill(tmp_path / "val", [3])
    fill(tmp_path / "Test", [4])
    fill(tmp_path, [5, 6, 7])
    (tmp_path / ".DS_Store").write_text("hidden")
    dataset = load(tmp_path)
    assert pairs(dataset.train) == [(1, None), (2, None)] and pairs(dataset.test) == [(4, None)]
    assert dataset.notes[-1] == "left out beside train and Test: the folder val (1 pictures), 3 files"


def test_a_broken_picture_beside_the_splits_harms_nobody(tmp_path):
    fill(tmp_path / "train", [1, 2])
    fill(tmp_path / "test", [3])
    fill(tmp_path / "val", [4])
    (tmp_path / "val/bad.png").write_text("broken")
    assert "the folder val (1 pictures)" in load(tmp_path).notes[-1]


def test_classes_that_are_called_as_splits_stay_classes_beside_others_and_that_is_said(tmp_path):
    for i, name in enumerate(("airplane", "dev", "train")):
        fill(tmp_path / name, range(10 * i, 10 * i + 4))
    dataset = load(tmp_path)
    assert dataset.class_names == ("airplane", "dev", "train") and len(dataset.train) + len(dataset.test) == 12
    assert dataset.notes[-1] == ("train and dev are read as classes and not as splits, since there are pictures in "
                                 "airplane, too")


def test_classes_and_splits_may_be_links(tmp_path):
    fill(tmp_path / "store/cats", range(3))
    fill(tmp_path / "store/dogs", range(10, 12))
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / "cat").symlink_to(tmp_path / "store/cats")
        (tmp_path / "set" / split / "dog").symlink_to(tmp_path / "store/dogs")
    dataset = load(tmp_path / "set")
    assert dataset.class_names == ("cat", "dog")
    assert pairs(dataset.train) == pairs(dataset.test) == [(0, 0), (1, 0), (2, 0), (10, 1), (11, 1)]
    assert dataset.notes[-1] == "5 files are in both splits, through links"


def test_a_second_link_to_a_class_is_no_class_of_its_own(tmp_path):
    fill(tmp_path / "set/cat", range(3))
    fill(tmp_path / "set/dog", range(10, 12))
    (tmp_path / "set/kitten").symlink_to("cat")
    dataset = load(tmp_path / "set")
    assert dataset.class_names == ("cat", "dog") and len(dataset.train) + len(dataset.test) == 5
    assert "folders that were read already 1" in dataset.notes[0]


def test_splits_below_the_only_folder_with_pictures_are_the_splits(tmp_path):
    for split, start in (("train", 0), ("val", 100)):
        fill(tmp_path / "set/images" / split / "cat", range(start, start + 3))
        fill(tmp_path / "set/images" / split / "dog", range(start + 50, start + 52))
        (tmp_path / "set/labels" / split).mkdir(parents=True)
        (tmp_path / "set/labels" / split / "000.txt").write_text("0 0.5 0.5 1 1")
    dataset = load(tmp_path)
    assert dataset.class_names == ("cat", "dog") and len(dataset.notes) == 2
    assert pairs(dataset.train) == [(0, 0), (1, 0), (2, 0), (50, 1), (51, 1)]
    assert pairs(dataset.test) == [(100, 0), (101, 0), (102, 0), (150, 1), (151, 1)]


@pytest.mark.parametrize("others", [["b/train", "b/test"], ["b"], [""]])
def test_splits_below_the_root_that_are_mixed_are_named(tmp_path, others):
    for folder in ("a/train", "a/val", *others):
        fill(tmp_path / folder, range(3))
    places = f"{tmp_path}/a" + f", {tmp_path}/b" * (len(others) > 1)
    assert load(tmp_path).notes[-1] == (f"the splits in {places} are mixed; to keep them apart, make {tmp_path}/train and "
                                        f"{tmp_path}/test")
    fill(tmp_path / "a/aeroplane", range(3))      # then train and val are no splits
    assert f"{tmp_path}/a" not in load(tmp_path).notes[-1].partition(" are mixed")[0]
