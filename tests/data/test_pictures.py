"""Decoding pictures: nothing is clipped, revealed or hidden on the way."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import load_dataset, load_images, make_codec, pictures
from scorefield.data.pictures import Form, colour_of, decode, open_picture

BLACK = (0, 0, 0)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, depth, colour, extra=b""):
    """A PNG from its rows of raw bytes, of any bit depth and colour type (0 grey, 2 RGB, 3 palette, 4 LA, 6 RGBA)."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = len(rows[0]) * 8 // (depth * samples)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
            + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b""))


def read(content, channels=3, background=(255, 255, 255), size=None):
    """The decoded picture, (channels, height, width), from the bytes of its file or from Pillow's picture, saved as PNG."""
    if isinstance(content, Image.Image):
        content = saved(content)
    return decode(open_picture(io.BytesIO(content)), Form(size, channels, background)).numpy()


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def from_array(array, mode=None):
    picture = Image.fromarray(array)
    assert mode in (None, picture.mode)
    return picture


# More than 8 bits

DEEP = np.array([[0, 1, 0xFF, 0x100], [0x7FFF, 0x8080, 0xFE00, 0xFFFF]])


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_of_grey_become_8_within_one_level_of_the_exact_ratio(dtype, kind, channels):
    if kind != "TIFF" and dtype == ">u2":
        content = saved(Image.fromarray(DEEP.astype("<u2")), kind)
    else:
        content = saved(Image.fromarray(DEEP.astype(dtype)), kind)
    got = read(content, channels)
    assert got.shape == (channels, 2, 4) and (got == DEEP >> 8).all()
    assert np.abs(got - DEEP / 257).max() <= 1


@pytest.mark.parametrize("colour, samples", [(2, 3), (6, 4), (0, 1), (4, 2)])
def test_16_bits_of_colour_are_read_as_those_of_grey(colour, samples):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, samples))
    if samples in (2, 4):
        values[..., -1] = 65535
    got = read(png([row.astype(">u2").tobytes() for row in values], 16, colour))
    expected = (values[..., :3] if samples > 2 else values[..., :1].repeat(3, -1)) >> 8
    assert (got == expected.transpose(2, 0, 1)).all()


def test_8_bits_stored_as_16_come_back_either_way_they_were_stretched():
    levels = np.arange(256).reshape(16, 16)
    for stretched in (levels * 257, levels * 256):
        assert (read(Image.fromarray(stretched.astype(np.uint16)), 1)[0] == levels).all()


def tiff(values, bits, photometric, big=False):
    """A TIFF of one row, from raw bytes."""
    order, width = ">" if big else "<", len(values) * 8 // bits
    tags = [(256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1),
            (278, 4, 1), (279, 4, len(values))]
    data = values + b"\0" * (len(values) % 2)
    entries = b"".join(struct.pack(f"{order}HHI", tag, kind, 1) + (
        struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)) for tag, kind, value in tags)
    return (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}I", 8 + len(data)) + data + struct.pack(
        f"{order}H", len(tags)) + entries + bytes(4)


def test_12_bits_are_those_of_a_full_scale_of_4095():
    assert read(tiff(b"\xff\xf8\x00", 12, 1), 1).tolist() == [[[255, 128]]]


def test_white_is_zero_in_16_bits_as_in_8():
    assert read(tiff(bytes([0, 0x80, 0xFF]), 8, 0), 1).tolist() == [[[255, 127, 0]]]
    assert read(tiff(struct.pack("<3H", 0, 0x8000, 0xFFFF), 16, 0), 1).tolist() == [[[255, 127, 0]]]
    assert read(tiff(struct.pack("<3H", 0, 0x8000, 0xFFFF), 16, 1), 1).tolist() == [[[0, 128, 255]]]
    assert read(tiff(struct.pack(">3H", 0, 0x8000, 0xFFFF), 16, 1, big=True), 1).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("array, words", [
    (np.zeros((8, 8), np.float32), "floats"), (np.zeros((8, 8), np.int32), "32-bit or signed"),
])
def test_pictures_without_a_white_of_their_own_are_refused_by_name(tmp_path, array, words):
    for i in range(2):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    Image.fromarray(array).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=rf"data.path: {tmp_path}/deep.tif .*{words}.*8 or 16 bits"):
        load_dataset({"dataset": "folder", "path": str(tmp_path), "image_size": 8})


# Transparency


