"""Which files below a folder are pictures: by content, without hidden ones, through links, and with a word on the rest."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorefield.data import load_dataset
from scorefield.data.picture_files import PICTURE_SUFFIXES, find_pictures, format_of

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def save(file, kind="PNG"):
    file.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.save(file, kind)
    return file


def names(found, root):
    return [str(file.relative_to(root)) for file in found.files]


def refused(folder):
    with pytest.raises(ValueError) as caught:
        find_pictures(folder)
    assert "\n" not in str(caught.value) and caught.value.arguments == ("data.path",)
    return str(caught.value)


@pytest.mark.parametrize("kind, told", [
    ("PNG", "PNG"), ("JPEG", "JPEG"), ("GIF", "GIF"), ("WEBP", "WEBP"), ("TIFF", "TIFF"), ("BMP", "BMP"), ("PPM", "PPM"),
    ("JPEG2000", "JPEG2000"), ("AVIF", "AVIF"), ("QOI", "QOI"), ("MPO", "JPEG")])
def test_a_format_is_told_by_content_and_read_whatever_the_name(tmp_path, kind, told):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    for name in ("a.png", "b.jpg", "c", "d.txt" if kind != "TIFF" else "d.tif", "e.GIF"):
        save(tmp_path / name, kind)
    found = find_pictures(tmp_path)
    assert names(found, tmp_path) == sorted(os.listdir(tmp_path)) and found.formats == {told: 5} and not found.left_out
    dataset = load_dataset({"dataset": "folder", "path": str(tmp_path), "image_size": 4})
    assert (len(dataset.train), len(dataset.test)) == (4, 1)
    assert (dataset.train.data.float() - dataset.test.data.float()).abs().max() == 0


@pytest.mark.parametrize("head", [
    b"BMI of the patients", b"BM" + bytes(50), b"P5 is a text", b"P1 2", b"P6", b"PK\x03\x04", b"%PDF-1.7", b"GIF", b"",
    b"\x89PNG", b"II are two letters", b"RIFF1234WAVE", b"\0\0\0\x18ftypheic", b"qoi"])
def test_other_contents_are_no_pictures(head):
    assert format_of(head) is None


def test_texts_and_other_files_are_left_out_and_counted_by_suffix(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.jpeg", "JPEG")
    for name in ("one.txt", "two.txt", "labels.CSV", "README", "film.mp4", "scan.pdf", "drawing.svg", "icon.psd"):
        (tmp_path / name).write_bytes(b"8BPS or anything else")
    save(tmp_path / "raw.NEF", "TIFF")      # a camera's raw file: a TIFF with a thumbnail before the picture
    found = find_pictures(tmp_path)
    assert names(found, tmp_path) == ["a.png", "b.jpeg"]
    assert found.said("here") == (
        "here: took 2 files as pictures (JPEG 1, PNG 1), left out 9 (.csv 1, .mp4 1, .nef, a TIFF of its own kind 1, "
        ".pdf 1, .psd 1, .svg 1, .txt 2, without a suffix 1)")


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_a_text_with_the_name_of_a_picture_is_refused_by_name(tmp_path, suffix):
    save(tmp_path / "a.png")
    bad = tmp_path / f"sub/b{suffix.upper()}"
    bad.parent.mkdir()
    bad.write_text("version https://git-lfs.github.com/spec/v1")
    assert f"{bad} is named as a picture, but begins with b'version https://git-lfs." in refused(tmp_path)
    bad.write_bytes(b"")
    assert f"{bad} is named as a picture, but is empty" in refused(tmp_path)


def test_hidden_files_and_folders_are_not_data_at_any_level_and_are_counted(tmp_path):
    for name in ("a.png", "sub/b.png", ".thumbnails/c.png", "sub/.ipynb_checkpoints/d.png", "sub/deep/.cache/e/f.png",
                 "sub/._b.png", ".g.png", "__MACOSX/h.png", "sub/@eaDir/i.jpg"):
        save(tmp_path / name)
    (tmp_path / ".broken.png").write_text("never read")
    found = find_pictures(tmp_path)
    assert names(found, tmp_path) == ["a.png", "sub/b.png"]
    assert found.left_out == {"hidden folders": 5, "hidden files": 3}
    assert names(find_pictures(tmp_path / ".thumbnails"), tmp_path) == [".thumbnails/c.png"]      # as the user asks


def test_linked_files_and_folders_are_followed_at_any_level(tmp_path):
    store = tmp_path / "store"
    save(store / "x/1.png")
    save(store / "x/deep/2.png")
    save(store / "3.png")
    root = tmp_path / "root"
    save(root / "own.png")
    (root / "x").symlink_to(store / "x")
    (root / "sub").mkdir()
    (root / "sub/named.jpg").symlink_to("../../store/3.png")
    (store / "x/deep/more").symlink_to(tmp_path / "further")      # a link below a linked folder
    save(tmp_path / "further/4.png")
    found = find_pictures(root)
    assert names(found, root) == ["own.png", "sub/named.jpg", "x/1.png", "x/deep/2.png", "x/deep/more/4.png"]
    assert not found.left_out
    (tmp_path / "alias").symlink_to(root)      # the folder itself may be a link
    assert names(find_pictures(tmp_path / "alias"), tmp_path / "alias") == names(found, root)


def test_no_real_file_is_taken_twice_and_its_own_name_goes_first(tmp_path):
    root = tmp_path / "root"
    save(root / "z/1.png")
    (root / "a").symlink_to("z")                      # its pictures are there without it
    (root / "b.png").symlink_to("z/1.png")
    save(tmp_path / "out/2.png")
    (root / "c.png").symlink_to(tmp_path / "out/2.png")
    (root / "d.png").symlink_to(tmp_path / "out/2.png")
    (root / "e").symlink_to(tmp_path / "out")         # a folder with a file that is taken, and a new one
    save(tmp_path / "out/3.png")
    found = find_pictures(root)
    assert names(found, root) == ["c.png", "e/3.png", "z/1.png"]
    assert found.left_out == {"folders that were read already": 1, "links to files that were taken already": 3}
    os.link(root / "z/1.png", root / "z/hard.png")    # a second name of equal standing: two files, as ever
    assert "z/hard.png" in names(find_pictures(root), root)


def test_links_in_circles_end_and_links_to_nowhere_are_counted(tmp_path):
    root = tmp_path / "root"
    save(tmp_path / "beside/no.png")
    save(root / "sub/1.png")
    (root / "sub/up").symlink_to("..")
    (root / "sub/over").symlink_to(tmp_path)          # above the folder itself, with what lies beside it
    (root / "self").symlink_to("self")
    (root / "gone.png").symlink_to("nothing.png")
    save(tmp_path / "a/2.png")
    save(tmp_path / "b/3.png")
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a")
    (root / "a").symlink_to(tmp_path / "a")
    found = find_pictures(root)
    assert names(found, root) == ["a/2.png", "a/to_b/3.png", "sub/1.png"]
    assert found.left_out == {"links back to a folder above": 2, "links that lead nowhere": 2,
                              "folders that were read already": 1}


def test_pipes_are_not_read(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    found = find_pictures(tmp_path)
    assert names(found, tmp_path) == ["a.png"] and sum(found.left_out.values()) == 1


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    save(tmp_path / "closed/b.png")
    scandir = os.scandir

    def guarded(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="closed"):
        find_pictures(tmp_path)


def test_names_that_are_not_utf8_are_taken_and_said_in_letters_that_every_terminal_has(tmp_path):
    save(tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with open(os.fsencode(tmp_path) + b"/b.t\xe9xt", "wb") as file:
        file.write(b"text")
    found = find_pictures(tmp_path)
    assert len(found.files) == 1
    found.said("here").encode()      # would fail for a surrogate


def test_the_order_is_that_of_the_paths(tmp_path):
    for name in ("b/1.png", "a.png", "a/2.png", "a-b.png", "B.png", "a/10.png"):
        save(tmp_path / name)
    assert find_pictures(tmp_path).files == sorted(tmp_path.rglob("*.png"))


def test_only_the_first_bytes_are_read(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.png")
    monkeypatch.setattr(Image, "open", None)
    assert len(find_pictures(tmp_path).files) == 3
