# SPDX-License-Identifier: Apache-2.0
"""Messages to pixels and back."""

import array
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ctxseg_ros.image import encodings
from ctxseg_ros.image.encodings import largest_value, sensor_bits
from ctxseg_ros.image.resize import resized
from ctxseg_ros.ros.images import ENCODINGS, BadImage, Reading, frame_size, read_rgb, to_image

# What REP 118 and sensor_msgs/image_encodings.hpp say: the order of what an encoding's name lists.
CHANNELS = {
    "rgb": [0, 1, 2],
    "bgr": [2, 1, 0],
    "rgba": [0, 1, 2],
    "bgra": [2, 1, 0],
    "mono": [0, 0, 0],
}
COUNTS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "mono": 1}
INTERLEAVED = [f"{name}{bits}" for name in CHANNELS for bits in (8, 16)]
PATTERNS = ("rggb", "bggr", "gbrg", "grbg")
BAYER = [f"bayer_{pattern}{bits}" for pattern in PATTERNS for bits in (8, 16)]
# The order of four bytes that make two pixels.
PACKED = {"yuv422": "UYVY", "uyvy": "UYVY", "yuv422_yuy2": "YUYV", "yuyv": "YUYV"}
PLANAR = {"nv12": "UV", "nv21": "VU"}


def make_message(
    encoding: str, height: int, rows: np.ndarray, padding: int = 0, big_endian: bool = False
) -> Image:
    """A message of [rows, values a row], uint8 or uint16, with random bytes behind each row."""
    data = rows.astype(rows.dtype.newbyteorder(">" if big_endian else "<")).view(np.uint8)
    random = np.random.default_rng(padding).integers(0, 256, (len(rows), padding), np.uint8)
    data = np.hstack([data.reshape(len(rows), -1), random])
    return Image(
        height=height,
        width=width_of(encoding, rows),
        encoding=encoding,
        is_bigendian=big_endian,
        step=data.shape[1],
        data=array.array("B", data.tobytes()),
    )


def width_of(encoding: str, rows: np.ndarray) -> int:
    if encoding in PACKED:
        return rows.shape[1] // 2
    return rows.shape[1] // COUNTS.get(encoding.rstrip("0123456789"), 1)


def random_values(shape: tuple[int, ...], bits: int, seed: int) -> np.ndarray:
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    return np.rint(values * 255.0 / 65535).astype(np.uint8)


def bits_of(encoding: str) -> int:
    return 16 if encoding.endswith("16") else 8


def test_every_encoding_is_tested_and_listed() -> None:
    assert sorted(ENCODINGS) == sorted([*INTERLEAVED, *BAYER, *PACKED, *PLANAR])


@given(
    st.sampled_from(INTERLEAVED),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 9),
    st.booleans(),
    st.integers(0, 9),
)
@example("rgb8", 1, 1, 0, False, 0)
@example("bgra16", 3, 5, 1, False, 0)  # rows at odd addresses
@example("mono16", 1, 1, 1, True, 0)
@settings(max_examples=400, deadline=None)
def test_channels_and_bits(
    encoding: str, height: int, width: int, padding: int, big_endian: bool, seed: int
) -> None:
    name = encoding.rstrip("0123456789")
    pixels = random_values((height, width, COUNTS[name]), bits_of(encoding), seed)
    rows = pixels.reshape(height, -1)
    message = make_message(encoding, height, rows, padding, big_endian)
    assert frame_size(message) == (height, width)
    rgb = read_rgb(message)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, to_8_bits(pixels)[:, :, CHANNELS[name]])


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, limited range: Y 16 to 235, U and V 16 to 240."""
    luma, u, v = 255 / 219 * (y - 16.0), (u - 128.0) / 112, (v - 128.0) / 112
    red = luma + 255 * 0.701 * v
    green = luma - 255 * (0.886 * 0.114 / 0.587 * u + 0.701 * 0.299 / 0.587 * v)
    blue = luma + 255 * 0.886 * u
    return np.clip(np.dstack([red, green, blue]), 0, 255)


def random_yuv(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    luma = random.integers(16, 236, (height, width), np.uint8)
    u, v = random.integers(16, 241, (2, height, width), np.uint8)
    return luma, u, v


@given(
    st.sampled_from(sorted(PACKED)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 9),
    st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_packed_yuv(encoding: str, height: int, half: int, padding: int, seed: int) -> None:
    luma, u, v = random_yuv(height, 2 * half, seed)
    places = {"Y": PACKED[encoding].index("Y"), "U": 0, "V": 0}
    places |= {name: PACKED[encoding].index(name) for name in "UV"}
    rows = np.empty((height, 4 * half), np.uint8)
    rows[:, places["Y"] :: 2] = luma
    rows[:, places["U"] :: 4] = u[:, :half]
    rows[:, places["V"] :: 4] = v[:, :half]
    rgb = read_rgb(make_message(encoding, height, rows, padding))
    both = (np.repeat(u[:, :half], 2, axis=1), np.repeat(v[:, :half], 2, axis=1))
    np.testing.assert_allclose(rgb, yuv_to_rgb(luma, *both), atol=2)


@given(
    st.sampled_from(sorted(PLANAR)),
    st.integers(1, 10),
    st.integers(1, 10),
    st.integers(0, 9),
    st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_planar_yuv(encoding: str, down: int, across: int, padding: int, seed: int) -> None:
    height, width = 2 * down, 2 * across
    luma, u, v = random_yuv(height, width, seed)
    u, v = u[:down, :across], v[:down, :across]
    first, second = (u, v) if PLANAR[encoding] == "UV" else (v, u)
    rows = np.vstack([luma, np.dstack([first, second]).reshape(down, width)])
    message = make_message(encoding, height, rows, padding)
    assert frame_size(message) == (height, width)
    block = np.ones((2, 2), np.uint8)
    expected = yuv_to_rgb(luma, np.kron(u, block), np.kron(v, block))
    np.testing.assert_allclose(read_rgb(message), expected, atol=2)


@pytest.mark.parametrize("level", [0, 15, 236, 255])
def test_yuv_beyond_its_range_is_black_or_white(level: int) -> None:
    rows = np.full((2, 8), 128, np.uint8)
    rows[:, 1::2] = level
    assert (read_rgb(make_message("uyvy", 2, rows)) == (0 if level < 16 else 255)).all()


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor sees: the pattern names its first row's first two pixels, then the second's."""
    height, width = rgb.shape[:2]
    colours = np.array(["rgb".index(letter) for letter in pattern]).reshape(2, 2)
    channel = np.tile(colours, (height, width))[:height, :width]
    return np.take_along_axis(rgb, channel[:, :, None], axis=2)[:, :, 0]


