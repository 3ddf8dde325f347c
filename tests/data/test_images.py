"""A user's own examples to score: folders and arrays, and kind words for anything else."""

import numpy as np
import pytest
from PIL import Image

from scorefield.data import load_images, make_codec

CODEC = make_codec(256)


def refused(path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_images(str(path), (3, 4, 4), CODEC, "images")
    message = str(caught.value)
    assert "\n" not in message and "pickle" not in message and caught.value.arguments == ("images",)
    return message


@pytest.mark.parametrize("name, content, kind", [
    ("pts.csv", b"x,y\n0.5,1.5\n", "a text"), ("a.npz", b"x,y\n", "a text"), ("a.npy", b"", "empty"),
    ("a.pkl", b"\x80\x04\x95\x00", "no array file"), ("a.bin", bytes(100), "no array file"),
])
def test_a_file_that_is_no_array_is_refused_by_what_it_is(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    words = f"{tmp_path / name} is {kind}; give an .npy, an .npz or a folder of pictures"
    assert refused(tmp_path / name) == f"images: {words}"


def test_one_picture_is_refused_and_its_folder_is_asked_for(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.npz", "PNG")
    assert "is one picture (PNG); give an .npy, an .npz or a folder of pictures" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("write", [np.save, lambda file, x: np.savez(file, x=x)])
def test_arrays_of_python_objects_are_refused_without_the_advice_to_run_them(tmp_path, write):
    with open(tmp_path / "a", "wb") as file:
        write(file, np.array([{"a": 1}, None]))
    assert "holds Python objects, which could run code; store an array of numbers" in refused(tmp_path / "a")


def test_a_folder_says_what_it_took_and_lies_over_the_background(tmp_path):
    for i in range(3):
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("text")
    dataset, names = load_images(str(tmp_path), (3, 4, 4), CODEC, "images")
    assert dataset.notes == (f"images={tmp_path}: took 3 files as pictures (PNG 3), left out 1 (.txt 1)",)
    assert names == ["0.png", "1.png", "2.png"] and (dataset.test.data == 255).all()
    black, _ = load_images(str(tmp_path), (3, 4, 4), CODEC, "images", "black")
    assert (black.test.data == 0).all()


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    assert "holds no pictures: " in refused(tmp_path) and "left out 1 (.csv 1)" in refused(tmp_path)


@pytest.mark.parametrize("top", [1.0, 0.75])
def test_floats_from_0_to_1_for_a_model_about_0_are_refused_or_said(tmp_path, top):
    x = np.linspace(0, top, 96).reshape(2, 3, 4, 4)
    np.save(tmp_path / "x.npy", x)
    words = f"floats go from 0 to {top:g}, and the model's data from -1 to 1; if 0 is black and 1 is white, save -1 + 2 x"
    if top == 1:
        assert words in refused(tmp_path / "x.npy")
    else:
        (note,) = load_images(str(tmp_path / "x.npy"), (3, 4, 4), CODEC, "images")[0].notes
        assert words in note
    for array, codec in ((x, make_codec(256, 0.0, 1.0)), (2 * x - 1, CODEC), ((255 * x).astype(np.uint8), CODEC)):
        np.save(tmp_path / "x.npy", array)
        assert load_images(str(tmp_path / "x.npy"), (3, 4, 4), codec, "images")[0].notes == ()


def test_integers_beyond_the_levels_are_refused_with_what_to_save(tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 3, 4, 4), 4000, np.uint16))
    assert "holds 4000; its levels are 0 .. 255; save these as uint8, or floats in the model's [-1, 1]" in refused(
        tmp_path / "x.npy")


def test_what_a_table_says_of_itself_is_said_of_images_too(tmp_path):
    (tmp_path / "x.csv").write_text("1;2\n3;5\n")
    assert "separated by semicolons" in load_images(str(tmp_path / "x.csv"), (2,), make_codec(None), "images")[0].notes[0]
