"""The data set `array`: what a file means, and what is refused, in a line with the row, the column and the setting."""

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch

from scorefield.data import load_dataset, load_images
from scorefield.data.arrays import KINDS, LAYOUTS
from scorefield.data.codec import Points
from scorefield.numerics.errors import ArgumentError, MissingFileError

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 3)) * [1.0, 5.0, 0.1] + [0.0, 100.0, -2.0]
BYTES = RNG.integers(0, 256, (20, 3, 8, 12)).astype(np.uint8)
SERIES = RNG.normal(size=(20, 2, 16))


@pytest.fixture
def read(tmp_path):
    """Writes a file, and reads it as data set `array` with these settings."""
    def call(content, name="x.npy", **settings):
        file = tmp_path / name
        if isinstance(content, str | bytes):
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        elif isinstance(content, dict):
            np.savez(file, **content)
        else:
            np.save(file, content)
        return load_dataset({"dataset": "array", "path": str(file), **settings})

    return call


def every(split):
    return split[torch.arange(len(split))][0]


def lines(table=TABLE, names="a,b,c", separator=",", label=None):
    rows = [separator.join([*map(repr, map(float, row)), *([] if label is None else [str(label[i])])])
            for i, row in enumerate(table)]
    return "\n".join([names.replace(",", separator)] * bool(names) + rows) + "\n"


# What a file means


@pytest.mark.parametrize("content, name", [
    (TABLE, "x.npy"), ({"x": TABLE}, "x.npz"), ({"only": TABLE}, "x.npz"), (lines(), "x.csv"), (lines(names=""), "x.csv"),
    (lines(separator=";"), "x.csv"), (lines(separator="\t"), "x.tsv"), (lines(separator=" "), "x.txt"),
    ("\ufeff" + lines(), "x.csv"), (lines().encode("utf-16"), "x.csv"), (lines().replace("\n", "\r\n"), "x.csv"),
    ("# " + lines(), "x.txt"), (lines() + "\n\n", "x.csv"), (lines().replace(",", " , "), "x.csv"), (lines(), "x.npy"),
    (lines(names='"a","b, wide",c'.replace(", wide", "")), "x.csv")], ids=range(16))
def test_a_table_is_the_same_from_every_kind_of_file(content, name, read):
    dataset = read(content, name)
    assert dataset.shape == (3,) and dataset.levels is None and len(dataset.notes) in (1, 2)
    held_out = np.arange(40) % 10 == 0
    np.testing.assert_array_equal(every(dataset.train), TABLE[~held_out].astype(np.float32))
    np.testing.assert_array_equal(every(dataset.test), TABLE[held_out].astype(np.float32))
    assert dataset.standard.columns in ((), ("a", "b", "c"))


def test_the_standardisation_is_that_of_the_training_split(read):
    dataset = read(TABLE)
    train = TABLE[np.arange(40) % 10 != 0]
    assert dataset.standard.mean == pytest.approx(tuple(train.mean(0)), rel=1e-12)
    assert dataset.standard.std == pytest.approx(tuple(train.std(0)), rel=1e-12)
    assert read(TABLE, standardise=False).standard is None


def test_integers_in_a_table_and_in_series_are_numbers(read):
    counts = RNG.integers(0, 9, (40, 3))
    for dataset in (read(counts), read(counts.astype(np.uint8)), read(RNG.integers(0, 9, (20, 2, 16)), kind="series"),
                    read(RNG.random((40, 3)) > 0.5)):
        assert dataset.levels is None and dataset.standard is not None
    assert "are numbers, as in every table" in " ".join(read(counts.astype(np.uint8)).notes)
    assert read(counts[:, 0]).shape == (1,)


@pytest.mark.parametrize("array, settings", [
    (BYTES, {}), (BYTES.transpose(0, 2, 3, 1), {}), (BYTES.astype(np.int64), {}), (BYTES.astype(">u2"), {}),
    (BYTES.transpose(0, 2, 3, 1), {"layout": "channels_last"})], ids=range(5))
def test_bytes_are_levels_of_pictures_in_either_layout(array, settings, read):
    dataset = read(array, **settings)
    assert dataset.shape == (3, 8, 12) and dataset.levels == 256 and dataset.standard is None
    assert torch.equal(every(dataset.test), torch.from_numpy(BYTES[::10]))