def demosaic(values: np.ndarray, pattern: str) -> np.ndarray:
    """The mean of the nearest pixels of a colour; not valid on the border."""
    height, width = values.shape
    rgb = np.zeros((height, width, 3))
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            found: dict[int, dict[str, list[float]]] = {}
            for i in (row - 1, row, row + 1):
                for j in (column - 1, column, column + 1):
                    distance = abs(i - row) + abs(j - column)
                    letter = pattern[i % 2 * 2 + j % 2]
                    found.setdefault(distance, {}).setdefault(letter, []).append(values[i, j])
            for channel, letter in enumerate("rgb"):
                nearest = min(distance for distance in found if letter in found[distance])
                rgb[row, column, channel] = np.mean(found[nearest][letter])
    return rgb


@given(
    st.sampled_from(BAYER),
    st.integers(3, 14),
    st.integers(3, 40),
    st.integers(0, 9),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_bayer(
    encoding: str, height: int, width: int, padding: int, big_endian: bool, seed: int
) -> None:
    values = random_values((height, width), bits_of(encoding), seed)
    rgb = read_rgb(make_message(encoding, height, values, padding, big_endian))
    expected = demosaic(to_8_bits(values), encoding[6:10])
    np.testing.assert_allclose(rgb[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)


@pytest.mark.parametrize("encoding", BAYER)
@pytest.mark.parametrize("size", [(3, 3), (4, 6), (7, 9)])
@pytest.mark.parametrize("colour", [(200, 100, 30), (0, 255, 0), (1, 2, 250)])
def test_bayer_of_one_colour(
    encoding: str, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """On the border too."""
    rgb = np.full((*size, 3), colour, np.uint8)
    values = mosaic(rgb, encoding[6:10])
    if bits_of(encoding) == 16:
        values = values.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_rgb(make_message(encoding, size[0], values)), rgb)


def small_message(encoding: str, side: int) -> Image:
    """A grey frame of side x side."""
    rows, values = side, side * COUNTS.get(encoding.rstrip("0123456789"), 1)
    if encoding in PACKED:
        values = 2 * side
    elif encoding in PLANAR:
        rows = side * 3 // 2
    grey = np.full((rows, values), 128, np.uint8)
    if bits_of(encoding) == 16:
        grey = grey.astype(np.uint16) * 257
    return make_message(encoding, side, grey)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_small_frames_are_read_or_refused(encoding: str, side: int) -> None:
    message = small_message(encoding, side)
    yuv = encoding in PACKED or encoding in PLANAR
    if side < 3 and encoding in BAYER:
        with pytest.raises(BadImage, match=f"needs 3x3 pixels, the frame is {side}x{side}; "):
            frame_size(message)
    elif side % 2 and yuv:
        with pytest.raises(BadImage, match=f"even width.*the frame is {side}x{side}; "):
            frame_size(message)
    else:
        grey = 130 if yuv else 128
        for size in (None, (5, 7), (1, 1), (side, side)):
            rgb = read_rgb(message, size)
            assert rgb.shape == (*(size or (side, side)), 3) and (rgb == grey).all()


@pytest.mark.parametrize("padding", [0, 5])
def test_rgb8_is_a_view_on_the_message(padding: int) -> None:
    pixels = random_values((4, 6 * 3), 8, 0)
    message = make_message("rgb8", 4, pixels, padding)
    rgb = read_rgb(message)
    message.data[message.step + 3] = 99
    assert rgb[1, 1, 0] == 99
    message.data[message.step + 3] = 98
    assert rgb[1, 1, 0] == 98


def photo(height: int, width: int) -> np.ndarray:
    """Something smooth, as a camera's lens makes it, with some grain."""
    random = np.random.default_rng(height * width)
    coarse = random.integers(30, 220, (6, 8, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = random.integers(-4, 5, smooth.shape)
    return np.clip(smooth + grain, 16, 235).astype(np.uint8)


def photo_message(encoding: str, rgb: np.ndarray, padding: int, big_endian: bool) -> Image:
    """The photo in some encoding; for YUV its grey alone."""
    name, height = encoding.rstrip("0123456789"), len(rgb)
    if encoding in BAYER:
        rows = mosaic(rgb, encoding[6:10])
    elif name in CHANNELS:
        pixels = np.full((*rgb.shape[:2], COUNTS[name]), 9, np.uint8)
        pixels[:, :, CHANNELS[name]] = rgb
        rows = pixels.reshape(height, -1)
    elif encoding in PACKED:
        rows = np.full((height, 2 * rgb.shape[1]), 128, np.uint8)
        rows[:, PACKED[encoding].index("Y") :: 2] = rgb[:, :, 1]
    else:
        rows = np.vstack([rgb[:, :, 1], np.full((height // 2, rgb.shape[1]), 128, np.uint8)])
    if bits_of(encoding) == 16:
        rows = rows.astype(np.uint16) * 257
    return make_message(encoding, height, rows, padding, big_endian)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("padding", "big_endian"), [(0, False), (0, True), (3, False), (3, True)])
def test_reading_at_a_size_is_reading_and_resizing(
    encoding: str, padding: int, big_endian: bool
) -> None:
    rgb = photo(96, 130)
    message = photo_message(encoding, rgb, padding, big_endian)
    whole = read_rgb(message)
    for size in ((40, 60), (33, 47), (120, 150), (96, 130)):
        result = read_rgb(message, size)
        assert result.flags.c_contiguous
        expected = resized(np.ascontiguousarray(whole), size)
        np.testing.assert_allclose(result.astype(int), expected, atol=1)
        out = np.zeros((*size, 3), np.uint8)
        assert read_rgb(message, size, out) is out
        np.testing.assert_array_equal(out, result)
    out = np.zeros_like(rgb)
    assert read_rgb(message, out=out) is out
    np.testing.assert_array_equal(out, whole)


def test_an_out_that_does_not_fit_is_no_fault_of_the_image() -> None:
    with pytest.raises(ValueError, match="out must be") as caught:
        read_rgb(small_message("bgr8", 4), (2, 2), np.zeros((2, 3, 3), np.uint8))
    assert not isinstance(caught.value, BadImage)


def test_an_8k_frame() -> None:
    message = Image(width=7680, height=4320, encoding="nv12", step=7680)
    message.data = array.array("B", [128]) * (7680 * 4320 * 3 // 2)
    assert frame_size(message) == (4320, 7680)
    assert (read_rgb(message, (352, 480)) == 130).all()


def broken(**fields: Any) -> Image:
    """An rgb8 frame of 4x2 with some fields wrong."""
    right = {"width": 4, "height": 2, "encoding": "rgb8", "step": 12, "data": bytes(24)}
    return Image(**{**right, **fields})


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        (broken(width=0), "0x2", "camera's settings"),
        (broken(height=0), "4x0", "camera's settings"),
        (broken(step=11), "step is 11, but 4 pixels of rgb8 take 12", "set step"),
        (broken(step=0), "step is 0", "set step"),
        (broken(encoding="rgba16"), "4 pixels of rgba16 take 32", "set step"),
        (broken(encoding="mono16", step=7), "4 pixels of mono16 take 8", "set step"),
        (broken(data=bytes(23)), "data holds 23 bytes, but 2 rows of step 12 are 24", "whole"),
        (broken(data=b""), "data holds 0 bytes", "whole"),
        (
            broken(encoding="nv12", step=4, data=bytes(11)),
            "data holds 11 bytes, but 3 rows of step 4 are 12",
            "whole",
        ),
        (
            broken(width=2**32 - 1, height=2**32 - 1, encoding="mono8", step=2**32 - 1),
            f"rows of step {2**32 - 1} are {(2**32 - 1) ** 2}",
            "whole",
        ),
        (broken(width=2**32 - 1, step=2**32 - 1), "step is 4294967295", "set step"),
        (broken(width=3, encoding="yuv422"), "yuv422 has an even width, the frame is 3x2", "check"),
        (broken(width=3, encoding="nv12"), "even width and height, the frame is 3x2", "check"),
        (broken(height=3, encoding="nv21"), "even width and height, the frame is 4x3", "check"),
        (broken(encoding="16UC1"), "16UC1 is depth", "remap `image`"),
        (broken(encoding="32FC1"), "32FC1 is depth", "remap `image`"),
        (broken(encoding="64FC"), "64FC is depth", "remap `image`"),
        (broken(encoding="8UC1"), "8UC1 does not state", "mono8"),
        (broken(encoding="8UC3"), "8UC3 does not state", "rgb8 or bgr8"),
        (broken(encoding="8UC4"), "8UC4 does not state", "rgba8 or bgra8"),
        (broken(encoding=""), "encoding '' is not known", "rgb8"),
        (broken(encoding="nv24"), "'nv24' is not known", ", ".join(ENCODINGS)),
        (broken(encoding="RGB8"), "'RGB8' is not known", "rgb8"),
    ],
)
def test_bad_frames_are_refused_with_cause_and_fix(message: Image, cause: str, fix: str) -> None:
    with pytest.raises(BadImage, match="; ") as caught:
        frame_size(message)
    assert cause in str(caught.value) and fix in str(caught.value).partition("; ")[2]
    with pytest.raises(BadImage):
        read_rgb(message)


def test_more_data_than_needed_is_accepted() -> None:
    message = broken(data=bytes([7] * 24 + [9] * 100))
    assert (read_rgb(message) == 7).all() and read_rgb(message).shape == (2, 4, 3)


def test_what_opencv_refuses_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise cv2.error("out of\nmemory")

    monkeypatch.setattr(cv2, "cvtColor", refuse)
    with pytest.raises(BadImage, match="OpenCV cannot read the frame: out of memory; "):
        read_rgb(small_message("bgr8", 4))


def check_readable_or_refused(message: Image | CompressedImage, size: tuple[int, int]) -> bool:
    """Whether it was read; anything but pixels of the stated size or BadImage fails."""
    try:
        height, width = frame_size(message)
    except BadImage as error:
        assert "; " in str(error)
        with pytest.raises(BadImage):
            read_rgb(message, size)
        return False
    try:
        rgb = read_rgb(message)
    except BadImage as error:
        assert isinstance(message, CompressedImage) and "; " in str(error)
        return False
    assert rgb.dtype == np.uint8 and rgb.shape == (height, width, 3)
    if isinstance(message, Image):
        assert (message.height, message.width) == (height, width)
    small = read_rgb(message, size)
    assert small.dtype == np.uint8 and small.shape == (*size, 3) and small.flags.c_contiguous
    return True


NAMES = st.sampled_from([*ENCODINGS, "16UC1", "32FC1", "8UC3", "8UC4", "nv24", "nonsense", ""])
NUMBER = st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1))
SIZE = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(NAMES, NUMBER, NUMBER, NUMBER, st.integers(0, 255), st.binary(max_size=64), SIZE)
@settings(max_examples=1000, deadline=None)
def test_random_fields_give_pixels_of_that_size_or_bad_image(
    encoding: str,
    width: int,
    height: int,
    step: int,
    is_bigendian: int,
    data: bytes,
    size: tuple[int, int],
) -> None:
    message = Image(
        width=width,
        height=height,
        step=step,
        encoding=encoding,
        is_bigendian=is_bigendian,
        data=array.array("B", data),
    )
    check_readable_or_refused(message, size)


def test_random_fields_that_nearly_fit() -> None:
    random = np.random.default_rng(5)
    read = 0
    for _ in range(4000):
        encoding = str(random.choice(ENCODINGS))
        height, width = (int(side) for side in random.integers(1, 24, 2))
        values = COUNTS.get(encoding.rstrip("0123456789"), 2 if encoding in PACKED else 1)
        step = max(width * values * bits_of(encoding) // 8 + int(random.integers(-1, 6)), 0)
        rows = height * 3 // 2 if encoding in PLANAR else height
        size = max(step * rows + int(random.choice([-1, 0, 0, 0, 5])), 0)
        message = Image(
            width=width,
            height=height,
            step=step,
            encoding=encoding,
            is_bigendian=int(random.integers(2)),
            data=array.array("B", random.bytes(size)),
        )
        read += check_readable_or_refused(message, (int(width % 7 + 1), int(height % 5 + 1)))
    assert read > 1000  # else the test says little


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
def test_to_image_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    header = Header(frame_id="front")
    header.stamp.sec = 12
    message = to_image(header, pixels, "mono8" if len(shape) == 2 else "rgb8")
    assert isinstance(message.data, array.array) and message.data.tobytes() == pixels.tobytes()
    assert (message.height, message.width) == shape[:2]
    assert message.step * message.height == len(message.data)
    assert message.header == header


def test_to_image_takes_any_strides() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)[::2, ::-1]
    assert to_image(Header(), pixels, "mono8").data.tolist() == pixels.ravel().tolist()


# Compressed


def packed(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    """JPEG or PNG of uint8 or uint16 RGB, RGBA or grey."""
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def compressed(data: bytes, text: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=text, data=array.array("B", data))


JPEG = packed(".jpg", photo(24, 40))
PNG = packed(".png", photo(24, 40))
PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)


@pytest.mark.parametrize("options", [(), PROGRESSIVE, RESTARTS, PROGRESSIVE + RESTARTS])
def test_jpeg_becomes_rgb(options: tuple[int, ...]) -> None:
    rgb = photo(50, 70)
    message = compressed(packed(".jpg", rgb, *options))
    assert frame_size(message) == (50, 70)
    assert np.abs(read_rgb(message).astype(int) - rgb).mean() < 6


def test_grey_jpeg_becomes_rgb() -> None:
    message = compressed(packed(".jpg", photo(50, 70)[:, :, 0]))
    rgb = read_rgb(message)
    assert frame_size(message) == (50, 70) and rgb.shape == (50, 70, 3)
    np.testing.assert_array_equal(rgb[:, :, 0], rgb[:, :, 2])


def test_png_becomes_rgb() -> None:
    rgb = photo(50, 70)
    message = compressed(packed(".png", rgb), "bgr8; png compressed bgr8")
    assert frame_size(message) == (50, 70)
    np.testing.assert_array_equal(read_rgb(message), rgb)
    np.testing.assert_array_equal(read_rgb(message, (20, 30)), resized(rgb, (20, 30)))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def palette_png(indices: np.ndarray, colours: np.ndarray) -> bytes:
    height, width = indices.shape
    lines = b"".join(b"\0" + line.tobytes() for line in indices)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", colours.tobytes()),
            chunk(b"IDAT", zlib.compress(lines)),
            chunk(b"IEND", b""),
        ]
    )


def test_other_pngs_become_rgb() -> None:
    rgb = photo(16, 24)
    grey = rgb[:, :, 0]
    alpha = np.dstack([rgb, grey])
    wide = rgb.astype(np.uint16) * 257
    indices = grey % 5
    colours = np.random.default_rng(1).integers(0, 256, (5, 3), np.uint8)
    for data, expected in [
        (packed(".png", grey), np.dstack([grey] * 3)),
        (packed(".png", alpha), rgb),
        (packed(".png", wide), rgb),
        (packed(".png", wide[:, :, 0]), np.dstack([grey] * 3)),
        (palette_png(indices, colours), colours[indices]),
    ]:
        assert frame_size(compressed(data, "png")) == (16, 24)
        np.testing.assert_array_equal(read_rgb(compressed(data, "png")), expected)


@pytest.mark.parametrize("frame", [(96, 128), (100, 132), (101, 131)])
@pytest.mark.parametrize(
    "size", [(96, 128), (48, 64), (40, 50), (24, 32), (12, 16), (9, 9), (1, 1)]
)
def test_reduced_decoding_is_close_to_whole_decoding(
    frame: tuple[int, int], size: tuple[int, int]
) -> None:
    message = compressed(packed(".jpg", photo(*frame), cv2.IMWRITE_JPEG_QUALITY, 95))
    result = read_rgb(message, size)
    assert result.shape == (*size, 3) and result.flags.c_contiguous
    difference = result.astype(int) - resized(read_rgb(message), size)
    assert np.abs(difference).mean() < 1.5 and np.abs(difference).max() < 8
    out = np.zeros_like(result)
    assert read_rgb(message, size, out) is out
    np.testing.assert_array_equal(out, result)


@pytest.mark.parametrize(
    ("size", "flag"),
    [
        ((97, 129), cv2.IMREAD_COLOR),
        ((49, 60), cv2.IMREAD_COLOR),
        ((48, 64), cv2.IMREAD_REDUCED_COLOR_2),
        ((24, 33), cv2.IMREAD_REDUCED_COLOR_2),
        ((24, 32), cv2.IMREAD_REDUCED_COLOR_4),
        ((12, 16), cv2.IMREAD_REDUCED_COLOR_8),
        ((1, 1), cv2.IMREAD_REDUCED_COLOR_8),
        (None, cv2.IMREAD_COLOR),
    ],
)
def test_the_smallest_scale_that_holds_the_size(
    size: tuple[int, int] | None, flag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []
    decode: Callable[..., Any] = cv2.imdecode

    def imdecode(data: np.ndarray, how: int) -> Any:
        flags.append(how)
        return decode(data, how)

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    for suffix, expected in ((".jpg", flag), (".png", cv2.IMREAD_COLOR)):
        read_rgb(compressed(packed(suffix, photo(96, 128))), size)
        assert flags.pop() == expected | cv2.IMREAD_IGNORE_ORIENTATION


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def test_a_jpeg_is_not_turned_by_its_exif_tag() -> None:
    # APP1 with one entry: orientation 6 (a quarter turn).
    tiff = b"II*\0\x08\0\0\0" + b"\1\0" + b"\x12\x01\3\0\1\0\0\0\6\0\0\0" + b"\0\0\0\0"
    turned = JPEG[:2] + segment(0xE1, b"Exif\0\0" + tiff) + JPEG[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (40, 24, 3)
    assert frame_size(compressed(turned)) == (24, 40)
    assert read_rgb(compressed(turned)).shape == (24, 40, 3)
    np.testing.assert_array_equal(
        read_rgb(compressed(turned), (12, 20)), read_rgb(compressed(JPEG), (12, 20))
    )


def without_huffman_tables(data: bytes) -> bytes:
    """As the MJPEG of webcams comes; the standard's own tables are meant."""
    while (at := data.find(b"\xff\xc4")) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    return data


THUMBNAIL = segment(0xE1, packed(".jpg", photo(8, 16)))


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:2] + THUMBNAIL + JPEG[2:],
        JPEG[:2] + segment(0xFE, b"a comment") + segment(0xE0, b"") + JPEG[2:],
        JPEG[:2] + b"\xff\xff\xff" + JPEG[2:],  # fill bytes
        JPEG[:2] + b"\xff\x01\xff\xd0" + JPEG[2:],  # markers without a segment
        JPEG[:2] + segment(0xE0, b"") + b"\0ab\xff\0" + JPEG[2:],  # rubbish
        without_huffman_tables(JPEG),
        JPEG + bytes(1000),
        JPEG + b"\xff" * 7,
    ],
)
def test_unusual_jpegs_are_read(data: bytes) -> None:
    assert frame_size(compressed(data)) == (24, 40)
    np.testing.assert_array_equal(read_rgb(compressed(data)), read_rgb(compressed(JPEG)))


def test_unusual_pngs_are_read() -> None:
    message = compressed(PNG + bytes(1000), "png")
    assert frame_size(message) == (24, 40)
    np.testing.assert_array_equal(read_rgb(message), photo(24, 40))


def with_size(height: int, width: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


@pytest.mark.parametrize(
    ("data", "cause", "fix"),
    [
        (b"", "0 bytes of format 'jpeg' are neither JPEG nor PNG", "send JPEG or PNG"),
        (b"no image", "8 bytes of format 'jpeg' are neither", "send JPEG or PNG"),
        (packed(".bmp", photo(8, 8)), "neither JPEG nor PNG", "send JPEG or PNG"),
        (JPEG[:2], "the JPEG of 2 bytes is damaged or cut off", "whole frames"),
        (JPEG[:-1], "damaged or cut off", "whole frames"),
        (JPEG[:-40] + bytes(40), "damaged or cut off", "whole frames"),
        (JPEG[:2] + THUMBNAIL + JPEG[2:-2], "damaged or cut off", "whole frames"),
        (JPEG[:2] + segment(0xC0, b"\x08\0\x08\0"), "damaged or cut off", "whole frames"),
        (JPEG[:2] + b"\xff\xe0\xff\xff" + JPEG[2:], "damaged or cut off", "whole frames"),
        (JPEG.replace(b"\xff\xc0", b"\xff\xef"), "damaged or cut off", "whole frames"),
        (JPEG.replace(b"\xff\xda", b"\xff\xef"), "damaged or cut off", "whole frames"),
        (with_size(0, 40), "the frame's header says 40x0", "whole frames"),
        (with_size(65535, 65535), "the frame's header says 65535x65535", "whole frames"),
        (PNG[:10], "the PNG of 10 bytes is damaged or cut off", "whole frames"),
        (PNG[:-12], "damaged or cut off", "whole frames"),
        (PNG.replace(b"IHDR", b"JHDR"), "damaged or cut off", "whole frames"),
    ],
)
def test_compressed_data_that_is_no_image(data: bytes, cause: str, fix: str) -> None:
    with pytest.raises(BadImage, match="; ") as caught:
        frame_size(compressed(data))
    assert cause in str(caught.value) and fix in str(caught.value).partition("; ")[2]
    with pytest.raises(BadImage):
        read_rgb(compressed(data))


@pytest.mark.parametrize("data", [JPEG, PNG, packed(".jpg", photo(24, 40), *PROGRESSIVE)])
def test_every_cut_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(BadImage):
            frame_size(compressed(data[:length]))
    assert frame_size(compressed(data)) == (24, 40)


def test_what_cannot_be_decoded_is_refused() -> None:
    data = bytearray(PNG)
    data[24] = 77  # bits a channel, in the header
    assert frame_size(compressed(bytes(data), "png")) == (24, 40)
    with pytest.raises(BadImage, match=r"format 'png' cannot be decoded; send JPEG or PNG"):
        read_rgb(compressed(bytes(data), "png"))


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_a_decoded_size_that_is_not_the_headers_is_refused(
    size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((24, 41, 3), np.uint8))
    with pytest.raises(BadImage, match="cannot be decoded"):
        read_rgb(compressed(JPEG), size)


@pytest.mark.parametrize("data", [JPEG, PNG])
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_give_pixels_of_that_size_or_bad_image(data: bytes, random: Any) -> None:
    damaged = bytearray(data)
    for at in random.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6)):
        damaged[at] ^= 1 << random.draw(st.integers(0, 7))
    start = random.draw(st.integers(0, len(data)) if random.draw(st.booleans()) else st.just(0))
    tail = random.draw(st.binary(max_size=20))
    check_readable_or_refused(compressed(bytes(damaged)[start:] + tail), random.draw(SIZE))


