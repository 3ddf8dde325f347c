import gzip
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
import torch
from helpers import smooth_pictures, write_cifar10, write_cifar10_archive, write_cifar100
from PIL import Image

from scorefield.data import DATASETS, cifar, levels_of, load_dataset, mixture_parameters, patches
from scorefield.data import pictures as decoding

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load(dataset, **fields):
    return load_dataset(SimpleNamespace(dataset=dataset, **fields))  # reading any other field would fail


def error_line(error, dataset, **fields):
    """The message of the error, of just that type, that loading raises: one line that names the flag."""
    with pytest.raises(error) as caught:
        load(dataset, **fields)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)
    if error is not OSError:      # what is to blame is the network
        assert "data." in str(caught.value) and caught.value.arguments[0].startswith("data.")
    return str(caught.value)


# The contract


def contract_cases(tmp_path):
    write_cifar10(tmp_path / "cifar10", num_train=10, num_test=3)
    write_cifar100(tmp_path / "cifar100", num_train=10, num_test=3)
    write_fashion_mnist(tmp_path / "fashion", train=4, test=2)
    write_pictures(tmp_path / "folder", 12)
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 256, (20, 6, 4, 3)).astype(np.uint8))
    return {
        "digits": {},
        "patches32": {},
        "swiss_roll": {"size": 30, "seed": 0},
        "gaussians8": {"size": 30, "seed": 0},
        "gaussians25": {"size": 30, "seed": 0},
        "cifar10": {"path": str(tmp_path / "cifar10")},
        "cifar100": {"path": str(tmp_path / "cifar100")},
        "fashion_mnist": {"path": str(tmp_path / "fashion")},
        "folder": {"path": str(tmp_path / "folder"), "image_size": 6, "channels": 3},
        "array": {"path": str(tmp_path / "array.npy")},
    }


def test_every_dataset_keeps_the_contract_and_reads_only_its_own_fields(tmp_path):
    cases, classes = contract_cases(tmp_path), {"digits": 10, "cifar10": 10, "cifar100": 100, "fashion_mnist": 10}
    assert cases.keys() == DATASETS.keys() - {"arrays", "pair", "hf:OWNER/NAME"}      # in files of their own
    for name, fields in cases.items():
        dataset = load(name, **fields)
        assert dataset.name == name and dataset.levels == levels_of(name)
        for split in (dataset.train, dataset.test):
            batch, condition = split[torch.tensor([1, 0, 1])]
            assert batch.shape == (3, *dataset.shape), name
            assert torch.equal(batch[0], batch[2]) and torch.equal(batch[:2], split[torch.tensor([1, 0])][0])
            assert len(split[torch.arange(len(split))][0]) == len(split) >= 2
            assert condition.keys() == ({"label"} if name in classes else set()), name
            assert all(label.dtype == torch.int64 and label.shape == (3,) for label in condition.values())
            if dataset.levels is None:
                assert batch.dtype == torch.float32
            else:
                assert batch.dtype == torch.uint8 and batch.max().item() < dataset.levels
            assert batch.is_contiguous()
        assert dataset.classes == classes.get(name) and len(dataset.class_names) == classes.get(name, 0)
    assert {name for name, fields in cases.items() if load(name, **fields).flip} == {
        "cifar10", "cifar100", "folder", "patches32"}


def test_a_field_that_the_data_set_does_not_take_is_refused_by_name():
    assert "data set 'digits' takes no data.path; it takes flip" in error_line(ValueError, "digits", path="/tmp")
    assert "takes no data.flip" in error_line(ValueError, "swiss_roll", flip=True)
    assert "(1, 8, 8); data.image_size=16 does not fit" in error_line(ValueError, "digits", image_size=16)


def test_none_stands_for_the_default_and_for_nothing_where_the_data_set_takes_no_such_field():
    assert len(load("swiss_roll", size=None, seed=0, path="", flip=None, image_size=None, low=-1.0).train) == 10_000
    assert load("digits", flip=None).flip is False and load("digits", flip=True).flip is True


def test_data_given_in_python_cannot_be_loaded_by_name():
    assert "train(config, dataset=...)" in error_line(ValueError, "arrays")