def test_grey_pictures_need_no_channel_and_may_have_fewer_levels(read):
    grey = BYTES[:, 0] % 17
    assert read(grey).shape == (1, 8, 12) and "data.levels=17" in read(grey).notes[-1]
    dataset = read(grey, levels=17)
    assert dataset.levels == 17 and len(dataset.notes) == 1 and read(grey > 3).levels == 2
    assert read(grey / 16, kind="pictures").shape == (1, 8, 12)


def test_float_pictures_and_series_are_standardised_by_channel(read):
    floats = BYTES / [[[[1.0]], [[50.0]], [[1000.0]]]][0]
    dataset = read(floats.transpose(0, 2, 3, 1))
    train = floats[np.arange(20) % 10 != 0]
    assert dataset.shape == (3, 8, 12) and dataset.levels is None
    assert dataset.standard.mean == pytest.approx(tuple(train.mean((0, 2, 3))))
    assert dataset.standard.std == pytest.approx(tuple(train.std((0, 2, 3))))
    series = read(SERIES, kind="series")
    last = read(SERIES.transpose(0, 2, 1), kind="series", layout="channels_last")
    assert series.shape == last.shape == (2, 16) and series.standard == last.standard
    assert torch.equal(every(series.train), every(last.train))


def test_numbers_near_2_000_000_000_keep_their_digits_in_training(read):
    times = 1.7e9 + RNG.random((40, 2))
    dataset = read(times)
    x = dataset.standard.encode(every(dataset.train))
    np.testing.assert_allclose(x.square().mean(0), 1, rtol=1e-6)
    assert len(x.unique()) == x.numel()


def test_examples_to_hold_out_come_from_x_test_or_from_a_second_file(read, tmp_path):
    dataset = read({"x": TABLE, "x_test": TABLE[:7] + 1}, "x.npz")
    assert (len(dataset.train), len(dataset.test)) == (40, 7)
    (tmp_path / "test.csv").write_text(lines(TABLE[:5, ::-1], "c,b,a"))
    dataset = read(lines(), "x.csv", test_path=str(tmp_path / "test.csv"))      # by the names of the columns
    np.testing.assert_array_equal(every(dataset.test), TABLE[:5].astype(np.float32))
    with pytest.raises(ArgumentError, match="leave out one of them"):
        read({"x": TABLE, "x_test": TABLE}, "x.npz", test_path=str(tmp_path / "test.csv"))


def test_columns_are_chosen_by_name_or_number(read):
    np.testing.assert_array_equal(every(read(lines(), "x.csv", columns="c, a").test), TABLE[::10, [2, 0]].astype(np.float32))
    assert read(lines(), "x.csv", columns="c,a").standard.columns == ("c", "a")
    assert read(lines(names=""), "x.csv", columns="2,0").shape == (2,)


def test_the_first_row_has_names_where_it_can_only_have_names(read):
    assert len(read("0,1\n1.5,2\n2.5,3\n4,7\n5,5\n", "x.csv").train) == 3      # as pandas calls columns without names
    assert "the names of the columns" in read("0,1\n1.5,2\n2.5,3\n4,7\n5,5\n", "x.csv").notes[-1]
    assert len(read("1,1\n1.5,2\n2.5,3\n4,7\n5,5\n", "x.csv").train) == 4
    assert len(read("0,1\n1.5,2\n2.5,3\n4,7\n5,5\n", "x.csv", header="no").train) == 4
    assert len(read("7,8\n1.5,2\n2.5,3\n4,7\n5,5\n", "x.csv", header="yes").train) == 3
    assert read("year,2019\n3,2\n2.5,3\n4,7\n5,5\n", "x.csv").standard.columns == ("year", "2019")


@pytest.mark.parametrize("content, said", [
    ("2019,2020\n1.5,2.25\n2.5,3.5\n4.1,5\n", True), ("2019,2020,2021\n7,5,8\n3,4,4\n1,1,5\n", True),
    ("7\n1.5\n2.5\n3.5\n", True), ("34,170\n35,171.5\n36,180.5\n31,165.5\n", False), (lines(names=""), False),
    ("20,45\n20.5,44\n21,43\n21.5,43.5\n", False), ("5,5\n1.5,2.5\n2.5,3.5\n4.5,1.5\n", False),
    ("1,2,3\n2,3,4\n3,4,5\n4,5,7\n", False), ("3,9\n4,1\n5,2\n2,7\n", False), ("1.0,2.0\n1.5,2.5\n0.5,3.5\n", False)])
