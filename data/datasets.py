"""The data sets, and how a config names one.

To add a data set, write a function that returns a `Dataset` and add a line to `DATASETS`. The parameters of the function are
the settings of the data set. They are fields of a config's section `data`, beside `dataset`, the codec's fields `low`,
`high` and `dequantize`, and what is made of pictures (`pictures_as_said`). Data
are loaded when the function is called; a `Source` gives the levels without loading.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data import arrays as own
from scorefield.data import cifar, hub, patches, pictures, points
from scorefield.data import pair as pairs
from scorefield.data.class_folders import read_tree
from scorefield.data.codec import Codec, Points, as_tuple, make_codec
from scorefield.data.dataset import Dataset, Examples
from scorefield.data.degradations import pictures_as_said
from scorefield.data.idx import find_idx, read_idx_images, read_idx_labels
from scorefield.numerics.errors import ArgumentError, MissingFileError, renamed
from scorefield.numerics.options import of_pairs
from scorefield.numerics.sections import arguments

_REQUIRED = inspect.Parameter.empty
CODEC_FIELDS = ("low", "high", "dequantize")      # of a config's section `data`, beside the settings of its data set
# And what is made of its pictures.
PICTURE_FIELDS = (*CODEC_FIELDS, "reduce", "degradation", "low_res_noise", "autoencoder")


@dataclass(frozen=True)
class Source:
    """A function that loads a data set, and the number of levels of its examples (None: points)."""

    load: Callable[..., Dataset]
    levels: int | None

    def settings(self) -> dict[str, Any]:
        """The parameters of `load` with their defaults (inspect.Parameter.empty if there is no default)."""
        return {name: parameter.default for name, parameter in inspect.signature(self.load).parameters.items()}


def load_dataset(section: Any) -> Dataset:
    """The data set that a config's section `data` names: a mapping or an object with a field `dataset`.

        dataset = load_dataset({"dataset": "swiss_roll", "size": 5000})

    Its other fields are the parameters of that data set's function; None means the default. Fields of another data set
    must be None or empty.

    Raises ArgumentError for an unknown name, a field that the data set does not take, a value out of range or a damaged
    file, FileNotFoundError if data are missing, OSError if they cannot be read or downloaded.
    """
    fields = dict(section.items() if hasattr(section, "items") else vars(section))
    name = fields.pop("dataset")
    source, others = source_of(name), {k: v for k, v in fields.items() if k not in PICTURE_FIELDS}
    own = {k: others.pop(k) for k in source.settings() if k in others}
    given = {k: own.get(k) for k, default in source.settings().items() if own.get(k) is not None or default is _REQUIRED}
    sizes = {k: others.pop(k) for k in ("image_size", "channels") if others.get(k) is not None}
    for field, value in others.items():
        if value:
            raise ArgumentError(f"data set {name!r} takes no data.{field}; it takes {', '.join(source.settings())}",
                                f"data.{field}")
    dataset = source.load(**given)
    _require_sizes(dataset, sizes)
    return pictures_as_said(dataset, fields)


def codec_of(section: Any, told: Dataset | Mapping[str, Any]) -> Codec:
    """The codec of a config's section `data`, for a data set, or for the data of a run, of which config.json is enough.

        codec = codec_of(config.data, dataset)
        codec = codec_of(config.data, stored)      # what config.json of a run holds: "levels" and "standard"
    """
    fields = dict(section.items() if hasattr(section, "items") else vars(section))
    levels, standard = (told.levels, told.standard) if isinstance(told, Dataset) else (told["levels"], standard_of(told))
    return make_codec(levels, **{name: fields[name] for name in CODEC_FIELDS if name in fields}, standard=standard)


def standard_of(stored: Mapping[str, Any]) -> Points | None:
    """How a run's data are standardised, from what config.json holds; None where they are not."""
    standard = stored.get("standard")
    return None if standard is None else Points.from_stored(standard)


def in_units_of(dataset: Dataset, stored: Mapping[str, Any] | None) -> Dataset:
    """The data set with the standardisation of a run, which holds what `stored` does (None: a new run, so unchanged).

    The weights belong to that. The data's own differs where rows were added, or the data are others; a note then says so.
    """
    if stored is None or dataset.levels is not None or list(stored.get("shape") or dataset.shape) != list(dataset.shape):
        return dataset      # also of another shape, which is refused elsewhere
    kept, own = standard_of(stored), dataset.standard
    notes = dataset.notes
    if (apart := _apart(kept or Points(), own or Points(), dataset.shape[0])) is not None:
        notes += (f"the run keeps the mean and the standard deviation of the data that it was first trained on; {apart}",)
    return dataclasses.replace(dataset, standard=kept, notes=notes)