@pytest.mark.parametrize("background", [(255, 255, 255), BLACK, (17, 200, 3)])
def test_transparency_is_composited_to_the_last_digit(background):
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([colour, 255 - colour, colour // 2, alpha], -1).astype(np.uint8)
    exact = (pixels[..., :3] * (alpha / 255)[..., None] + np.array(background) * (1 - alpha / 255)[..., None])
    got = read(Image.fromarray(pixels), background=background).transpose(1, 2, 0)
    assert np.abs(got - exact).max() <= 0.5 + 1e-9
    assert (got[0] == background).all() and (got[255] == pixels[255, :, :3]).all()
    grey = read(Image.fromarray(np.stack([colour, alpha], -1).astype(np.uint8)), 1, background)
    ground = round(0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2])
    assert np.abs(grey[0] - (colour * alpha + ground * (255 - alpha)) / 255).max() <= 1.5


HIDDEN = np.zeros((32, 32, 4), np.uint8)
HIDDEN[:, :16] = (255, 0, 0, 0)      # red, and transparent
HIDDEN[:, 16:] = (0, 0, 255, 255)


def test_no_hidden_colour_bleeds_when_a_picture_is_resized():
    for size in (5, 8, 13, 32, 50):
        got = read(Image.fromarray(HIDDEN), background=BLACK, size=size)
        assert not got[:2].any() and got[2].max() == 255      # no red anywhere
        white = read(Image.fromarray(HIDDEN), size=size)
        assert (white[0] == white[1]).all() and (white[2] == 255).all()


def transparent(kind):
    """One row of three pixels, the middle one transparent above the colour 200 or red: bytes of a file."""
    if kind == "palette":
        picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 255, 255, 255])
        return saved(picture, transparency=1)
    if kind == "palette with alpha":
        picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 255, 255, 255])
        return saved(picture, transparency=bytes([255, 0, 255]))
    if kind == "gif":
        picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 255, 255, 255])
        return saved(picture, "GIF", transparency=1)
    if kind == "LA":
        return saved(Image.fromarray(np.array([[[0, 255], [200, 0], [255, 255]]], np.uint8)))
    if kind == "LA 16":
        return png([np.array([0, 65535, 51400, 0, 65535, 65535], ">u2").tobytes()], 16, 4)
    if kind == "RGBA 16":
        return png([np.array([0, 0, 0, 65535, 65535, 0, 0, 0, 65535, 65535, 65535, 65535], ">u2").tobytes()], 16, 6)
    if kind == "grey 16 with a key":
        return png([np.array([0, 51400, 65535], ">u2").tobytes()], 16, 0, chunk(b"tRNS", struct.pack(">H", 51400)))
    if kind == "grey with a key":
        return png([bytes([0, 200, 255])], 8, 0, chunk(b"tRNS", struct.pack(">H", 200)))
    if kind == "RGB with a key":
        return png([bytes([0, 0, 0, 255, 0, 0, 255, 255, 255])], 8, 2, chunk(b"tRNS", struct.pack(">HHH", 255, 0, 0)))
    picture = Image.fromarray(np.array([[[0, 0, 0, 255], [255, 0, 0, 0], [255, 255, 255, 255]]], np.uint8))
    return saved(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["palette", "palette with alpha", "gif", "LA", "LA 16", "RGBA 16", "grey 16 with a key",
                                  "grey with a key", "RGB with a key", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_transparency_shows_the_background(kind, channels):
    content = transparent(kind)
    for background, level in (((255, 255, 255), 255), (BLACK, 0), ((80, 80, 80), 80)):
        assert read(content, channels, background).tolist() == [[[0, level, 255]]] * channels


@pytest.mark.parametrize("depth, row, key, expected", [
    (1, 0b01000000, 1, [0, 9, 0, 0, 0, 0, 0, 0]), (2, 0b00_01_10_11, 1, [0, 9, 170, 255]), (4, 0x1B, 11, [17, 9]),
])
def test_a_transparent_level_of_few_bits_is_that_level(depth, row, key, expected):
    content = png([bytes([row])], depth, 0, chunk(b"tRNS", struct.pack(">H", key)))
    assert read(content, 1, (9, 9, 9)).tolist() == [[expected]]


def test_a_transparent_colour_of_16_bits_is_refused_since_8_cannot_tell_it():
    content = png([bytes(12)], 16, 2, chunk(b"tRNS", bytes(6)))
    with pytest.raises(ValueError, match="16 bits and a transparent colour.*alpha channel"):
        read(content)


def test_an_opaque_alpha_changes_no_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    for channels, mode in ((3, "RGB"), (1, "L")):
        plain = np.array(Image.fromarray(pixels).convert(mode)).reshape(40, 40, channels).transpose(2, 0, 1)
        assert (read(Image.fromarray(pixels), channels, BLACK) == plain).all()


@pytest.mark.parametrize("word, colour", [("white", (255, 255, 255)), ("black", BLACK), ("#0180fF", (1, 128, 255)),
                                          ("#fff", (255, 255, 255)), ("rgb(1,2,3)", (1, 2, 3))])
def test_a_background_is_a_word_or_its_numbers(word, colour):
    assert colour_of(word) == colour


@pytest.mark.parametrize("word", ["whyte", "#12345", "", "#00000080", "255", "None"])
def test_a_background_that_is_no_colour_is_refused(word):
    words = f"data.background='{word}' must be a colour such as white, black or #rrggbb"
    with pytest.raises(ValueError, match=words) as caught:
        colour_of(word)
    assert caught.value.arguments == ("data.background",)


def test_a_folder_is_composited_over_its_background_white_by_default(tmp_path):
    for i in range(2):
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / f"{i}.png")
    fields = {"dataset": "folder", "path": str(tmp_path), "image_size": 4}
    assert (load_dataset(fields).train.data == 255).all()
    green = load_dataset({**fields, "background": "#00ff00"}).train.data
    assert green[0, :, 0, 0].tolist() == [0, 255, 0]
    assert (load_dataset({**fields, "background": "black", "channels": 1}).train.data == 0).all()


# Colours


def test_cmyk_is_one_minus_each_ink_in_tiff_and_inverted_in_jpeg():
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:, :8] = (0, 255, 255, 0)      # red
    ink[8:, :, 3] = 128
    expected = np.round((1 - ink[..., :3] / 255) * (1 - ink[..., 3:] / 255) * 255)
    picture = Image.fromarray(ink, "CMYK")
    assert np.abs(read(saved(picture, "TIFF")).transpose(1, 2, 0) - expected).max() <= 1
    adobe = saved(picture, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in adobe and np.abs(read(adobe).transpose(1, 2, 0) - expected).max() <= 6


def test_palettes_and_single_bits_are_their_colours():
    picture = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 250, 0, 0])
    expected = [[[10, 40], [70, 250]], [[20, 50], [80, 0]], [[30, 60], [90, 0]]]
    for kind in ("PNG", "GIF", "TIFF"):
        assert read(saved(picture, kind)).tolist() == expected
    bits = Image.fromarray(np.eye(8, dtype=bool))
    for kind in ("PNG", "TIFF", "PPM"):
        assert (read(saved(bits, kind))[0] == 255 * np.eye(8)).all()


