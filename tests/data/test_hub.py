"""Data sets of the Hugging Face hub by name: with the real package where it is installed, and with one that acts as it."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import smooth_pictures
from PIL import Image

from scorefield.configs.loading import apply, from_stored, load_config
from scorefield.data import hub, load_dataset

PICTURES = smooth_pictures(25, 8)
GREY = PICTURES[:, :1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache/hub"


def load(name="hf:owner/name", **fields):
    return load_dataset({"dataset": name, **fields})


def refused(error, *words, **fields):
    with pytest.raises(error) as caught:
        load(**fields)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return caught.value


def labels(split):
    return split[torch.arange(len(split))][1]["label"].tolist()


# The real package


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Writes a data set as the hub has it, parquet files with their features, and returns its name."""
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))

    def write(**splits):
        folder = tmp_path / "hub_set"
        folder.mkdir()
        features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(),
                                      "label": datasets.ClassLabel(names=["cat", "dog", "eel"])})
        for name, rows in splits.items():
            content = {"id": [str(i) for i in rows], "label": [i % 3 for i in rows],
                       "image": [Image.fromarray(PICTURES[i].transpose(1, 2, 0)) for i in rows]}
            datasets.Dataset.from_dict(content, features=features).to_parquet(folder / f"{name}-00000-of-00001.parquet")
        return f"hf:{folder}"

    return write


@pytest.mark.parametrize("streaming", [False, True])
def test_a_real_data_set_is_read_by_name_with_its_classes_and_splits(real, cache, streaming):
    name = real(train=range(20), test=range(20, 25))
    for _ in range(2):      # from the hub, then from the cache
        dataset = load(name, streaming=streaming)
        assert torch.equal(dataset.train.data, torch.from_numpy(PICTURES[:20]))
        assert torch.equal(dataset.test.data, torch.from_numpy(PICTURES[20:]))
        assert labels(dataset.train) == [i % 3 for i in range(20)] and labels(dataset.test) == [2, 0, 1, 2, 0]
        assert dataset.class_names == ("cat", "dog", "eel") and dataset.shape == (3, 8, 8) and not dataset.flip
        assert dataset.name == name and dataset.levels == 256
        assert "20 training examples of split train and 5 held-out ones of split test" in dataset.notes[0]
        if (cache.parent.parent / "hub_set").exists():
            (cache.parent.parent / "hub_set").rename(cache.parent.parent / "gone")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_real_data_set_of_one_split_holds_out_every_tenth(real, streaming):
    dataset = load(real(train=range(25)), streaming=streaming)
    assert torch.equal(dataset.test.data, torch.from_numpy(PICTURES[::10]))
    assert torch.equal(dataset.train.data, torch.from_numpy(PICTURES[[i for i in range(25) if i % 10]]))
    assert "every tenth" in dataset.notes[0]


def test_a_real_split_may_be_cut_and_an_unknown_name_is_one_line(real, tmp_path):
    name = real(train=range(20), validation=range(20, 25))
    cut = load(name, train_split="train[:7]", test_split="train[7:9]")
    assert (len(cut.train), len(cut.test)) == (7, 2) and "left out: validation" in cut.notes[1]
    refused(OSError, "could not be loaded", "data.subset", name=f"hf:{tmp_path}/nowhere")


# A package that acts as it


class FakeImage:
    def __init__(self, decode=True):
        self.decode = decode


    def decode_example(self, value):
        assert value["path"].startswith("hf://")
        return Image.fromarray(GREY[int(value["path"][-1]), 0])


class FakeClassLabel:
    def __init__(self, *names):
        self.names = names