def test_digits_have_their_labels():
    from sklearn.datasets import load_digits

    dataset, labels = load("digits"), load_digits().target
    assert np.array_equal(dataset.test[torch.arange(360)][1]["label"], labels[::5])
    assert np.array_equal(dataset.train[torch.arange(1437)][1]["label"], np.delete(labels, np.s_[::5]))
    assert dataset.class_names == tuple("0123456789")


def test_an_ml_collections_config_will_do():
    config = ml_collections.ConfigDict({"dataset": "gaussians8", "path": "", "size": 7, "seed": 3})
    assert len(load_dataset(config).train) == 7


def test_an_unknown_dataset_is_answered_with_the_nearest_name_and_all_names():
    message = error_line(ValueError, "CIFAR-10")
    assert "data.dataset='CIFAR-10'" in message and "nearest: 'cifar10'" in message
    assert all(f" {name}" in message for name in DATASETS if name != "arrays") and " arrays" not in message
    assert "nearest: 'swiss_roll'" in error_line(ValueError, "swissroll")


# Digits


def test_digits_hold_out_every_fifth_image_and_no_other():
    from sklearn.datasets import load_digits

    images, dataset = load_digits().images, load("digits")
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert np.array_equal(dataset.test.data[:, 0], images[::5])
    assert np.array_equal(dataset.train.data[:, 0], np.delete(images, np.s_[::5], axis=0))
    assert dataset.levels == 17 and dataset.train.data.max() == 16


# Patches of photographs


def test_patches_of_the_two_photographs_are_cut_at_every_eighth_pixel_of_their_bands():
    from sklearn.datasets import load_sample_image

    dataset, china = load("patches32"), load_sample_image("china.jpg")
    assert (len(dataset.train), len(dataset.test)) == (5500, 1000) and dataset.shape == (3, 32, 32)
    starts = [*range(0, 161, 8), *range(256, 481, 8), *range(576, 609, 8)]
    rows = [torch.from_numpy(china[8:40, x:x + 32].transpose(2, 0, 1).copy()) for x in starts]
    assert torch.equal(dataset.train.data[55:110], torch.stack(rows))
    held_out = [torch.from_numpy(china[0:32, x:x + 32].transpose(2, 0, 1).copy())
                for x in [*range(192, 225, 8), *range(512, 545, 8)]]
    assert torch.equal(dataset.test.data[:10], torch.stack(held_out))


def test_no_pixel_of_a_held_out_patch_is_in_a_training_patch():
    places = np.arange(427 * 640).reshape(427, 640, 1)      # each pixel its own number
    train, test = patches.cut(places)
    assert set(train.unique().tolist()).isdisjoint(test.unique().tolist())
    assert len(train.unique()) + len(test.unique()) == 640 * 424      # all pixels but the last three rows
    assert (len(train), len(test)) == (2750, 500)


# Points


def test_swiss_roll_lies_on_its_spiral():
    points = load("swiss_roll", size=20_000, seed=0).train.data.double().numpy()
    radius, angle = 7 * np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    # On r = angle the nearest turn is off by noise alone: 7 * 0.05 along the radius, less along the angle.
    off = (radius - angle + np.pi) % (2 * np.pi) - np.pi
    assert 0.34 < off.std() < 0.38 and abs(off.mean()) < 0.01
    assert 1.5 * np.pi - 2 < radius.min() < 1.5 * np.pi and 4.5 * np.pi < radius.max() < 4.5 * np.pi + 2
    turn = radius.clip(1.5 * np.pi, 4.5 * np.pi) / np.pi
    assert np.allclose(np.histogram(turn, bins=6, range=(1.5, 4.5))[0] / 20_000, 1 / 6, atol=0.02)
    assert 0.9 < points[:, 0].std() < 1.1 and 0.9 < points[:, 1].std() < 1.1


@pytest.mark.parametrize("name, components", [("gaussians8", 8), ("gaussians25", 25)])
def test_mixture_points_follow_the_mixture_parameters(name, components):
    means, variances, weights = mixture_parameters(name)
    assert means.shape == (components, 2) and variances.shape == weights.shape == (components,)
    assert weights.sum() == pytest.approx(1) and np.all(weights == weights[0])
    points = load(name, size=50_000, seed=0).train.data.double().numpy()
    nearest = ((points[:, None] - means) ** 2).sum(-1).argmin(1)
    for k in range(components):
        mine = points[nearest == k] - means[k]
        count = 50_000 * weights[k]
        assert abs(len(mine) - count) < 5 * np.sqrt(count)
        assert np.abs(mine.mean(0)).max() < 5 * np.sqrt(variances[k] / count)
        assert np.abs(mine.var(0) / variances[k] - 1).max() < 5 * np.sqrt(2 / count)
    assert points.std(0) == pytest.approx([1, 1], abs=0.02)


