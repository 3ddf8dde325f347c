"""Labels and the names of their classes: data sets in their official formats, and arrays."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth_pictures, write_archive, write_cifar10, write_cifar10_archive, write_cifar100

from scorefield.data import Dataset, Examples, from_arrays, load_dataset
from scorefield.data.cifar import CIFAR100_COARSE, CIFAR100_FINE

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def refused(error, name, **fields):
    """The message of the error of just that type: one line that names data.path."""
    with pytest.raises(error) as caught:
        load_dataset({"dataset": name, **fields})
    assert "\n" not in str(caught.value) and caught.value.arguments[0].startswith("data.")
    return str(caught.value)


def labels(dataset):
    return tuple(split[torch.arange(len(split))][1]["label"].tolist() for split in (dataset.train, dataset.test))


def rewrite(file, **changes):
    """Change the content of a pickle; None takes a key out."""
    content = pickle.loads(file.read_bytes())
    content |= {key.encode(): value for key, value in changes.items()}
    file.write_bytes(pickle.dumps({k: v for k, v in content.items() if v is not None}, protocol=2))


# CIFAR-10 and CIFAR-100


def test_cifar10_has_the_labels_of_its_batches_in_their_order_and_the_names_of_its_meta(tmp_path):
    batches = write_cifar10(tmp_path / "a", num_train=23, num_test=4)
    for i, few in enumerate(([7, 7, 1, 0, 9], [3] * 5, [4] * 5, [5] * 4, [6] * 4), 1):
        rewrite(batches / f"data_batch_{i}", labels=few)
    rewrite(batches / "test_batch", labels=[9, 8, 0, 1])
    archive = write_cifar10_archive(tmp_path / "b", batches)
    for path in (batches, archive):
        dataset = load_dataset({"dataset": "cifar10", "path": str(path)})
        assert labels(dataset) == ([7, 7, 1, 0, 9] + [3] * 5 + [4] * 5 + [5] * 4 + [6] * 4, [9, 8, 0, 1])
        assert dataset.class_names == tuple(f"class {i}" for i in range(10))
    (batches / "batches.meta").unlink()
    assert load_dataset({"dataset": "cifar10", "path": str(batches)}).class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("kind, names", [("fine", 100), ("coarse", 20)])
def test_cifar100_has_fine_or_coarse_labels_from_its_folder_or_archive(tmp_path, kind, names):
    root = write_cifar100(tmp_path / "a")
    archive = write_archive(tmp_path / "b", root, "cifar-100-python.tar.gz")
    pictures = torch.from_numpy(smooth_pictures(47))
    expected = [99 - i for i in range(40)] if kind == "fine" else [i % 20 for i in range(40)]
    for path in (root, root.parent, archive, archive.parent):
        dataset = load_dataset({"dataset": "cifar100", "path": str(path), "labels": kind})
        assert labels(dataset) == (expected, expected[:7])
        assert dataset.class_names == tuple(f"{kind} {i}" for i in range(names)) and dataset.classes == names
        assert torch.equal(dataset.train.data, pictures[:40]) and torch.equal(dataset.test.data, pictures[40:])
        assert (dataset.shape, dataset.levels, dataset.flip) == ((3, 32, 32), 256, True)
    (root / "meta").unlink()
    layout = CIFAR100_FINE if kind == "fine" else CIFAR100_COARSE
    assert load_dataset({"dataset": "cifar100", "path": str(root), "labels": kind}).class_names == layout.names


def test_the_known_names_of_cifar100_are_distinct_and_in_alphabetical_order_as_published():
    for layout, number in ((CIFAR100_FINE, 100), (CIFAR100_COARSE, 20)):
        assert len(set(layout.names)) == number and list(layout.names) == sorted(layout.names)
    assert CIFAR100_FINE.names[:3] == ("apple", "aquarium_fish", "baby") and CIFAR100_FINE.names[-1] == "worm"


def test_cifar100_takes_fine_or_coarse_labels_only(tmp_path):
    message = refused(ValueError, "cifar100", path=str(write_cifar100(tmp_path)), labels="medium")
    assert message == "data.labels='medium' must be 'fine' or 'coarse'"


@pytest.mark.parametrize("wrong, words", [
    ([0, 1], "are 2, expected a list of 3"), ([0, 1, 2, 3], "are 4, expected a list of 3"),
    ([0, 10, 2], "picture 1 has label 10, expected 0 .. 9"), ([0, 1, -1], "picture 2 has label -1"),
    ([0, True, 1], "picture 1 has label True"), ([0, 1.0, 1], "picture 1 has label 1.0"), ("abc", "are str"),
    ({0: 1, 1: 1, 2: 1}, "are dict"), (None, None),
])
def test_wrong_labels_of_cifar10_name_their_batch_and_a_batch_without_any_gives_none(tmp_path, wrong, words):
    batches = write_cifar10(tmp_path, num_train=15, num_test=2)
    rewrite(batches / "data_batch_4", labels=wrong)
    if words is None:
        dataset = load_dataset({"dataset": "cifar10", "path": str(batches)})
        assert dataset.classes is None and dataset.class_names == () and dataset.train[torch.arange(1)][1] == {}
        assert dataset.unlabelled == f"{batches / 'data_batch_4'} holds no labels"
    else:
        message = refused(ValueError, "cifar10", path=str(batches))
        assert str(batches / "data_batch_4") in message and words in message


def test_wrong_files_of_names_are_named(tmp_path):
    batches, root = write_cifar10(tmp_path / "a", num_train=10, num_test=2), write_cifar100(tmp_path / "b")
    for names in ([b"cat"], [b"cat"] * 10, [1] * 10, None):
        rewrite(batches / "batches.meta", label_names=names)
        assert str(batches / "batches.meta") in refused(ValueError, "cifar10", path=str(batches))
    rewrite(root / "meta", coarse_label_names=[b"only"])
    assert str(root / "meta") in refused(ValueError, "cifar100", path=str(root), labels="coarse")
    assert load_dataset({"dataset": "cifar100", "path": str(root)}).classes == 100      # fine ones are not touched


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_file_of_names_or_batch_of_cifar100_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    for name, key in (("meta", b"fine_label_names"), ("train", b"fine_labels")):
        root = write_cifar100(tmp_path / name)
        (root / name).write_bytes(pickle.dumps({key: Payload(trace)}, protocol=2))
        assert "refused to load" in refused(ValueError, "cifar100", path=str(root))
        assert not trace.exists()


def test_missing_and_damaged_files_of_cifar100_are_named(tmp_path):
    root = write_cifar100(tmp_path / "a")
    whole = (root / "test").read_bytes()
    (root / "test").write_bytes(whole[:-50])
    assert str(root / "test") in refused(ValueError, "cifar100", path=str(root))
    (root / "test").unlink()
    assert "lacks test of cifar-100-python.tar.gz" in refused(FileNotFoundError, "cifar100", path=str(root))
    assert "cifar-100-python.tar.gz" in refused(FileNotFoundError, "cifar100", path=str(tmp_path / "nowhere"))
    (tmp_path / "pictures/train").mkdir(parents=True)      # folders of these names are no batches
    assert "neither is nor holds" in refused(FileNotFoundError, "cifar100", path=str(tmp_path / "pictures"))
    other = write_cifar10_archive(tmp_path / "c", write_cifar10(tmp_path / "b", 10, 2))
    assert "lacks train, test" in refused(FileNotFoundError, "cifar100", path=str(other))


# Fashion-MNIST


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path):
    for name, numbers in (("train", [9, 0, 0, 3, 2]), ("t10k", [1, 4, 7])):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(np.zeros((len(numbers), 28, 28))))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.array(numbers)))
    return tmp_path


def test_fashion_mnist_has_its_labels_plain_or_gzipped(fashion):
    for _ in range(2):
        dataset = load_dataset({"dataset": "fashion_mnist", "path": str(fashion)})
        assert labels(dataset) == ([9, 0, 0, 3, 2], [1, 4, 7])
        assert dataset.classes == 10 and dataset.class_names[0] == "T-shirt/top" and dataset.class_names[9] == "Ankle boot"
        plain = fashion / "train-labels-idx1-ubyte"
        if plain.exists():
            (fashion / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()


@pytest.mark.parametrize("name", ["train", "t10k"])
def test_missing_and_damaged_labels_of_fashion_mnist_are_named(fashion, name):
    file = fashion / f"{name}-labels-idx1-ubyte"
    good = file.read_bytes()
    wrong = {"truncated": good[:-1], "too long": good + b"\0", "fewer": idx(np.zeros(2)), "more": idx(np.zeros(6)),
             "out of range": good[:-1] + b"\x0a", "pictures": idx(np.zeros((3, 28, 28))), "empty": b"", "header": good[:5],
             "huge": good[:4] + b"\xff" * 4 + good[8:]}
    for kind, content in wrong.items():
        file.write_bytes(content)
        assert str(file) in refused(ValueError, "fashion_mnist", path=str(fashion)), kind
    file.unlink()
    message = refused(FileNotFoundError, "fashion_mnist", path=str(fashion))
    assert f"put {name}-labels-idx1-ubyte (or .gz) there" in message and str(fashion) in message
    file.with_suffix(".gz").write_bytes(gzip.compress(good)[:-9])
    assert f"{file}.gz" in refused(ValueError, "fashion_mnist", path=str(fashion))


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="no dataset-fashion-mnist of Debian here")
def test_fashion_mnist_of_debian_has_each_class_equally_often_and_pictures_that_fit_their_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    dataset = load_dataset({"dataset": "fashion_mnist"})
    for split, each in ((dataset.train, 6000), (dataset.test, 1000)):
        assert torch.bincount(split.condition["label"]).tolist() == [each] * 10
    # The means of the classes tell four of five held-out pictures apart or nearly; with labels in another order, one in ten.
    train, label = dataset.train.data.flatten(1).float(), dataset.train.condition["label"]
    means = torch.stack([train[label == k].mean(0) for k in range(10)])
    guess = torch.cdist(dataset.test.data.flatten(1).float(), means).argmin(1)
    assert (guess == dataset.test.condition["label"]).double().mean() > 0.6
    ink = means.mean(1)      # a sandal is the class with the least ink, a coat or a pullover the one with the most
    assert dataset.class_names[int(ink.argmin())] == "Sandal"
    assert dataset.class_names[int(ink.argmax())] in ("Coat", "Pullover")


# Arrays, and data sets in general

X = torch.zeros(4, 2)


def test_arrays_name_their_classes_by_number_up_to_the_largest_label_unless_told_names():
    plain = from_arrays(X, y_train=[0, 2, 2, 0])
    assert plain.classes == 3 and plain.class_names == ("0", "1", "2")
    named = from_arrays(X, y_train=np.array([0, 1, 1, 0], np.uint8), class_names=["cat", "dog", "cow"])
    assert named.classes == 3 and named.class_names == ("cat", "dog", "cow")
    assert named.train.condition["label"].dtype == torch.int64
    assert from_arrays(X).classes is None and from_arrays(X, y_train={"angle": torch.zeros(4, 3)}).classes is None
    held_out = from_arrays(torch.zeros(21, 2), y_train=[1] * 20 + [5])      # the only one of class 5 is held out
    assert held_out.classes == 6 and 5 not in held_out.train.condition["label"]


@pytest.mark.parametrize("arguments, words, argument", [
    ({"y_train": [0, 1, -1, 0]}, r"y_train: example 2 has label -1; labels are 0 .. 1", "y_train"),
    ({"y_train": [-3] * 4}, r"y_train: example 0 has label -3; labels are 0 or more", "y_train"),
    ({"y_train": [0, 1, 0, 2], "class_names": ["a", "b"]}, r"example 3 has label 2; labels are 0 .. 1, the 2 classes that "
     "class_names names", "y_train"),
    ({"x_test": X, "y_train": [0, 1, 1, 0], "y_test": [0, 2, 0, 0]}, r"y_test: example 1 has label 2; labels are 0 .. 1, as "
     "in y_train; class_names may name more", "y_test"),
    ({"x_test": X, "y_train": [0, 1, 1, 0], "y_test": [0, 1, 0, 3], "class_names": ["a", "b"]}, "y_test: example 3",
     "y_test"),
    ({"y_train": [0, 1, 0, 10**12]}, "the largest label is 1000000000000.*number the classes from 0", "y_train"),
    ({"class_names": ["a", "b"]}, "class_names are the names of labels; give labels as y_train", "class_names"),
    ({"y_train": [0, 1, 0, 1], "class_names": "ab"}, "must be a list of names", "class_names"),
    ({"y_train": [0, 1, 0, 1], "class_names": [0, 1]}, "must be a list of names", "class_names"),
    ({"y_train": [0, 1, 0, 1], "class_names": ["a", "b", "a"]}, "'a' is there twice", "class_names"),
    ({"y_train": [[0, 1]] * 4}, "a whole number for each example", "y_train"),
])
def test_labels_that_are_no_class_are_refused_with_the_example_and_the_label(arguments, words, argument):
    with pytest.raises(ValueError, match=words) as caught:
        from_arrays(X, **arguments)
    assert argument in caught.value.arguments and "\n" not in str(caught.value)


def test_a_data_set_counts_its_classes_over_both_splits_and_checks_them():
    def make(train, test, **more):
        return Dataset("mine", Examples(X, {"label": torch.tensor(train)}), Examples(X, {"label": torch.tensor(test)}), (2,),
                       None, **more)

    assert make([0, 1, 0, 0], [0, 0, 2, 0]).class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="mine, test: example 2 has label 2; labels are 0 .. 1"):
        make([0, 1, 0, 0], [0, 0, 2, 0], class_names=("a", "b"))
    with pytest.raises(ValueError, match="class_names are given, but the examples of 'mine' have no labels"):
        Dataset("mine", X, X, (2,), None, class_names=("a", "b"))
    with pytest.raises(ValueError, match="whole number for each example, got torch.float32"):
        make([0.0, 1.0, 0.0, 0.0], [0, 0, 1, 0])


def test_counting_classes_reads_no_example():
    class Unread:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise AssertionError("read")

    lazy = Examples(Unread(), {"label": torch.tensor([0, 4, 1, 1])})
    assert Dataset("lazy", lazy, lazy, (3, 8, 8), 256).classes == 5
    assert Dataset("own", Unread(), Unread(), (3, 8, 8), 256, class_names=("a", "b")).classes == 2