def _apart(kept: Points, own: Points, n: int) -> str | None:
    """Where two standardisations differ by over a tenth of a standard deviation, in words, or None."""
    names = own.columns or kept.columns or tuple(map(str, range(n)))
    (m0, s0), (m1, s1) = ((as_tuple(codec.mean, n), as_tuple(codec.std, n)) for codec in (kept, own))
    for i, name in enumerate(names):
        if abs(m0[i] - m1[i]) > 0.1 * s0[i] or not 0.9 < s1[i] / s0[i] < 1.1:
            return f"of {name} these were {m0[i]:.4g} and {s0[i]:.4g}, now they are {m1[i]:.4g} and {s1[i]:.4g}"
    return None


def source_of(name: str) -> Source:
    """The data set of that name; ArgumentError with all names and the nearest one for an unknown name."""
    known = [word for word in DATASETS if word != GIVEN]      # nobody can choose that by name
    nearest = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.0)[0]
    _require(name in DATASETS, "dataset", name, f"one of {', '.join(known)} (nearest: {nearest!r})")
    return DATASETS[name]


def levels_of(name: str) -> int | None:
    """The number of integer levels of a data set, from its name; None for points. ArgumentError for an unknown name."""
    return source_of(name).levels


def _require(valid: bool, field: str, value: Any, allowed: str) -> None:
    if not valid:
        raise ArgumentError(f"data.{field}={value!r} must be {allowed}", f"data.{field}")


def _require_sizes(dataset: Dataset, sizes: Mapping[str, int]) -> None:
    """Raise ArgumentError if a data set of fixed size is asked for another size."""
    for field, actual in (("image_size", dataset.shape[-1]), ("channels", dataset.shape[0])):
        if field in sizes and (len(dataset.shape) != 3 or sizes[field] != actual):
            raise ArgumentError(f"data set {dataset.name!r} has examples of shape {dataset.shape}; "
                                f"data.{field}={sizes[field]} does not fit", f"data.{field}")


def cache_folder() -> Path:
    """Where data are kept that were fetched or computed: $SCOREFIELD_DATA, by default ~/.cache/scorefield."""
    return Path(os.path.expanduser(os.environ.get("SCOREFIELD_DATA") or "~/.cache/scorefield"))


def _place(path: str, default: str) -> Path:
    return Path(os.path.expanduser(path)) if path else cache_folder() / default


def digits(flip: bool = False) -> Dataset:
    """scikit-learn's 1797 handwritten digits in 17 grey levels, with their labels. No flips: a mirrored digit is not one.

    The 360 images whose index in scikit-learn's order is divisible by 5 are held out.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1), torch.from_numpy(bunch.target).long()
    held_out = torch.arange(len(images)) % 5 == 0
    train, test = (Examples(images[chosen], {"label": labels[chosen]}) for chosen in (~held_out, held_out))
    return Dataset("digits", train, test, (1, 8, 8), 17, flip, tuple(map(str, bunch.target_names)))


def patches32(flip: bool = True) -> Dataset:
    """5,500 patches of 32x32 pixels from scikit-learn's two photographs, and 1,000 from parts of them that are held out."""
    pieces = [patches.cut(photograph) for photograph in patches.photographs()]
    train, test = (Examples(torch.cat(part)) for part in zip(*pieces, strict=True))
    return Dataset("patches32", train, test, (3, patches.SIZE, patches.SIZE), 256, flip)


def swiss_roll(size: int = 10_000, seed: int = 0) -> Dataset:
    """`size` training points of a spiral in the plane (`points.sample_swiss_roll`), and 2000 held out."""
    return _points("swiss_roll", points.sample_swiss_roll, size, seed)


def gaussians8(size: int = 10_000, seed: int = 0) -> Dataset:
    """`size` training points of 8 Gaussians on a circle (`points.mixture_parameters`), and 2000 held out."""
    return _points("gaussians8", lambda n, rng: points.sample_mixture("gaussians8", n, rng), size, seed)


def gaussians25(size: int = 10_000, seed: int = 0) -> Dataset:
    """`size` training points of 25 Gaussians on a grid (`points.mixture_parameters`), and 2000 held out."""
    return _points("gaussians25", lambda n, rng: points.sample_mixture("gaussians25", n, rng), size, seed)


def _points(name: str, sample: Callable[[int, np.random.Generator], np.ndarray], size: int, seed: int) -> Dataset:
    """The splits are drawn from independent streams of one seed."""
    _require(size >= 1, "size", size, "1 or more")
    _require(seed >= 0, "seed", seed, "0 or more")
    streams = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
    train, test = (Examples(torch.from_numpy(draw.astype(np.float32))) for draw in map(sample, (size, 2_000), streams))
    return Dataset(name, train, test, (2,), None)