def test_mixture_means_are_the_ring_and_the_grid():
    ring = mixture_parameters("gaussians8")[0]
    np.testing.assert_allclose(np.hypot(*ring.T), np.sqrt(2))
    gaps = np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1)
    np.testing.assert_allclose(gaps, gaps[0])
    grid = mixture_parameters("gaussians25")[0] * np.sqrt(2)
    assert {tuple(mean) for mean in grid.round(9)} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    with pytest.raises(ValueError, match="gaussians8, gaussians25"):
        mixture_parameters("gaussians9")


@pytest.mark.parametrize("name", ["swiss_roll", "gaussians8"])
def test_points_depend_on_the_seed_and_the_splits_are_independent_streams(name):
    dataset, again, other = (load(name, size=None, seed=seed) for seed in (5, 5, 6))
    assert (len(dataset.train), len(dataset.test)) == (10_000, 2_000)
    assert torch.equal(dataset.train.data, again.train.data) and torch.equal(dataset.test.data, again.test.data)
    assert not torch.equal(dataset.train.data, other.train.data) and not torch.equal(dataset.test.data, other.test.data)
    alike = load(name, size=2_000, seed=5)
    assert torch.equal(alike.test.data, dataset.test.data)
    assert abs(np.corrcoef(alike.train.data.flatten(), alike.test.data.flatten())[0, 1]) < 5 / np.sqrt(2_000)


def test_points_refuse_sizes_below_one_and_negative_seeds():
    for size in (0, -1):
        assert f"data.size={size} must be" in error_line(ValueError, "swiss_roll", size=size, seed=0)
    assert "data.seed=-1 must be" in error_line(ValueError, "gaussians25", size=None, seed=-1)


# CIFAR-10


def check_cifar10(dataset, num_train=23, num_test=4, seed=0):
    pictures = torch.from_numpy(smooth_pictures(num_train + num_test, seed=seed))
    assert torch.equal(dataset.train.data, pictures[:num_train])
    assert torch.equal(dataset.test.data, pictures[num_train:])
    assert dataset.shape == (3, 32, 32) and dataset.levels == 256


def test_cifar10_is_found_as_folder_or_archive_itself_or_inside_the_path(tmp_path, monkeypatch):
    batches = write_cifar10(tmp_path / "a", num_train=23, num_test=4)
    archive = write_cifar10_archive(tmp_path / "b", batches)
    renamed = archive.parent.parent / "renamed.tgz"
    renamed.write_bytes(archive.read_bytes())
    for path in (batches, batches.parent, archive, archive.parent, renamed):
        check_cifar10(load("cifar10", path=str(path)))
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    batches.parent.rename(tmp_path / "cifar10")
    check_cifar10(load("cifar10", path=""))


def test_cifar10_bytes_are_read_from_pickles_of_python_2_and_of_old_and_new_numpy(tmp_path):
    batches = write_cifar10(tmp_path, num_train=23, num_test=4)
    first = pickle.loads((batches / "data_batch_1").read_bytes())[b"data"]
    python2 = (  # as the official files: keys and data as Python 2's str, no labels needed
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01K%cM\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R" % len(first)
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + (b"T" + struct.pack("<i", first.size) + first.tobytes() + b"tbs.")
    )
    assert np.array_equal(pickle.loads(python2, encoding="bytes")[b"data"], first)
    (batches / "data_batch_1").write_bytes(python2)
    for i, old, new in ((2, b"numpy._core", b"numpy.core"), (3, b"numpy.core", b"numpy._core")):
        file = batches / f"data_batch_{i}"
        file.write_bytes(file.read_bytes().replace(old, new))
    content = pickle.loads((batches / "data_batch_4").read_bytes())
    (batches / "data_batch_4").write_bytes(pickle.dumps({b"data": content[b"data"]}, protocol=4))
    check_cifar10(load("cifar10", path=str(tmp_path)))


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["data", "labels"])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, place):
    batches, trace = write_cifar10(tmp_path / "a", num_train=10, num_test=2), tmp_path / "trace"
    payload = Payload(open, str(trace), "w")
    array = np.zeros((2, 3072), np.uint8)
    content = {b"data": payload} if place == "data" else {b"labels": payload, b"data": array}
    raw = pickle.dumps(content, protocol=2)
    pickle.loads(raw)[b"data"]
    assert trace.exists()  # the payload works,
    trace.unlink()
    (batches / "data_batch_3").write_bytes(raw)
    archive = write_cifar10_archive(tmp_path / "b", batches)
    for path in (batches, archive):
        message = error_line(ValueError, "cifar10", path=str(path))
        assert "data_batch_3" in message and "open" in message
        assert not trace.exists()  # and did not run