def test_a_first_row_of_numbers_that_may_be_names_is_said(content, said, read):
    word = "is taken as numbers; if it has the names of the columns, set data.header=yes"
    assert any(word in note for note in read(content, "x.csv").notes) == said
    assert not any(word in note for header in ("yes", "no") if header == "no" or said
                   for note in read(content, "x.csv", header=header, standardise=False).notes)


@pytest.mark.parametrize("cell", ["1_0", "\u0661\u0662", "\uff11"])
def test_a_number_has_ascii_digits_and_nothing_between(cell, read):
    with pytest.raises(ArgumentError, match="row 2, column 'b' holds .*: that is no number"):
        read(f"a,b\n1,2\n3,{cell}\n4,5\n5,6\n", "x.csv")
    assert len(read("a,b\n1,\u00a02\u00a0\n3,4\n4,5\n5,6\n", "x.csv").test) == 1      # a space that does not break
    words = read(lines(names="a,b,c,k", label=[cell, "--5"] * 20), "x.csv", label="k")
    assert words.class_names == tuple(sorted((cell, "--5")))


def test_a_column_that_counts_the_rows_is_said(read):
    table = np.c_[np.arange(40.0) + 1, TABLE]
    assert "'id' counts the rows" in read(lines(table, "id,a,b,c"), "x.csv").notes[-1]


# Labels


def test_labels_of_an_npz_and_of_a_column_are_conditions_with_names(read):
    number = np.arange(40) % 3
    words = np.array(["red", "blue", "green"])[number]
    plain = read({"x": TABLE, "y": number}, "x.npz")
    named = read({"x": TABLE, "y": words}, "x.npz")
    column = read(lines(names="a,b,c,kind", label=words), "x.csv", label="kind")
    digits = read(lines(names="a,b,c,kind", label=number), "x.csv", label="kind")
    assert plain.class_names == digits.class_names == ("0", "1", "2")
    assert named.class_names == column.class_names == ("blue", "green", "red")
    for dataset in (plain, named, column, digits):
        label = dataset.test.condition["label"]
        assert [dataset.class_names[i] for i in label] == (words if dataset.class_names[0] == "blue" else
                                                           number.astype(str))[::10].tolist()
    assert column.shape == (3,) and "3 classes: blue, green, red" in column.notes[0]


def test_labels_to_hold_out_have_the_numbers_of_those_to_train_on(read):
    dataset = read({"x": TABLE, "y": np.array(["b", "c", "a", "d"] * 10), "x_test": TABLE[:2],
                    "y_test": np.array(["d", "b"])}, "x.npz")
    assert dataset.test.condition["label"].tolist() == [3, 1]


@pytest.mark.parametrize("labels, parts", [
    ({"y": np.arange(40) / 3}, "whole number or a word"), ({"y": np.arange(39)}, "40 examples and 39 labels"),
    ({"y": np.arange(40) - 1}, "from -1 to 38"), ({"y": np.arange(40) * 1000}, "from 0 to 39000, with 40 different"),
    ({"y": np.eye(40, 3)}, r"shape \(40, 3\)"), ({"x_test": TABLE, "y": np.zeros(40, int)}, "only one part has labels"),
    ({"y": np.array(["a"] * 40), "x_test": TABLE, "y_test": np.array(["b"] * 40)}, "'b' is among the examples to hold out")])
def test_labels_that_mean_no_class_are_refused(labels, parts, read):
    with pytest.raises(ArgumentError, match=parts):
        read({"x": TABLE, **labels}, "x.npz")


# What is refused

AMBIGUOUS = [
    (SERIES, {}, ["series of 2 channels and length 16", "grey pictures of 2 x 16", "data.kind"]),
    (SERIES.transpose(0, 2, 1), {"kind": "series"}, ["16 channels of length 2", "data.layout"]),
    (np.zeros((20, 16, 16, 16)), {}, ["16 channels of 16 x 16", "data.layout"]),
    (np.zeros((20, 3, 4, 4), np.uint8), {}, ["3 channels of 4 x 4", "4 channels of 3 x 4", "data.layout"]),
    (np.zeros((20, 3, 4, 4, 4)), {}, ["(20, 3, 4, 4, 4)", "pictures (N, C, H, W)"]),
    (TABLE, {"kind": "series"}, ["series (N, C, L)", "data.kind is series"]),
    (BYTES, {"kind": "table"}, ["a table has (N, D)"]),
]