@given(
    st.sampled_from([b"", JPEG[:2], JPEG[:20], PNG[:8], PNG[:16]]), st.binary(max_size=200), SIZE
)
@settings(max_examples=500, deadline=None)
def test_random_bytes_give_pixels_or_bad_image(
    start: bytes, data: bytes, size: tuple[int, int]
) -> None:
    check_readable_or_refused(compressed(start + data), size)


@pytest.mark.parametrize(
    "text", ["16UC1; compressedDepth png", "32FC1; compressedDepth", "16UC1; png compressed "]
)
def test_compressed_depth_is_refused(text: str) -> None:
    with pytest.raises(BadImage, match=r"is depth.*remap `image`"):
        frame_size(compressed(PNG, text))


# What image_transport and camera drivers state in `format`


def spellings(encoding: str, codec: str) -> list[str]:
    """Formats of a mosaic that was compressed as it is."""
    return [
        f"{encoding}; {codec} compressed ",  # image_transport
        f"{encoding}; {codec} compressed",
        f"{encoding};{codec} compressed",
        f"{encoding}; {codec} compressed {encoding}",
        f"{encoding}; {codec}",
        f" {encoding.upper()} ; {codec.upper()} compressed ",
        encoding,
    ]


def bayer_file(rgb: np.ndarray, pattern: str, bits: int, codec: str) -> bytes:
    values = mosaic(rgb, pattern)
    if codec == "png" and bits == 16:
        values = values.astype(np.uint16) * 257
    quality = (cv2.IMWRITE_JPEG_QUALITY, 98) if codec == "jpeg" else ()
    return packed(".jpg" if codec == "jpeg" else ".png", values, *quality)