@pytest.mark.parametrize("function", [np.load, np.lib.format.read_array, eval, getattr, pickle.loads])
def test_no_function_but_those_of_an_array_is_loaded(tmp_path, function):
    batches = write_cifar10(tmp_path, num_train=10, num_test=2)
    (batches / "test_batch").write_bytes(pickle.dumps({b"data": Payload(function, b"1")}, protocol=4))
    assert "refused to load" in error_line(ValueError, "cifar10", path=str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 3072), np.int64),
        np.zeros((2, 3072), np.int8),
        np.zeros((2, 3071), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((0, 3072), np.uint8),
        np.asfortranarray(np.zeros((2, 3072), np.uint8)),
        [[0] * 3072] * 2,
        None,
    ],
)
def test_a_cifar10_batch_of_another_type_or_shape_is_refused(tmp_path, data):
    batches = write_cifar10(tmp_path, num_train=10, num_test=2)
    (batches / "data_batch_5").write_bytes(pickle.dumps({b"data": data}, protocol=4))
    assert "data_batch_5" in error_line(ValueError, "cifar10", path=str(tmp_path))


def test_damaged_and_missing_cifar10_files_are_named(tmp_path):
    batches = write_cifar10(tmp_path / "a", num_train=10, num_test=2)
    archive = write_cifar10_archive(tmp_path / "b", batches)
    whole = archive.read_bytes()
    checksum = whole[:-8] + bytes(4) + whole[-4:]  # with it wrong every batch still looks whole
    for damaged in (checksum, whole[:-30], whole[: len(whole) // 2], whole[1:], b"", b"not an archive"):
        archive.write_bytes(damaged)
        assert str(archive) in error_line(ValueError, "cifar10", path=str(archive.parent))

    batch = batches / "data_batch_2"
    whole = batch.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", b"text", pickle.dumps({b"labels": []})):
        batch.write_bytes(damaged)
        assert str(batch) in error_line(ValueError, "cifar10", path=str(batches))
    batch.unlink()
    assert "lacks data_batch_2 of" in error_line(FileNotFoundError, "cifar10", path=str(batches))
    archive = write_cifar10_archive(tmp_path / "c", batches)
    assert "lacks data_batch_2 of" in error_line(FileNotFoundError, "cifar10", path=str(archive))


def test_a_path_without_cifar10_is_an_error_even_where_a_download_would_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "fetch", None)
    for path in (tmp_path, tmp_path / "nowhere"):
        message = error_line(FileNotFoundError, "cifar10", path=str(path))
        assert all(word in message for word in (str(path), "cifar-10-batches-py", "cifar-10-python.tar.gz"))


# Fashion-MNIST


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_fashion_mnist(folder, train=5, test=3):
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(pictures[:train]))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pictures[train:])))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(train) * 3 % 10)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(9 - np.arange(test)))
    return torch.from_numpy(pictures).unsqueeze(1)