@pytest.mark.parametrize("array, settings, parts", AMBIGUOUS)
def test_a_shape_with_two_meanings_is_refused_with_the_setting_that_decides(array, settings, parts, read):
    with pytest.raises(ArgumentError) as caught:
        read(array, **settings)
    assert all(part in str(caught.value) for part in parts) and caught.value.arguments in (("data.kind",), ("data.layout",))


NAN = TABLE.copy()
NAN[17, 1] = np.nan
BAD = [
    (NAN, "x.npy", ["row 18, column 1 is nan"]), (lines(NAN), "x.csv", ["row 18, column 'b'", "nan", "finite"]),
    (lines().replace("\n", ",\n", 7).replace(",\n", "\n", 6), "x.csv", ["row 6 has 4 cells", "are 3"]),
    (lines(separator=";").replace(";", "\n", 9).replace("\n", ";", 9), "x.csv", ["the names"]),
    ("a,b\n1,2\n3\n4,5\n", "x.csv", ["row 2 has 1 cells", "are 2"]), ("a;b\n1;2\n3\n4;5\n", "x.csv", ["row 2 has 1 cells"]),
    ("a,b\n1,2,3,4\n3,4,5,6\n", "x.csv", ["row 1 has 4 cells", "write these with points"]),
    ("a,b\n1,x\n2,y\n3,z\n", "x.csv", ["row 1, column 'b' holds 'x'", "data.label=b", "data.columns"]),
    ("a,b\n1,2\n3,\n4,5\n", "x.csv", ["row 2, column 'b'", "missing"]),
    ("a,b\n1,2\n3,inf\n4,5\n", "x.csv", ["row 2", "inf"]),
    ("a;b\n1,5;2\n3;4\n", "x.csv", ["row 1, column 'a' holds '1,5'", "decimal point"]),
    ("1,5;2,5\n3,5;4,5\n", "x.csv", ["column '0' holds '1,5'", "decimal point"]),
    ("1,5\t2,5\n3,5\t4,5\n", "x.csv", ["holds '1,5'", "decimal point"]), ("a,b\n1,1e999\n2,3\n", "x.csv", ["inf"]),
    ("a,a\n1,2\n3,4\n", "x.csv", ["two columns of the name 'a'"]),
    (",a\n0,2\n1,4\n", "x.csv", ["has no name", "index=False"]),
    ("a,b\n1,2\na,b\n3,4\n", "x.csv", ["row 2", "names of the columns are there again"]),
    ("a,b\n", "x.csv", ["names of its columns and no rows"]), ("", "x.csv", ["is empty"]), (" \n\n", "x.csv", ["is empty"]),
    ("a,b\n1,2\n", "x.csv", ["has 1 example, and needs 3"]), (TABLE[:2], "x.npy", ["has 2 examples, and needs 3"]),
    (np.c_[TABLE, np.full(40, 7.0)], "x.npy", ["column 3 is 7 in all training examples", "leave that column out"]),
    (lines(np.c_[TABLE, np.full(40, 7.0)], "a,b,c,d"), "x.csv", ["column 'd' is 7"]),
    (np.zeros((0, 3)), "x.npy", ["is empty", "(0, 3)"]), (np.array(["a", "b"]), "x.npy", ["not of numbers"]),
    (np.zeros(3, [("a", float), ("b", float)]), "x.npy", ["named fields"]), (TABLE.astype(complex), "x.npy", ["complex128"]),
    (np.float64(3), "x.npy", ["()"]), (b"\x89HDF\r\n\x1a\n\x00", "x.h5", ["neither text in UTF-8"]),
    ({"one": TABLE, "two": TABLE}, "x.npz", ["one, two", "the name x or"]), (b"PK\x03\x04broken", "x.npz", ["damaged"]),
    (b"\x93NUMPY\x01\x00", "x.npy", ["damaged"]), (BYTES.astype(int) * 300, "x.npy", ["0 .. 255", "76500"]),
    (np.full((20, 4, 4), 300, np.uint16), "x.npy", ["0 .. 255"]), ({"x": BYTES, "x_test": BYTES[:, :2]}, "x.npz", ["shape"]),
]