@given(
    st.sampled_from(PATTERNS),
    st.sampled_from([8, 16]),
    st.sampled_from(["png", "jpeg"]),
    st.integers(0, 6),
    st.sampled_from([(40, 60), (41, 61), (96, 130)]),
    st.sampled_from([None, (20, 30), (40, 60)]),
)
@settings(max_examples=200, deadline=None)
def test_a_compressed_mosaic_becomes_colour(
    pattern: str,
    bits: int,
    codec: str,
    spelling: int,
    frame: tuple[int, int],
    size: tuple[int, int] | None,
) -> None:
    rgb = smooth(*frame)
    text = spellings(f"bayer_{pattern}{bits}", codec)[spelling]
    message = compressed(bayer_file(rgb, pattern, bits, codec), text)
    assert frame_size(message) == frame
    result = read_rgb(message, size)
    expected = resized(rgb, size) if size else rgb
    difference = np.abs(result.astype(int) - expected)
    assert difference.mean() < 4
    # Grey would be as far from it as its colours are.
    assert np.ptp(expected.astype(int), axis=2).mean() > 60


def smooth(height: int, width: int) -> np.ndarray:
    """Colours that change slowly, so that a demosaiced frame is near the original."""
    rows, columns = np.mgrid[0 : np.pi : height * 1j, 0 : np.pi : width * 1j]
    waves = (np.sin(rows), np.cos(columns) ** 2, np.cos(rows / 2) * np.sin(columns))
    return (20 + 200 * np.dstack(waves)).astype(np.uint8)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("target", ["mono8", "mono16"])