def test_gamma_is_left_alone():
    row = bytes([0, 60, 128, 255])
    assert read(png([row], 8, 0, chunk(b"gAMA", struct.pack(">I", 100_000))), 1).tolist() == [[list(row)]]


# Frames


def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path):
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(1, 4)]
    for name in ("a.gif", "b.png", "c.tif", "d.webp"):
        exact = {"lossless": True} if name == "d.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **exact)
    frames[0].save(tmp_path / "one.gif")
    fields = {"dataset": "folder", "path": str(tmp_path), "image_size": 8}
    dataset = load_dataset(fields)
    everything = torch.cat([dataset.test.data, dataset.train.data])
    assert (everything[:, 0] == 60).all() and not everything[:, 1:].any()
    assert dataset.notes[1:] == ("of 4 of the pictures, which have several frames or pages, the first is taken",)


def test_frames_of_a_large_set_are_mentioned_before_they_are_known(tmp_path, monkeypatch):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.gif")
    monkeypatch.setattr(pictures, "EAGER_BYTES", 0)
    notes = load_dataset({"dataset": "folder", "path": str(tmp_path), "image_size": 8}).notes
    assert notes[1:] == ("of the 3 GIF and TIFF files, which may have several frames, the first is taken",)


@pytest.mark.parametrize("array", [DEEP.astype("<u2"), np.full((2, 4, 4), 255, np.uint8), np.zeros((2, 4), bool)])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_mode_is_turned_upright(array, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    content = saved(Image.fromarray(array), exif=exif)
    assert read(content, 3).shape == ((3, 2, 4) if turn <= 4 else (3, 4, 2))


def test_another_parser_than_those_of_the_known_formats_never_runs(tmp_path):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"
    with pytest.raises(Image.UnidentifiedImageError):
        open_picture(io.BytesIO(postscript))


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_fewer_bits_in_files_of_16_are_said_once_with_the_largest_level(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    for i in range(2):
        Image.fromarray(values >> i).save(tmp_path / f"{i}.png")      # one in each split
    rows = [np.stack([row, row // 2, row // 3], 1).astype(">u2").tobytes() for row in values]
    (tmp_path / "2.png").write_bytes(png(rows, 16, 2))
    Image.new("L", (8, 8), 255).save(tmp_path / "3.png")      # of 8 bits
    words = f"the largest level of the 3 pictures of 16 bits is {2**(bits - 8) - 1} of 255; if they use fewer bits"
    notes = load_dataset({"dataset": "folder", "path": str(tmp_path), "image_size": 8}).notes
    assert [note.startswith(words) for note in notes[1:]] == [True] * (bits < 16)
    shown = load_images(str(tmp_path), (1, 8, 8), make_codec(256))[0].notes
    assert shown[1:] == notes[1:]