@pytest.mark.parametrize("content, name, parts", BAD, ids=range(len(BAD)))
def test_what_is_no_table_and_no_array_is_refused_in_one_line(content, name, parts, read, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        read(content, name)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert "allow_pickle" not in message and caught.value.arguments[0].startswith("data.")


DEEP = np.full((20, 4, 4), 4000, np.uint16)


@pytest.mark.parametrize("content, settings, words", [
    ({"x": DEEP}, {}, "data.path: {file} holds integers 4000 to 4000, and levels are 0 .. 255; scale them to these"),
    ({"x": DEEP // 100, "x_test": DEEP}, {}, "data.path: {file} (x_test) holds integers 4000"),
    ({"x": DEEP // 100}, {"test_path": "test.npy"}, "data.test_path: test.npy holds integers 4000"),
    ({"x": DEEP}, {"levels": 5000}, "data.levels: data.levels must lie between 2 and 256")])
def test_integers_of_more_levels_are_refused_by_the_file_with_what_to_save(content, settings, words, read, tmp_path,
                                                                           monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("test.npy", DEEP)
    with pytest.raises(ArgumentError) as caught:
        read(content, "x.npz", **settings)
    message = str(caught.value)
    assert message.startswith(words.format(file=tmp_path / "x.npz")) and "x_train" not in message
    assert caught.value.arguments == (words.partition(":")[0],)


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def pickled(value):
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("content, name", [
    (pickled(np.array([Hostile()], object)), "x.npy"), (pickled(np.array([np.zeros(2), np.zeros(3)], object)), "x.npy"),
    (pickle.dumps(TABLE), "x.npy"), (pickle.dumps(Hostile()), "x.npz")])
def test_pickles_never_run_and_nobody_is_told_to_allow_them(content, name, read):
    with pytest.raises(ArgumentError) as caught:
        read(content, name)
    assert "allow_pickle" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_archive_of_other_files_is_no_npz(read, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("xl/workbook.xml", "<xml/>")
    with pytest.raises(ArgumentError, match="archive of other files, such as 'xl/workbook.xml'"):
        read((tmp_path / "other.zip").read_bytes(), "x.npz")


@pytest.mark.parametrize("settings, argument", [
    ({"kind": "picture"}, "data.kind"), ({"layout": "last"}, "data.layout"), ({"header": "maybe"}, "data.header"),
    ({"columns": "a"}, "data.columns"), ({"label": "a"}, "data.label"), ({"header": "yes"}, "data.header"),
    ({"levels": 17}, "data.levels"), ({"flip": True}, "data.flip"), ({"layout": "channels_last"}, "data.layout")])
def test_a_setting_that_would_do_nothing_is_refused(settings, argument, read):
    with pytest.raises(ArgumentError) as caught:
        read(TABLE, **settings)
    assert caught.value.arguments == (argument,)


@pytest.mark.parametrize("settings, argument", [
    ({"columns": "a,x"}, "data.columns"), ({"label": "klass"}, "data.label"), ({"columns": "a,a"}, "data.columns"),
    ({"columns": "a", "label": "a"}, "data.columns"), ({"layout": "channels_last"}, "data.layout")])
def test_columns_that_do_not_exist_or_serve_twice_are_refused(settings, argument, read):
    with pytest.raises(ArgumentError) as caught:
        read(lines(names="a,b,class"), "x.csv", **settings)
    assert caught.value.arguments[0] == argument
    assert "klass" not in settings.values() or "did you mean 'class'" in str(caught.value)


def test_a_path_that_is_no_file_says_what_to_give(tmp_path):
    for path, error in (("", ArgumentError), (str(tmp_path), ArgumentError), (str(tmp_path / "none.npy"), MissingFileError)):
        with pytest.raises(error, match=r"\.npy, \.npz, \.csv or \.parquet") as caught:
            load_dataset({"dataset": "array", "path": path})
        assert caught.value.arguments == ("data.path",)
    assert KINDS[0] == LAYOUTS[0] == "auto"


# .parquet, by a module in the place of pandas, which the project does not need


def test_a_parquet_without_pandas_asks_for_it(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ArgumentError, match=r"pip install pandas pyarrow\); or save it as \.csv"):
        read(b"PAR1....PAR1", "x.parquet")


def test_a_parquet_is_read_by_pandas(read, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(TABLE, columns=["a", "b", "c"]).assign(kind=["x", "y"] * 20)
    frame.to_parquet(tmp_path / "t.parquet")
    dataset = read((tmp_path / "t.parquet").read_bytes(), "x.parquet", label="kind")
    np.testing.assert_array_equal(every(dataset.test), TABLE[::10].astype(np.float32))
    assert dataset.standard.columns == ("a", "b", "c") and dataset.class_names == ("x", "y")
    for column, part in (([None] + [1.0] * 39, "row 1, column 'd'"), (["word"] * 40, "holds 'word'")):
        frame.assign(d=column).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ArgumentError, match=part):
            read((tmp_path / "t.parquet").read_bytes(), "x.parquet", label="kind")


# --images: numbers in the units of the data, for a run of any array


def test_images_of_a_table_are_read_by_the_names_of_the_runs_columns(tmp_path):
    codec = Points((0.0, 1.0), (1.0, 2.0), ("b", "a"))
    (tmp_path / "t.csv").write_text(lines(names="a,b,c"))
    np.save(tmp_path / "t.npy", TABLE[:, 1::-1])
    for name in ("t.csv", "t.npy"):
        data, _ = load_images(str(tmp_path / name), (2,), codec, "images")
        np.testing.assert_array_equal(every(data.test), TABLE[:, 1::-1].astype(np.float32))
        assert data.standard == codec
    (tmp_path / "other.csv").write_text(lines(names="x,b,c"))
    with pytest.raises(ArgumentError, match="has no column 'a'") as error:
        load_images(str(tmp_path / "other.csv"), (2,), codec, "images")
    assert error.value.arguments == ("images",)


@pytest.mark.parametrize("file", ["t.csv", "words.npz", "numbers.npz"])
def test_images_have_the_labels_of_their_file_as_numbers_of_the_runs_classes(file, tmp_path):
    words = np.array(["oak", "ash", "elm", "ash"] * 10)
    known, number = np.unique(words, return_inverse=True)
    rows = ["kind,a,b", *(f"{word},{x},{y}" for word, (x, y) in zip(words, TABLE[:, :2].tolist(), strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    np.savez(tmp_path / "words.npz", x=TABLE[:, :2], y=words)
    np.savez(tmp_path / "numbers.npz", x=TABLE[:, :2], y=number)

    def load(names, label="kind"):
        codec = Points(columns=("a", "b"))
        return load_images(str(tmp_path / file), (2,), codec, "images", label=label, class_names=names)[0]

    assert load(known.tolist()).test.condition["label"].tolist() == number.tolist()
    assert load(["x", *known]).class_names == ("x", "ash", "elm", "oak")
    word = "label 2; labels are 0 .. 1" if file == "numbers.npz" else "'elm', which is none of"
    with pytest.raises(ArgumentError, match=word):
        load(["ash", "oak"])
    without = load((), "")
    assert not without.test.condition and not without.classes


def test_images_without_the_column_of_labels_have_none_and_say_so(tmp_path):
    (tmp_path / "t.csv").write_text(lines(names="a,b,c"))
    data, _ = load_images(str(tmp_path / "t.csv"), (3,), Points(columns=("a", "b", "c")), "images", label="kind",
                          class_names=("ash", "oak"))
    assert not data.test.condition and data.unlabelled == "t.csv has no column 'kind'"


def test_images_of_series_and_float_pictures_have_the_shape_of_the_run(tmp_path):
    codec = Points((0.0, 1.0), (1.0, 2.0))
    np.savez(tmp_path / "s.npz", x=SERIES)
    data, _ = load_images(str(tmp_path / "s.npz"), (2, 16), codec, "images")
    np.testing.assert_array_equal(every(data.test), SERIES.astype(np.float32))
    with pytest.raises(ArgumentError, match=r"shape \(20, 2, 16\), but the model takes \(N, 2, 8\)"):
        load_images(str(tmp_path / "s.npz"), (2, 8), codec, "images")