def test_a_mosaic_that_was_made_grey_before_its_compression_is_refused(
    pattern: str, bits: int, target: str
) -> None:
    grey = cv2.cvtColor(smooth(40, 60), cv2.COLOR_RGB2GRAY)
    text = f"bayer_{pattern}{bits}; jpeg compressed {target}"
    with pytest.raises(BadImage, match=r"into grey.*colours are lost; .*PNG"):
        frame_size(compressed(packed(".jpg", grey), text))


@pytest.mark.parametrize("text", ["bayer_rggb8; png compressed ", "BayerRG8; png compressed "])
def test_a_mosaic_is_never_read_as_grey(text: str) -> None:
    """Too small to be demosaiced, and of a name that is not known."""
    values = mosaic(smooth(40, 60), "rggb")
    small = text.startswith("bayer")
    data = packed(".png", values[:2, :2] if small else values)
    with pytest.raises(BadImage, match="needs 3x3" if small else "'BayerRG8' is not known"):
        read_rgb(compressed(data, text))
    if not small:
        rgb = read_rgb(compressed(data, text), reading=Reading("bayer_rggb8"))
        assert np.abs(rgb.astype(int) - smooth(40, 60)).mean() < 4


@pytest.mark.parametrize("text", ["bayer_rggb8; jpeg compressed bgr8", "BayerRG8; jpeg compressed"])
def test_a_mosaic_that_was_demosaiced_before_its_compression_is_colour(text: str) -> None:
    rgb = smooth(40, 60)
    assert np.abs(read_rgb(compressed(packed(".jpg", rgb), text)).astype(int) - rgb).mean() < 3