def cifar10(path: str = "", flip: bool = True) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009), in 10 classes, from the official folder or archive, or else downloaded."""
    return cifar.load("cifar10", cifar.CIFAR10, _place(path, "cifar10"), bool(path), flip)


def cifar100(path: str = "", labels: str = "fine", flip: bool = True) -> Dataset:
    """CIFAR-100 (Krizhevsky, 2009) from the official folder or archive, or else downloaded.

    `labels` are the 100 "fine" classes or the 20 "coarse" ones, each of which is five of the others.
    """
    layouts = {"fine": cifar.CIFAR100_FINE, "coarse": cifar.CIFAR100_COARSE}
    _require(labels in layouts, "labels", labels, " or ".join(map(repr, layouts)))
    return cifar.load("cifar100", layouts[labels], _place(path, "cifar100"), bool(path), flip)


FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion_mnist(path: str = "", flip: bool = False) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), in 10 classes, from its four idx files.

    No flips: all shoes point to the left, so a mirrored shoe does not look like this data set.
    """
    names = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    debian = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
    places = [_place(path, "fashion-mnist")] + ([] if path else [debian])
    for place in places:
        files = [find_idx(place, name) for name in names]
        if all(files):
            train, test = (_labelled(read_idx_images(file, 28, 28), place, name)
                           for file, name in zip(files, ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"), strict=True)
                           if file)
            return Dataset("fashion_mnist", train, test, (1, 28, 28), 256, flip, FASHION_CLASSES)
    wanted, searched = " and ".join(names), " or ".join(map(str, places))
    raise MissingFileError(f"data.path={path!r}: no {wanted} (or .gz) in {searched}; fetch the four files from "
                           "https://github.com/zalandoresearch/fashion-mnist and put them there, or on Debian run apt-get "
                           "install dataset-fashion-mnist", "data.path")


def _labelled(pictures: Tensor, place: Path, name: str) -> Examples:
    file = find_idx(place, name)
    if file is None:
        raise MissingFileError(f"data.path: {place} holds the pictures of Fashion-MNIST without their labels; put {name} "
                               "(or .gz) there, too", "data.path")
    return Examples(pictures, {"label": read_idx_labels(file, len(pictures), len(FASHION_CLASSES))})


def folder(path: str = "", *, image_size: int, channels: int = 3, background: str = "white", flip: bool = True) -> Dataset:
    """Every picture below `path`, as a square with sides of `image_size` pixels; `channels` is 1 (grey) or 3 (RGB).

    Subfolders `train` and `test` (or validation, val, ...) are the splits if both exist. Otherwise every tenth picture is
    held out: those whose index in sorted order is divisible by 10. A subfolder for each class gives the labels
    (class_folders.py). Transparent pictures lie over the colour `background`: white, black or #rrggbb.
    """
    if not path:
        raise ArgumentError("data set 'folder' needs data.path, a folder of pictures", "data.path")
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise MissingFileError(f"data.path={path!r} {what}; give a folder of pictures", "data.path")
    if image_size is None:
        raise ArgumentError("data set 'folder' needs data.image_size, the number of pixels of a side", "data.image_size")
    _require(image_size >= 1, "image_size", image_size, "1 or more")
    _require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    form = pictures.Form(image_size, channels, pictures.colour_of(background))
    tree = read_tree(root)
    found = f"got {len(tree.train)} to train on and {len(tree.test)} to hold out: {'; '.join(tree.notes)}"
    _require(bool(tree.train and tree.test), "path", path, f"a folder with pictures for both splits, {found}")
    opened, seen = zip(*(pictures.open_pictures(files, form) for files in (tree.train, tree.test)), strict=True)
    train, test = (Examples(data, {"label": torch.tensor(labels)} if tree.class_names else {})
                   for data, labels in zip(opened, (tree.train_labels, tree.test_labels), strict=True))
    return Dataset("folder", train, test, (channels, image_size, image_size), 256, flip, tree.class_names, tree.unlabelled,
                   (*tree.notes, *pictures.said_of_files(seen, tree.formats)))


def array(path: str = "", test_path: str = "", kind: str = "auto", layout: str = "auto", columns: str = "", label: str = "",
          header: str = "auto", levels: int | None = None, standardise: bool = True, flip: bool = False) -> Dataset:
    """The array in a file, .npy, .npz, .csv or .parquet, as a table, series or pictures (arrays.py).

    test_path    a second file, of examples to hold out; without one, and without x_test in an .npz, every tenth is held out
    kind         "table", "series" or "pictures"; "auto" takes the only one that the shape and the type allow
    layout       "channels_first" or "channels_last"; "auto" as above
    columns      which columns of a table to take, such as "age,height"; all unless given
    label        the column that holds the class; an .npz has labels in its array y
    header       whether a text file begins with the names of the columns: "yes", "no", or "auto", which finds out
    levels       of pictures of integers, 256 unless given
    standardise  whether numbers get mean 0 and standard deviation 1, by the training examples; samples come back in the
                 units of the data
    """
    how = own.Reading(kind, layout, columns, label, header)
    return own.load(path, test_path, how, levels, standardise, flip)


def arrays() -> Dataset:
    """The data set of a run that got its data in Python, by train(config, dataset=...); it cannot be loaded by name."""
    raise ArgumentError("data.dataset='arrays': the data of this run were given in Python and are not stored; give them "
                        "again, as train(config, dataset=...)", "data.dataset")


def pair(source: str = "swiss_roll", target: str = "gaussians8", side: int | None = None) -> Dataset:
    """Two data sets as the ends of a bridge (pair.py); examples are those of the source, with the target beside it.

    source, target  the name of a data set, with its settings after colons, such as "swiss_roll:size=5000"
    side            height and width that pictures of both are brought to; None: those that they have
    """
    with renamed("data"):
        return pairs.paired(_worded("source", source), _worded("target", target), side)


def _worded(field: str, text: str) -> Dataset:
    """The data set that NAME[:SETTING=VALUE ...] names; ArgumentError about the field for another one."""
    hub_name = text.startswith(hub.PREFIX)
    name, *settings = text.removeprefix(hub.PREFIX).split(":") if hub_name else text.split(":")
    name = hub.PREFIX * hub_name + name
    if name not in DATASETS or name in (PAIR, GIVEN):
        known = ", ".join(word for word in DATASETS if word not in (PAIR, GIVEN))
        raise ArgumentError(f"unknown {field} {text!r}; choose from {known}", field)
    known_settings = {word: Setting(known.annotation) for word, known in arguments(DATASETS[name].load).items()}

    def refusal(pair: str, word: str) -> str:
        return f"data set {name!r} takes {', '.join(f'{known}=VALUE' for known in known_settings)}, got {pair!r}"

    with renamed(names={f"data.{word}": field for word in known_settings}):
        return DATASETS[name].load(**of_pairs(text, settings, known_settings, refusal, field))


@dataclass(frozen=True)
class Setting:
    """A setting of a data set, as `of_pairs` reads it."""

    type: Any


def hugging_face(name: str) -> Callable[..., Dataset]:
    """The function of the data set `name` of the Hugging Face hub, such as "hf:ylecun/mnist"."""

    def load(subset: str = "", revision: str = "", train_split: str = "", test_split: str = "", image_column: str = "",
             label_column: str = "", image_size: int | None = None, channels: int | None = None, background: str = "white",
             streaming: bool = False, flip: bool = False) -> Dataset:
        """Pictures by name, decoded once into a cache on disk (hub.py). What is "" or None is found in the data.

        subset        which configuration of the data set
        revision      a branch, tag or commit of it
        train_split   "train" unless given
        test_split    test, validation, valid, val or dev unless given; every tenth example if there is none
        image_column  the only column of pictures unless given
        label_column  the only column of classes unless given, or the one called "label"
        image_size, channels, background  as in `folder`; the size and the channels of the first picture unless given
        streaming     read the rows as a stream, so that the original files are never on this disk
        """
        _require(image_size is None or image_size >= 1, "image_size", image_size, "1 or more")
        _require(channels in (None, 1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
        wanted = hub.Wanted(name, subset, revision, train_split, test_split, image_column, label_column, image_size,
                            channels, background)
        return hub.load(wanted, cache_folder() / "hub", streaming, flip)

    return load


class _Datasets(dict[str, Source]):
    """Data sets by name. Every name `hf:OWNER/NAME` is one, too; that form stands for all of them in lists."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith(hub.PREFIX)
                                              and name != hub.PREFIX)

    def __missing__(self, name: str) -> Source:
        if name not in self:
            raise KeyError(name)
        return Source(hugging_face(name), 256)


GIVEN, PAIR = "arrays", "pair"      # the names of data given in Python, and of two data sets
DATASETS: dict[str, Source] = _Datasets({
    "digits": Source(digits, 17),
    "patches32": Source(patches32, 256),
    "swiss_roll": Source(swiss_roll, None),
    "gaussians8": Source(gaussians8, None),
    "gaussians25": Source(gaussians25, None),
    "cifar10": Source(cifar10, 256),
    "cifar100": Source(cifar100, 256),
    "fashion_mnist": Source(fashion_mnist, 256),
    "folder": Source(folder, 256),
    "array": Source(array, 256),        # or numbers, which have none
    "hf:OWNER/NAME": Source(hugging_face("hf:OWNER/NAME"), 256),
    PAIR: Source(pair, 256),      # of pictures or points
    GIVEN: Source(arrays, 256),      # or points: a run stores the levels of its data
})
