# SPDX-License-Identifier: Apache-2.0
"""Label images of every kind that annotation tools write."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.data.files import DataError
from training.data.label_files import read_ids, read_label_image

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)


def png(bits: int, kind: int, rows: list[bytes], width: int) -> bytes:
    """A PNG of a bit depth and colour type, from its packed rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if kind == 3:
        head += chunk(b"PLTE", bytes(3 * [0] + 3 * [200] + [9, 8, 7] + [200, 0, 0]))
    return head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def packed(bits: int, ids: np.ndarray) -> list[bytes]:
    shifts = np.arange(8 - bits, -1, -bits)
    return [bytes((row.reshape(-1, 8 // bits) << shifts).sum(1).tolist()) for row in ids]


@given(st.sampled_from([1, 2, 4]), st.sampled_from([0, 3]), st.integers(0, 2**32 - 1))
def test_ids_of_less_than_eight_bits(tmp_path_factory, bits, kind, seed):
    path = tmp_path_factory.mktemp("bits") / "a.png"
    ids = np.random.default_rng(seed).integers(0, min(2**bits, 4), (3, 8))
    path.write_bytes(png(bits, kind, packed(bits, ids), 8))
    assert np.array_equal(read_ids(path), ids)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_indices_of_a_palette(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(IDS, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(path)
    read = read_label_image(path)
    assert read.kind == "palette" and np.array_equal(read.values, IDS)
    assert read.table[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_a_transparent_palette_entry_does_not_change_the_ids(tmp_path):
    image = Image.fromarray(IDS, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert np.array_equal(read_ids(tmp_path / "a.png"), IDS)


def test_a_grey_gif_holds_its_greys(tmp_path):
    """GIF stores a grey image with a palette whose order is arbitrary."""
    Image.fromarray(7 * IDS).save(tmp_path / "a.gif")
    assert np.array_equal(read_ids(tmp_path / "a.gif"), 7 * IDS)


@pytest.mark.parametrize(
    ("mode", "ids"),
    [
        ("1", IDS > 1),
        ("L", IDS),
        ("LA", IDS),
        ("RGB", IDS),
        ("RGBA", IDS),
        ("I;16", IDS.astype(np.uint16) * 300),
        ("I", IDS.astype(np.int32) * 300),
    ],
)
def test_ids_in_every_mode(tmp_path, mode, ids):
    pixels = np.ascontiguousarray(ids)
    if mode in ("LA", "RGB", "RGBA"):
        alpha = [np.full_like(ids, 77)] if mode.endswith("A") else []
        pixels = np.stack([*[ids] * (1 if mode == "LA" else 3), *alpha], -1)
    path = tmp_path / ("a.tif" if mode == "I" else "a.png")
    Image.fromarray(pixels).save(path)
    assert np.array_equal(read_ids(path), ids)


@pytest.mark.parametrize(
    ("name", "save", "cause"),
    [
        ("a.jpg", {}, "JPEG file with lossy"),
        ("a.png", {"format": "JPEG"}, "JPEG file with lossy"),
        ("a.webp", {}, "WEBP file with lossy"),
        ("a.tif", {"compression": "jpeg"}, "TIFF file with lossy"),
    ],
)
def test_lossy_files_are_refused_whatever_their_suffix(tmp_path, name, save, cause):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / name, **save)
    with pytest.raises(DataError, match=rf"{name}.*{cause}"):
        read_ids(tmp_path / name)


def test_lossless_webp_is_read(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.webp", lossless=True)
    assert np.array_equal(read_label_image(tmp_path / "a.webp").rgb, rgb)


def test_what_is_not_labels_is_refused(tmp_path):
    path = tmp_path / "a.png"
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[1, 2] = 128, 0, 64
    Image.fromarray(rgb).save(path)
    with pytest.raises(DataError, match=r"a\.png.*\(128, 0, 64\)"):
        read_ids(path)
    cv2.imwrite(str(path), np.full((4, 4, 3), 300, np.uint16))
    with pytest.raises(DataError, match=r"a\.png.*16 bits"):
        read_ids(path)
    for values in (np.float32([[0.5]]), np.int32([[-1]]), np.int32([[70000]])):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"a\.tif"):
            read_ids(tmp_path / "a.tif")
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(DataError, match=path.name):
            read_ids(path)


@given(st.data())
def test_damage_is_noticed_and_named(tmp_path_factory, data):
    """A PNG that is cut short, or whose pixels are overwritten, is refused or still the same."""
    path = tmp_path_factory.mktemp("damage") / "mask.png"
    ids = np.random.default_rng(0).integers(0, 9, (24, 32), np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        start = content.index(b"IDAT") + 6
        at = data.draw(st.integers(start, content.index(b"IEND") - 9))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"mask\.png: "):
        read_ids(path)