def transported(message: Image, codec: str, ros: int) -> CompressedImage:
    """What compressed_image_transport of ROS 1 or 2 makes of an image of a known encoding: its
    compressed_publisher.cpp and cv_bridge's conversions."""
    encoding = message.encoding
    name, bits = encoding.rstrip("0123456789"), bits_of(encoding)
    grey = encoding in BAYER or name == "mono"
    rows = np.frombuffer(message.data, np.uint8 if bits == 8 else "<u2")
    values = rows.reshape(len(rows) * bits // 8 // message.step, -1)
    text = f"{encoding}; {codec} compressed "
    if grey:
        pixels = values
        if codec == "jpeg" and ros == 2:
            text += "mono8"
            if encoding in BAYER:
                code = {"rggb": "BG", "bggr": "RG", "gbrg": "GR", "grbg": "GB"}[encoding[6:10]]
                pixels = cv2.cvtColor(values, getattr(cv2, f"COLOR_Bayer{code}2GRAY"))
        if codec == "jpeg" and bits == 16:  # OpenCV clips in ROS 1
            pixels = to_8_bits(pixels) if ros == 2 else np.minimum(pixels, 255).astype(np.uint8)
    else:
        rgb = values.reshape(message.height, message.width, -1) if name in CHANNELS else None
        pixels = read_rgb(message) if rgb is None else rgb[:, :, CHANNELS[name]]
        text += f"bgr{bits}" if codec == "png" else "bgr8"
        if codec == "jpeg" and bits == 16:
            pixels = to_8_bits(np.ascontiguousarray(pixels))
    data = packed(".jpg" if codec == "jpeg" else ".png", pixels, cv2.IMWRITE_JPEG_QUALITY, 98)
    return compressed(data, text)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("codec", ["png", "jpeg"])
@pytest.mark.parametrize("ros", [1, 2])
def test_what_image_transport_sends_is_read_as_the_raw_frame_or_refused(
    encoding: str, codec: str, ros: int
) -> None:
    message = photo_message(encoding, smooth(40, 60), 0, False)
    sent = transported(message, codec, ros)
    if encoding in BAYER and codec == "jpeg" and ros == 2:
        with pytest.raises(BadImage, match="colours are lost"):
            read_rgb(sent)
        return
    expected = read_rgb(message).astype(int)
    if (
        ros == 1
        and codec == "jpeg"
        and encoding.endswith("16")
        and (encoding in BAYER or encoding == "mono16")
    ):
        return  # OpenCV clipped the values before they were compressed
    assert np.abs(read_rgb(sent) - expected).mean() < (4 if codec == "jpeg" else 1.01)


@pytest.mark.parametrize(
    "text",
    [
        *("jpeg", "jpg", "JPEG", ".jpg", "image/jpeg", "mjpeg", "", "jpeg; q=90"),
        *("image/jpeg; q=90", "; jpeg compressed ", "yuv420p; jpeg compressed mono8"),
    ],
)
def test_formats_that_state_the_codec_alone(text: str) -> None:
    """As usb_cam, v4l2_camera, OAK and web bridges state it."""
    rgb = smooth(40, 60)
    assert np.abs(read_rgb(compressed(packed(".jpg", rgb), text)).astype(int) - rgb).mean() < 3
    grey = read_rgb(compressed(packed(".png", rgb[:, :, 0]), text))
    np.testing.assert_array_equal(grey, np.dstack([rgb[:, :, 0]] * 3))


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "yuv422_yuy2", "nv24"])
@pytest.mark.parametrize("target", ["bgr8", "rgb8", ""])
def test_the_file_says_which_channel_is_red(encoding: str, target: str) -> None:
    """Its own colours, as every viewer shows it, whatever `format` states beside them."""
    rgb = smooth(40, 60)
    alpha = np.dstack([rgb, rgb[:, :, 0]])
    for pixels in (rgb, alpha, rgb.astype(np.uint16) * 257):
        message = compressed(packed(".png", pixels), f"{encoding}; png compressed {target}")
        np.testing.assert_array_equal(read_rgb(message), rgb)


