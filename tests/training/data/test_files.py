# SPDX-License-Identifier: Apache-2.0
"""Image files of every kind become uint8 RGB, or are refused by name."""

import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.files import BrokenFiles, DataError, each_file, image_files, read_image
from training.data.pairs import read_ids


def write(path, pixels):
    assert cv2.imwrite(str(path), pixels)
    return path


def test_colour_is_rgb_and_alpha_is_dropped(tmp_path, street_frames):
    rgb = street_frames[0]
    assert np.array_equal(read_image(write(tmp_path / "a.png", rgb[..., ::-1])), rgb)
    bgra = np.dstack([rgb[..., ::-1], np.zeros(rgb.shape[:2], np.uint8)])
    assert np.array_equal(read_image(write(tmp_path / "b.png", bgra)), rgb)


def test_grey_becomes_rgb(tmp_path, street_frames):
    grey = street_frames[0][..., 1]
    assert np.array_equal(read_image(write(tmp_path / "a.png", grey)), np.dstack([grey] * 3))


@given(st.lists(st.integers(0, 65535), min_size=6, max_size=6))
def test_16_bits_are_scaled_and_rounded(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("deep") / "a.png"
    pixels = np.array(values, np.uint16).reshape(1, 2, 3)
    image = read_image(write(path, pixels))
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.rint(pixels[..., ::-1] * (255 / 65535)).astype(np.uint8))
    grey = read_image(write(path, pixels[..., 0]))
    assert np.array_equal(grey, np.rint(np.dstack([pixels[..., 0]] * 3) / 257).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, street_frames, suffix, share):
    path = write(tmp_path / f"a.{suffix}", street_frames[0])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=f"a.{suffix}: .*(cut off|cannot be read)"):
        read_image(path)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"])
def test_what_is_no_image_is_refused(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: "):
        read_image(tmp_path / "a.png")


def huge_png():
    """Whole by its checksums, with a header that asks for 100000x100000 pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("read", [read_image, read_ids])
def test_what_opencv_refuses_is_named(tmp_path, read):
    (tmp_path / "a.png").write_bytes(huge_png())
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image \(.*MAX_IMAGE_PIXELS"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_labels_that_were_cut_short_are_refused(tmp_path, street_frames, share):
    path = write(tmp_path / "a.png", street_frames[0][..., 1])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"a\.png: .*cut off; copy it again"):
        read_ids(path)


def test_a_png_damaged_in_its_middle_is_refused(tmp_path, street_frames):
    path = write(tmp_path / "a.png", street_frames[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_image(path)


def test_a_jpeg_without_its_end_marker_is_refused(tmp_path, street_frames):
    path = write(tmp_path / "a.jpg", street_frames[0])
    data = path.read_bytes()
    assert data[-2:] == b"\xff\xd9"
    path.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"a\.jpg: .*cut off; copy it again"):
        read_image(path)


def test_a_missing_file_and_floating_point_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: cannot be read .*No such file"):
        read_image(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "a.tiff"), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(DataError, match=r"a\.tiff: pixels are float32; save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_each_file_keeps_the_order_and_names_all_that_failed():
    seen = set()

    def check(number):
        seen.add(threading.get_ident())
        if number % 3 == 1:
            raise DataError(f"{number:03}: wrong")
        return number * 2

    assert each_file(check, range(0, 300, 3), "numbers") == list(range(0, 600, 6))
    with pytest.raises(BrokenFiles) as caught:
        each_file(check, range(300), "numbers")
    assert caught.value.lines == [f"{i:03}: wrong" for i in range(1, 300, 3)]
    assert str(caught.value).startswith("100 file(s)") and "and 50 more" in str(caught.value)
    assert threading.get_ident() not in seen


def test_other_errors_are_not_taken_for_broken_files():
    with pytest.raises(ZeroDivisionError):
        each_file(lambda number: 1 // number, [1, 0], "numbers")


def test_image_files_are_found_by_any_spelling_of_the_suffix(tmp_path):
    for name in ("b.PNG", "a.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    assert list(image_files(tmp_path)) == ["a", "b"]


def test_image_files_are_in_natural_order_each_once(tmp_path, caplog):
    for name in ("10.png", "2.png", "sub/1.png", "._2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "up").symlink_to("..")
    assert list(image_files(tmp_path)) == ["2", "10", "sub/1"]
    assert f"passed over in {tmp_path}" in caplog.text and "1 hidden" in caplog.text


def test_two_images_of_one_name_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a\.png and .*a\.jpg"):
        image_files(tmp_path)


def test_nearly_black_images_are_told_once_for_a_folder(tmp_path, caplog):
    for i in range(3):
        write(tmp_path / f"{i}.png", np.full((4, 4), 1000 + i, np.uint16))
        read_image(tmp_path / f"{i}.png")
    assert caplog.text.count("65535") == 1 and "1000" in caplog.text
    assert read_image(tmp_path / "0.png", bits=10).max() == 249