def test_fashion_mnist_is_read_plain_or_gzipped_from_the_path_or_the_cache(tmp_path, monkeypatch):
    pictures = write_fashion_mnist(tmp_path / "fashion-mnist")
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    for path in (str(tmp_path / "fashion-mnist"), ""):
        dataset = load("fashion_mnist", path=path)
        assert torch.equal(dataset.train.data, pictures[:5]) and torch.equal(dataset.test.data, pictures[5:])
        assert dataset.levels == 256 and not dataset.flip


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="no dataset-fashion-mnist of Debian here")
def test_fashion_mnist_of_debian_has_its_published_size_and_mean(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    dataset = load("fashion_mnist", path="")
    assert dataset.train.data.shape == (60_000, 1, 28, 28) and dataset.test.data.shape == (10_000, 1, 28, 28)
    assert dataset.train.data.double().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert dataset.train.data.double().std().item() / 255 == pytest.approx(0.3530, abs=5e-5)


def test_damaged_idx_files_are_named(tmp_path):
    write_fashion_mnist(tmp_path / "f")
    path = str(tmp_path / "f")
    plain, zipped = tmp_path / "f" / "train-images-idx3-ubyte", tmp_path / "f" / "t10k-images-idx3-ubyte.gz"
    good, good_zip = plain.read_bytes(), zipped.read_bytes()
    header = struct.Struct(">HBB3I")
    wrong = {
        "truncated": good[:-1],
        "too long": good + bytes(28 * 28),
        "header only": good[:16],
        "half a header": good[:9],
        "empty": b"",
        "magic": b"\x01" + good[1:],
        "signed bytes": header.pack(0, 9, 3, 5, 28, 28) + good[16:],
        "labels": struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5),
        "29 rows": header.pack(0, 8, 3, 28, 29, 28) + bytes(28 * 29 * 28),
        "29 columns": header.pack(0, 8, 3, 28, 28, 29) + bytes(28 * 28 * 29),
        "huge": header.pack(0, 8, 3, 2**32 - 1, 28, 28) + good[16:],
        "none": header.pack(0, 8, 3, 0, 28, 28),
    }
    for kind, content in wrong.items():
        plain.write_bytes(content)
        assert str(plain) in error_line(ValueError, "fashion_mnist", path=path), kind
    plain.write_bytes(good)
    corrupt = bytearray(good_zip)
    corrupt[len(corrupt) // 2] ^= 0xFF
    for content in (good_zip[:-20], good_zip[: len(good_zip) // 2], bytes(corrupt), b"no gzip", b""):
        zipped.write_bytes(content)
        assert str(zipped) in error_line(ValueError, "fashion_mnist", path=path)


def test_missing_idx_files_are_named_with_the_places_searched(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "f")
    (tmp_path / "f" / "t10k-images-idx3-ubyte.gz").unlink()
    message = error_line(FileNotFoundError, "fashion_mnist", path=str(tmp_path / "f"))
    assert "t10k-images-idx3-ubyte" in message and str(tmp_path / "f") in message
    assert "/usr/share" not in message  # a path that was asked for has no substitute


# A folder of pictures


def write_pictures(folder, n, size=8):
    """Pictures 00.png, 01.png, ... and the same as uint8 (n, 3, size, size)."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = smooth_pictures(n, size)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{i:02}.png")
    return torch.from_numpy(pictures)


def load_folder(path, image_size=8, channels=3):
    return load("folder", path=str(path), image_size=image_size, channels=channels)


def folder_error(path, error=ValueError, image_size=8, channels=3):
    return error_line(error, "folder", path=str(path), image_size=image_size, channels=channels)


def test_folder_holds_out_every_tenth_picture_in_sorted_order_at_any_depth(tmp_path):
    pictures = write_pictures(tmp_path / "p", 23)
    (tmp_path / "p" / "zz").mkdir()
    (tmp_path / "p" / "22.png").rename(tmp_path / "p" / "zz" / "00.PNG")
    (tmp_path / "p" / "readme.txt").write_text("no picture")
    (tmp_path / "p" / "._00.png").write_text("what macOS leaves in archives")
    dataset = load_folder(tmp_path / "p")
    assert torch.equal(dataset.test.data, pictures[::10])
    assert torch.equal(dataset.train.data, pictures[[i for i in range(23) if i % 10]])
    assert dataset.levels == 256 and dataset.shape == (3, 8, 8)


def test_folder_takes_train_and_test_subfolders_as_the_splits(tmp_path):
    train, test = write_pictures(tmp_path / "train", 3), write_pictures(tmp_path / "test" / "deep", 1)
    dataset = load_folder(tmp_path)
    assert torch.equal(dataset.train.data, train) and torch.equal(dataset.test.data, test)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp"])
def test_folder_reads_every_format_in_colour_and_in_grey(tmp_path, suffix):
    for i in range(2):
        Image.new("RGB", (9, 7), (200, 100, 50)).save(tmp_path / f"{i}.{suffix}")
    colour = load_folder(tmp_path, image_size=4).train.data
    assert colour.shape == (1, 3, 4, 4)
    assert (colour.float() - torch.tensor([200.0, 100, 50]).view(3, 1, 1)).abs().max() <= 4
    grey = load_folder(tmp_path, image_size=4, channels=1).train.data
    assert grey.shape == (1, 1, 4, 4)
    assert (grey.float() - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).abs().max() <= 4


def test_folder_crops_the_centre_and_keeps_the_side_up(tmp_path):
    pixels = np.full((4, 12, 3), 255, np.uint8)  # white margins
    pixels[:, 4:8] = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 10
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    dataset = load_folder(tmp_path, image_size=4)
    square = torch.from_numpy(pixels[:, 4:8].transpose(2, 0, 1).copy())
    assert torch.equal(dataset.test.data[0], square.transpose(1, 2))  # tall: the first in order
    assert torch.equal(dataset.train.data, torch.stack([square, square]))  # turned, wide


def test_folder_resizes_with_antialiasing(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    for i in range(2):
        Image.fromarray(board.astype(np.uint8)).save(tmp_path / f"{i}.png")
    pictures = load_folder(tmp_path, image_size=8, channels=1).train.data
    assert ((pictures.float() - 127.5).abs() < 8).all()  # picking pixels would give 0 or 255


def test_a_large_folder_is_decoded_on_access_to_the_same_pictures(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path, 12)
    eager = load_folder(tmp_path)
    monkeypatch.setattr(decoding, "EAGER_BYTES", 2 * 3 * 8 * 8)  # enough for the two held out
    lazy = load_folder(tmp_path)
    assert isinstance(lazy.test.data, torch.Tensor) and not isinstance(lazy.train.data, torch.Tensor)
    assert len(lazy.train) == len(eager.train) == 10
    index = torch.tensor([7, 0, 0, 9])
    assert torch.equal(lazy.train[index][0], eager.train[index][0])
    assert torch.equal(lazy.train[index][0], pictures[[8, 1, 1, 11]])
    (tmp_path / "05.png").write_bytes(b"broken since")
    assert torch.equal(lazy.train[index][0], eager.train[index][0])
    with pytest.raises(ValueError, match="05.png"):
        lazy.train[torch.arange(10)]


def test_a_broken_picture_is_named_before_anything_starts(tmp_path):
    write_pictures(tmp_path, 4)
    bad = tmp_path / "02.png"
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.jpg")
    jpeg = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").unlink()
    png = bad.read_bytes()
    for content in (png[: len(png) // 2], png[:20], jpeg[: len(jpeg) // 2], b"", b"<html>"):
        bad.write_bytes(content)
        assert str(bad) in folder_error(tmp_path)
    bad.write_bytes(jpeg)  # a whole picture under another suffix is no harm
    assert len(load_folder(tmp_path).train) == 3


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    write_pictures(tmp_path, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow refuses more than twice as many
    assert "DecompressionBombError" in folder_error(tmp_path)


def test_no_permission_is_not_called_damage(tmp_path, monkeypatch):
    write_pictures(tmp_path, 2)

    def refuse(file, formats):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match="0[01].png"):
        load_folder(tmp_path)


def test_folder_needs_a_picture_for_each_split(tmp_path):
    assert "got 0 to train on and 0 to hold out" in folder_error(tmp_path)
    write_pictures(tmp_path / "train", 1)
    assert "got 0 to train on and 1 to hold out" in folder_error(tmp_path)
    (tmp_path / "test").mkdir()
    assert "got 1 to train on and 0 to hold out" in folder_error(tmp_path)
    write_pictures(tmp_path / "more", 2)
    assert len(load_folder(tmp_path / "more").train) == len(load_folder(tmp_path / "more").test) == 1


def test_folder_refuses_values_out_of_range_by_their_flag(tmp_path):
    write_pictures(tmp_path / "p", 2)
    assert "image_size=0 must be 1 or more" in folder_error(tmp_path / "p", image_size=0)
    assert "needs data.image_size, the number of pixels of a side" in folder_error(tmp_path / "p", image_size=None)
    assert "data.channels=2 must be 1 (grey) or 3 (RGB)" in folder_error(tmp_path / "p", channels=2)
    assert "needs data.path, a folder" in folder_error("")
    assert "nowhere' does not exist" in folder_error(tmp_path / "nowhere", FileNotFoundError)
    assert "00.png' is a file" in folder_error(tmp_path / "p" / "00.png", FileNotFoundError)