class FakeRows:
    """A split: its rows in order, and nothing by index, as a stream."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def cast_column(self, name, kind):
        assert isinstance(self.features[name], FakeImage) and not kind.decode
        return self

    def __iter__(self):
        yield from (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))


def as_bytes(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def fake(monkeypatch):
    """Installs a package whose hub has one set, from columns of each split; returns what was asked of it."""
    def install(features=None, **splits):
        given = {"image": FakeImage(), "label": FakeClassLabel("a", "b", "c")} if features is None else features
        asked = []

        def load_dataset(name, subset, *, split, streaming, revision):
            asked.append((name, subset, split, streaming, revision))
            return FakeRows(splits[split], given)

        package = SimpleNamespace(Image=FakeImage, ClassLabel=FakeClassLabel, load_dataset=load_dataset,
                                  get_dataset_split_names=lambda name, subset, revision: list(splits))
        monkeypatch.setitem(sys.modules, "datasets", package)
        return asked

    return install


def columns(pictures, numbers=None):
    return {"image": [as_bytes(x) for x in pictures],
            "label": list(numbers) if numbers is not None else [i % 3 for i in range(len(pictures))]}


def test_grey_pictures_keep_their_channel_and_their_pixels(fake):
    asked = fake(train=columns(GREY[:20]), test=columns(GREY[20:]))
    dataset = load(subset="digits", revision="main", streaming=True)
    assert dataset.shape == (1, 8, 8) and torch.equal(dataset.train.data, torch.from_numpy(GREY[:20]))
    assert asked == [("owner/name", "digits", split, True, "main") for split in ("train", "test")]
    colour = load(channels=3)
    assert colour.shape == (3, 8, 8) and torch.equal(colour.train.data, torch.from_numpy(GREY[:20]).expand(-1, 3, -1, -1))
    assert load(image_size=4).shape == (1, 4, 4)


def test_12_bits_stored_in_16_are_said_from_the_cache_too(fake):
    deep = GREY.astype(np.uint16) << 4
    fake(train=columns(deep[:20]), test=columns(deep[20:]))
    words = f"the largest level of the 25 pictures of 16 bits is {GREY.max() >> 4} of 255"
    for _ in range(2):
        assert any(note.startswith(words) for note in load().notes)


def test_the_cache_serves_later_runs_without_the_package_and_depends_on_all_that_is_asked(fake, cache, monkeypatch):
    asked = fake(train=columns(GREY[:20]), test=columns(GREY[20:]))
    first = load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    again = load()
    assert len(asked) == 2 and torch.equal(first.test.data, again.test.data) and first.notes == again.notes
    assert f"cached in {cache}/owner_name-" in first.notes[-1]
    for other in ({"image_size": 4}, {"subset": "x"}, {"background": "black"}, {"channels": 3}, {"revision": "v2"}):
        error = refused(OSError, "needs the package datasets", f"{sys.executable} -m pip install datasets", **other)
        assert error.__cause__ is not None
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_cache_is_named_and_a_large_one_is_read_batch_by_batch(fake, cache, monkeypatch):
    fake(train=columns(PICTURES[:20]), test=columns(PICTURES[20:]))
    eager = load()
    monkeypatch.setattr(hub, "EAGER_BYTES", 5 * 3 * 64)
    large = load()
    assert large.test.in_memory and not large.train.in_memory
    index = torch.tensor([13, 0, 13])
    assert torch.equal(large.train[index][0], eager.train[index][0]) and large.train[index][0].dtype == torch.uint8
    folder = next(cache.iterdir())
    whole = (folder / "test.bin").read_bytes()
    for name, content in (("test.bin", whole[:-1]), ("test.bin", bytes(len(whole))), ("test.npy", b"?")):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        refused(ValueError, str(folder), name, "remove that folder to fetch it again")
        (folder / name).write_bytes(good)
    (folder / "content.json").write_text("{")
    refused(ValueError, "content.json", "remove that folder to fetch it again")


def test_a_failure_in_mid_stream_leaves_nothing_and_names_the_row(fake, cache):
    bad = columns(PICTURES[:20])
    bad["image"][13] = {"bytes": b"no picture", "path": None}
    fake(train=bad, test=columns(PICTURES[20:]))
    refused(ValueError, "row 13 of split train", "damaged")
    bad["image"][13] = None
    refused(ValueError, "row 13 of split train", "there is no picture")
    assert not list(cache.iterdir())


def test_a_picture_may_be_a_file_here_or_on_the_hub(fake, tmp_path):
    Image.fromarray(GREY[0, 0]).save(tmp_path / "here.png")
    part = {"image": [{"bytes": None, "path": str(tmp_path / "here.png")}, {"bytes": None, "path": "hf://datasets/o/n/1"}],
            "label": [0, 1]}
    fake(train=part, test=part)
    assert torch.equal(load().train.data, torch.from_numpy(GREY[:2]))


def test_columns_are_found_or_named(fake):
    features = {"small": FakeImage(), "large": FakeImage(), "fine": FakeClassLabel("x", "y"), "coarse": FakeClassLabel("z"),
                "number": object(), "word": object(), "share": object()}
    part = {"small": [as_bytes(x) for x in GREY[:4]], "large": [as_bytes(x) for x in PICTURES[:4]], "fine": [0, 1, 1, 0],
            "coarse": [0] * 4, "number": [3, 1, 0, 2], "word": ["dog", "cat", "eel", "cat"], "share": [0.5] * 4}
    fake(features, train=part, test=part)
    error = refused(ValueError, "has 2 columns of pictures; set data.image_column to one of its columns: small, large")
    assert error.arguments == ("data.image_column",)
    refused(ValueError, "data.image_column='big' must be a column of hf:owner/name: small, large", image_column="big")
    plain = load(image_column="large")
    assert plain.shape == (3, 8, 8) and plain.classes is None
    assert plain.unlabelled == "several columns hold classes (fine, coarse); choose data.label_column"
    assert load(image_column="large", label_column="fine").class_names == ("x", "y")
    assert labels(load(image_column="small", label_column="number").train) == [3, 1, 0, 2]
    words = load(image_column="small", label_column="word")
    assert words.class_names == ("cat", "dog", "eel") and labels(words.train) == [1, 0, 2, 0]
    refused(ValueError, "column share holds float", image_column="small", label_column="share")
    refused(ValueError, "data.label_column='kind' must be a column", image_column="small", label_column="kind")


def test_splits_are_found_or_named(fake):
    part = columns(GREY[:4])
    fake(train=part, valid=part, extra=part)
    assert load().notes[1] == "splits of hf:owner/name that are left out: extra"
    refused(ValueError, "data.test_split='test' must be a split of hf:owner/name: train, valid, extra", test_split="test")
    fake(full=part)
    assert (len(load(revision="2").train), len(load(revision="2").test)) == (3, 1)
    fake(a=part, b=part)
    refused(ValueError, "has no split train; set data.train_split to one of a, b", revision="3")
    assert len(load(revision="3", train_split="a", test_split="b").train) == 4


def test_held_out_examples_whose_labels_are_hidden_have_none_and_gaps_are_refused(fake):
    fake(train=columns(GREY[:4]), test=columns(GREY[:4], [-1] * 4))
    dataset = load()
    assert labels(dataset.train) == [0, 1, 2, 0] and dataset.test[torch.arange(2)][1] == {}
    fake(train=columns(GREY[:4], [0, -1, 1, 2]), test=columns(GREY[:4]))
    refused(ValueError, "train example 1 has no label in column label", revision="2")


def test_pictures_of_other_sizes_or_colours_than_the_first_ask_for_a_size_or_for_channels(fake):
    mixed = columns([*GREY[:3], np.zeros((1, 4, 4), np.uint8)])
    fake(train=mixed, test=columns(GREY[:2]))
    refused(ValueError, "the picture in row 3 of split train is 4x4, the first one 8x8; set data.image_size")
    assert len(load(image_size=8).train) == 4
    fake(train=columns([GREY[0], PICTURES[1]]), test=columns(GREY[:2]))
    refused(ValueError, "row 1 of split train is not grey as the first one is; set data.channels", revision="2")
    assert load(revision="2", channels=1).shape == (1, 8, 8) and load(revision="2", channels=3).shape == (3, 8, 8)
    fake(train=columns([GREY[0][:, :4]]), test=columns(GREY[:2]))
    refused(ValueError, "no squares (the first is 8x4); set data.image_size", revision="3")


def test_transparency_lies_over_the_background(fake):
    clear = np.concatenate([PICTURES[:4], np.zeros((4, 1, 8, 8), np.uint8)], 1)
    fake(train=columns(clear), test=columns(clear))
    assert (load().train.data == 255).all() and (load(background="black").train.data == 0).all()
    refused(ValueError, "data.background='blak' must be a colour", background="blak")


def test_errors_of_the_hub_are_one_line(monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("Couldn't\nreach the hub" + "!" * 1000)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(get_dataset_split_names=fail))
    message = str(refused(OSError, "data set 'hf:owner/name' could not be loaded (RuntimeError: Couldn't reach"))
    assert len(message) < 700


def test_the_name_is_a_word_of_the_config_and_comes_back_from_a_run(fake):
    config = load_config("configs/vp_digits.py")
    apply(config, [("data.image_size", "16"), ("data.dataset", "hf:owner/name"), ("data.label_column", "kind")])
    assert config.data.dataset == "hf:owner/name" and config.data.image_size == 16 and config.data.dequantize is True
    stored = json.loads(json.dumps(config.to_dict()))
    assert from_stored(stored, "a run").data.to_dict() == config.data.to_dict()
    for word in ("hf:", "hf", "hg:owner/name"):
        with pytest.raises(ValueError, match="hf:OWNER/NAME"):
            apply(load_config("configs/vp_digits.py"), [("data.dataset", word)])
    with pytest.raises(ValueError, match="unknown|must be one of"):
        load("hf:")
