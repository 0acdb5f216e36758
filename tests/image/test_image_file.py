# SPDX-License-Identifier: Apache-2.0
"""Image files: any name, upright in every format, 8 and 16 bits, or refused by name."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ctxseg_ros.image.image_file import BadImageFile, decoded, read_bgr, too_dark

ORIENTATION = 0x0112
# What the first stored row and column are of the upright image, by the EXIF standard: top left, top
# right, bottom right, bottom left, left top, right top, right bottom, left bottom.
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[:, ::-1],
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}


@pytest.fixture(scope="module")
def corners() -> np.ndarray:
    """Four colours, one in each quarter, 48x32: no turn or mirror image looks like another."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return image


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_whatever_its_format(
    tmp_path: Path, corners: np.ndarray, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo{suffix}"
    options = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}
    Image.fromarray(corners).save(path, exif=exif, **options.get(suffix, {}))
    upright = UPRIGHT[orientation](corners)
    image = read_bgr(path).bgr[..., ::-1]
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() < 30
    for flags in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_GRAYSCALE):
        assert decoded(path, flags).shape[:2] == upright.shape[:2]


def test_a_damaged_exif_block_leaves_the_image_as_it_is(
    tmp_path: Path, corners: np.ndarray
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(corners).save(path, exif=exif)
    data = bytearray(path.read_bytes())
    start = data.index(b"Exif\0\0") + 6
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert read_bgr(path).bgr.shape == corners.shape


@pytest.mark.parametrize("name", [b"caf\xe9.png", "🚗 ü.png".encode(), b"a%03d.png", b"-.png"])
def test_any_name_can_be_read(tmp_path: Path, corners: np.ndarray, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(cv2.imencode(".png", corners)[1].tobytes())
    assert np.array_equal(read_bgr(path).bgr, corners)
    path.write_bytes(b"no image")
    with pytest.raises(BadImageFile) as caught:
        read_bgr(path)
    assert str(caught.value).encode()  # printable


@given(bits=st.integers(8, 16), values=st.lists(st.integers(0, 65535), min_size=6, max_size=6))
def test_bits_say_what_is_white(
    tmp_path_factory: pytest.TempPathFactory, bits: int, values: list[int]
) -> None:
    path = tmp_path_factory.mktemp("deep") / "a.png"
    pixels = np.array(values, np.uint16).reshape(1, 2, 3)
    assert cv2.imwrite(str(path), pixels)
    image = read_bgr(path, bits)
    assert image.highest == max(values)
    exact = np.minimum(pixels * (255 / (2**bits - 1)), 255)
    assert np.abs(image.bgr - exact).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("highest", "bits", "offered"),
    [
        *((1023, 16, "10"), (1024, 16, "12"), (4095, 16, "12"), (16383, 16, "14")),
        *((16384, 16, None), (65535, 16, None), (4095, 12, None), (100, 14, None)),
        (None, 16, None),
    ],
)
def test_nearly_black_images_are_told_with_the_bits_that_brighten_them(
    highest: int | None, bits: int, offered: str | None
) -> None:
    warning = too_dark(highest, bits)
    assert (warning is None) == (offered is None)
    if warning and offered:
        assert str(highest) in warning and offered in warning


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tiff", ".webp", ".png", ".jpg"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_file_that_was_cut_short_is_refused_in_every_format(
    tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadImageFile, match=f"a{suffix}"):
        read_bgr(path)


def test_what_cannot_be_an_image(tmp_path: Path) -> None:
    for name, cause in (("nowhere.png", "No such file"), (".", "Is a directory")):
        with pytest.raises(BadImageFile, match=cause):
            read_bgr(tmp_path / name)
    (tmp_path / "a.png").touch()
    with pytest.raises(BadImageFile):
        read_bgr(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>\n<title>404</title>", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIF"),
        (bytes(64), "damaged"),
    ],
)
def test_what_a_file_is_instead_of_an_image(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageFile, match=rf"photo\.jpg: .*{cause}"):
        read_bgr(path)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_an_image_of_32_bits_is_refused_with_what_it_is(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "depth.tiff"
    Image.new(mode, (32, 32)).save(path)
    with pytest.raises(
        BadImageFile, match=rf"depth\.tiff: .*(TIFF.*mode {mode}|float32|int32).*8 or 16"
    ):
        read_bgr(path)