@pytest.mark.parametrize(
    ("data", "text", "cause"),
    [
        (b"", "8UC3; jpeg compressed mono8", "empty, as image_transport sends it"),
        (b"II*\0" + bytes(99), "rgb8; tiff compressed ", "but TIFF"),
        (b"\0\0\0\x01" + bytes(99), "h264", "but H.264"),
        (packed(".png", smooth(8, 8)), "8UC3; png compressed ", "8UC3 does not state"),
        (packed(".png", smooth(8, 8)[:, :, 0]), "8UC1; png compressed ", "8UC1 does not state"),
        (packed(".png", smooth(8, 8)[:, :, 0]), "grey12; png compressed ", "'grey12' is not known"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_cause(data: bytes, text: str, cause: str) -> None:
    with pytest.raises(BadImage, match=f"{cause}.*; "):
        frame_size(compressed(data, text))


# What `Reading` tells

TYPES = {"8UC1": "mono8", "8UC": "mono8", "8UC2": "yuyv", "16UC1": "mono16"} | {
    f"{bits}UC{count}": f"{name}{bits}"
    for bits in (8, 16)
    for count, name in ((3, "rgb"), (4, "rgba"))
}


def choices_of(kind: str) -> tuple[str, ...]:
    with pytest.raises(BadImage) as caught:
        frame_size(Image(height=8, width=8, encoding=kind, step=64, data=bytes(512)))
    return caught.value.choices


@given(st.sampled_from(sorted(TYPES)), st.data(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_types_without_meaning_are_read_as_told(kind: str, random: Any, big_endian: bool) -> None:
    encoding = random.draw(st.sampled_from(choices_of(kind)))
    message = photo_message(encoding, smooth(40, 60), 3, big_endian)
    expected = read_rgb(message)
    message.encoding = kind
    with pytest.raises(BadImage, match=f"encoding {kind} .*set input_encoding"):
        read_rgb(message)
    np.testing.assert_array_equal(read_rgb(message, reading=Reading(encoding)), expected)
    assert frame_size(message, Reading(encoding)) == (40, 60)
    wrong = "rgb8" if kind != "8UC3" else "mono8"
    with pytest.raises(BadImage, match=f"{kind} cannot be {wrong}.*set input_encoding to "):
        frame_size(message, Reading(wrong))


@pytest.mark.parametrize("kind", ["8UC3", "16UC3"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_channels_without_meaning_in_a_png(kind: str, order: str) -> None:
    """image_transport hands them to OpenCV, which takes the first for blue."""
    rgb, bits = smooth(40, 60), int(kind.partition("U")[0])
    channels = rgb if order == "rgb" else rgb[:, :, ::-1]
    if bits == 16:
        channels = channels.astype(np.uint16) * 257
    data = cv2.imencode(".png", channels)[1].tobytes()
    message = compressed(data, f"{kind}; png compressed ")
    np.testing.assert_array_equal(read_rgb(message, reading=Reading(f"{order}{bits}")), rgb)


@pytest.mark.parametrize("encoding", ["", "BGR8", "nonsense"])
def test_an_encoding_that_is_empty_or_not_known_is_read_as_told(encoding: str) -> None:
    message = photo_message("bgr8", smooth(40, 60), 0, False)
    message.encoding = encoding
    np.testing.assert_array_equal(read_rgb(message, reading=Reading("bgr8")), smooth(40, 60))


@pytest.mark.parametrize("encoding", ["rgb8", "mono16", "bayer_gbrg8"])
def test_an_encoding_that_is_known_is_not_overruled(encoding: str) -> None:
    message = photo_message(encoding, smooth(40, 60), 0, False)
    told = read_rgb(message, reading=Reading("bgr8"))
    np.testing.assert_array_equal(told, read_rgb(message))


@given(st.sampled_from(INTERLEAVED + BAYER), st.integers(8, 16), st.booleans())
@settings(max_examples=100, deadline=None)
def test_bits_that_are_not_used_do_not_darken(encoding: str, bits: int, png: bool) -> None:
    rgb = smooth(40, 60)
    message = photo_message(encoding, rgb, 0, False)
    expected = read_rgb(message).astype(int)
    if encoding.endswith("16"):
        values = np.frombuffer(message.data, "<u2") >> (16 - bits)
        message.data = array.array("B", values.astype("<u2").tobytes())
        assert largest_value(message) == values.max()
    else:
        assert largest_value(message) is None
    if png and encoding.endswith("16"):
        sent = transported(message, "png", 2)
        assert largest_value(sent) == values.max()
        result = read_rgb(sent, reading=Reading(bits=bits))
    else:
        result = read_rgb(message, reading=Reading(bits=bits))
    assert np.abs(result - expected).max() <= (3 if encoding in BAYER else 1)


@given(st.integers(8, 16), st.integers(0, 2**16 - 1))
def test_to_8_bits(bits: int, value: int) -> None:
    expected = min(255, round(value * 255 / (2**bits - 1)))
    result = encodings.to_8_bits(np.full((2, 3), value, np.uint16), bits)
    assert result.shape == (2, 3) and np.abs(result.astype(int) - expected).max() <= 1


@given(st.integers(0, 2**16 - 1))
def test_sensor_bits(largest: int) -> None:
    bits = sensor_bits(largest)
    assert bits in (10, 12, 14, None) and (bits is None) == (largest >= 2**14)
    assert bits is None or largest < 2**bits
