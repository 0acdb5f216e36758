# SPDX-License-Identifier: Apache-2.0
"""Frames as sensor_msgs encodes them to RGB, without a copy where the encoding allows it.

A message is anything with the fields of sensor_msgs/Image or sensor_msgs/CompressedImage: rclpy's
or, where no ROS is installed, that of a library that reads bags.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, Protocol, TypeGuard, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.resize import resized


class RawImage(Protocol):
    """The fields of sensor_msgs/Image that are read; ``data`` is a buffer of bytes."""

    height: int
    width: int
    encoding: str
    is_bigendian: Any
    step: int
    data: Any


class PackedImage(Protocol):
    """The fields of sensor_msgs/CompressedImage that are read."""

    format: str
    data: Any


class _Layout(NamedTuple):
    """How the pixels of an encoding lie in `data`, and what makes RGB of them."""

    channels: int
    to_rgb: int | None  # cv2's conversion; None: it is RGB
    bits: int = 8
    interleaved: bool = True  # each pixel stands for itself: it may be resized, then converted
    half_rows: int = 2  # rows in `data` for two rows of pixels
    multiple: tuple[int, int] = (1, 1)  # of which height and width must be
    least: int = 1  # height and width, at least


_COLOURS = {
    "rgb": _Layout(3, None),
    "bgr": _Layout(3, cv2.COLOR_BGR2RGB),
    "rgba": _Layout(4, cv2.COLOR_RGBA2RGB),
    "bgra": _Layout(4, cv2.COLOR_BGRA2RGB),
    "mono": _Layout(1, cv2.COLOR_GRAY2RGB),
    # OpenCV names the pattern by the second row's second and third pixel: BG is RGGB. Below 3x3
    # it gives black.
    "bayer_rggb": _Layout(1, cv2.COLOR_BayerBG2RGB, interleaved=False, least=3),
    "bayer_bggr": _Layout(1, cv2.COLOR_BayerRG2RGB, interleaved=False, least=3),
    "bayer_gbrg": _Layout(1, cv2.COLOR_BayerGR2RGB, interleaved=False, least=3),
    "bayer_grbg": _Layout(1, cv2.COLOR_BayerGB2RGB, interleaved=False, least=3),
}
_UYVY = _Layout(2, cv2.COLOR_YUV2RGB_UYVY, interleaved=False, multiple=(1, 2))
_YUYV = _Layout(2, cv2.COLOR_YUV2RGB_YUY2, interleaved=False, multiple=(1, 2))
_NV12 = _Layout(1, cv2.COLOR_YUV2RGB_NV12, interleaved=False, half_rows=3, multiple=(2, 2))
_NV21 = _NV12._replace(to_rgb=cv2.COLOR_YUV2RGB_NV21)
_LAYOUTS = {
    **{f"{name}8": layout for name, layout in _COLOURS.items()},
    **{f"{name}16": layout._replace(bits=16) for name, layout in _COLOURS.items()},
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": _NV12,
    "nv21": _NV21,
}
ENCODINGS = tuple(_LAYOUTS)
"""The encodings of an Image that are read, as sensor_msgs/image_encodings.hpp defines them."""

_NUMBERS = re.compile(r"(8S|16U|16S|32S|32F|64F)C\d*")  # what depth comes in
_NAMELESS = {"8UC1": "mono8", "8UC3": "rgb8 or bgr8", "8UC4": "rgba8 or bgra8"}
_COLOUR_TOPIC = "remap `image` to the camera's colour topic"
_WHOLE_FRAMES = "the camera driver must send whole frames"
_SETTINGS = "check the camera's settings"
_JPEG_OR_PNG = "send JPEG or PNG"

_MAX_PIXELS = 2**26  # of a compressed frame, where a damaged header could ask for all the memory
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN_HEADER = 0xDA
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a segment
_JPEG_SCALES = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"


_JPEG_MOST_STEPS = 1000


class BadImage(ValueError):
    """A frame that cannot be read; the message names the cause and the fix."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause}; {fix}")
        self.cause = cause


def _refuse(cause: str, fix: str) -> NoReturn:
    raise BadImage(cause, fix)


def _is_raw(message: RawImage | PackedImage) -> TypeGuard[RawImage]:
    return hasattr(message, "encoding")


def frame_size(message: RawImage | PackedImage) -> tuple[int, int]:
    """Height and width of the camera's frame; microseconds, as no pixel is touched.

    Raises BadImage unless the header, the encoding and the amount of data fit together. What a
    compressed frame has inside is known once it is decoded.
    """
    if _is_raw(message):
        _check_raw(message)
        return message.height, message.width
    return _compressed_size(cast(PackedImage, message))


def read_rgb(
    message: RawImage | PackedImage,
    size: tuple[int, int] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Pixels of a frame as uint8 [H, W, 3], RGB, at its own size or resized to (height, width).

    At its own size rgb8 is a view on the message's data, with the rows' padding. With `size` the
    result is C-contiguous; it goes into `out` if given, C-contiguous uint8 [height, width, 3]
    (ValueError otherwise). 16 bits become 8; YUV is BT.601 of limited range; the EXIF orientation
    is ignored, since camera_info does not turn either. Raises BadImage.
    """
    frame = frame_size(message)
    try:
        if _is_raw(message):
            layout = _LAYOUTS[message.encoding]
            pixels = _view(message, layout)
        else:
            layout = _LAYOUTS["bgr8"]
            pixels = _decoded(cast(PackedImage, message), frame, size or frame)
        return _to_rgb(pixels, layout, size, out)
    except cv2.error as error:
        cause = " ".join(str(error).split())
        raise BadImage(f"OpenCV cannot read the frame: {cause}", _SETTINGS) from error


def _to_rgb(
    pixels: NDArray,
    layout: _Layout,
    size: tuple[int, int] | None,
    out: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    rgb8 = layout.bits == 8 and layout.to_rgb is None
    if size is not None and layout.interleaved and not rgb8:
        pixels = resized(pixels, size)  # before: there are fewer pixels to convert
    if layout.bits == 16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    if layout.to_rgb is not None:
        pixels = cv2.cvtColor(pixels, layout.to_rgb)
    if size is None and out is None:
        return pixels
    return resized(pixels, size or (pixels.shape[0], pixels.shape[1]), out)


# Raw


def _check_raw(message: RawImage) -> None:
    width, height, step = message.width, message.height, message.step
    if not width or not height:
        _refuse(f"the frame is {width}x{height} and holds no pixel", _SETTINGS)
    layout = _LAYOUTS.get(message.encoding)
    if layout is None:
        _refuse_encoding(message.encoding)
    if height % layout.multiple[0] or width % layout.multiple[1]:
        sides = "width" if layout.multiple[0] == 1 else "width and height"
        _refuse(f"{message.encoding} has an even {sides}, the frame is {width}x{height}", _SETTINGS)
    if min(height, width) < layout.least:
        least = f"{layout.least}x{layout.least}"
        _refuse(
            f"{message.encoding} needs {least} pixels, the frame is {width}x{height}", _SETTINGS
        )
    row = width * layout.channels * layout.bits // 8
    if step < row:
        _refuse(
            f"step is {step}, but {width} pixels of {message.encoding} take {row} bytes",
            "the camera driver must set step to the bytes of one row",
        )
    rows, size = height * layout.half_rows // 2, len(message.data)
    if size < step * rows:
        _refuse(
            f"data holds {size} bytes, but {rows} rows of step {step} are {step * rows}",
            _WHOLE_FRAMES,
        )


def _refuse_encoding(encoding: str) -> NoReturn:
    if _NUMBERS.fullmatch(encoding):
        _refuse(f"encoding {encoding} is depth or raw numbers, not colour", _COLOUR_TOPIC)
    if encoding in _NAMELESS:
        _refuse(
            f"encoding {encoding} does not say what its channels are",
            f"let the camera publish {_NAMELESS[encoding]}",
        )
    _refuse(
        f"encoding {encoding!r} is not known",
        f"let the camera publish one of {', '.join(ENCODINGS)}",
    )


def _view(message: RawImage, layout: _Layout) -> NDArray:
    """The data as [rows, width] or [rows, width, channels], copied only where OpenCV needs it."""
    kind = np.dtype("u1" if layout.bits == 8 else ">u2" if message.is_bigendian else "<u2")
    channels, item = layout.channels, kind.itemsize
    rows = message.height * layout.half_rows // 2
    pixels: NDArray = np.ndarray(
        (rows, message.width, channels),
        kind,
        buffer=message.data,
        strides=(message.step, channels * item, item),
    )
    if not kind.isnative or message.step % item:
        pixels = pixels.astype(np.uint16)
    return pixels if channels > 1 else pixels[:, :, 0]


# Compressed


def _compressed_size(message: PackedImage) -> tuple[int, int]:
    encoding = message.format.partition(";")[0]  # what was compressed, as image_transport says it
    if "compressedDepth" in message.format or _NUMBERS.fullmatch(encoding):
        _refuse(f"format {message.format!r} is depth, not colour", _COLOUR_TOPIC)
    data = bytes(message.data)
    size = stated_size(data)
    if size is None:
        _refuse(
            f"{len(data)} bytes of format {message.format!r} are neither JPEG nor PNG", _JPEG_OR_PNG
        )
    height, width = size
    if not 0 < height * width <= _MAX_PIXELS:
        _refuse(f"the frame's header says {width}x{height}", _WHOLE_FRAMES)
    return height, width


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG or PNG; None for any other data.

    Raises BadImage where its end is missing: decoders may fill up the rest with grey.
    """
    if data.startswith(_JPEG_START):
        return _jpeg_size(data)
    if data.startswith(_PNG_START):
        return _png_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    size = None
    for marker, segment, after in _jpeg_segments(data):
        if marker in _JPEG_FRAME_HEADERS and len(segment) >= 7:
            size = struct.unpack_from(">HH", segment, 3)
        # The decoder would fill up what is missing with grey. Not from the start: a thumbnail
        # within a segment has an end of its own.
        if marker == _JPEG_SCAN_HEADER and size and data.rfind(_JPEG_END, after) >= 0:
            return size
    _refuse(f"the JPEG of {len(data)} bytes is damaged or cut off", _WHOLE_FRAMES)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, segment and the position after it, of all segments up to the first scan's header."""
    at, marker = len(_JPEG_START), 0
    for _ in range(_JPEG_MOST_STEPS):  # this is the callback: damaged data may not keep it
        if marker == _JPEG_SCAN_HEADER:
            return
        at = data.find(b"\xff", at)  # libjpeg skips what stands between, too
        if at < 0 or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # no marker, and a fill byte
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        else:
            after = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            yield marker, data[at + 2 : after], after
            at = after


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR" or data.rfind(_PNG_END) < 0:
        _refuse(f"the PNG of {len(data)} bytes is damaged or cut off", _WHOLE_FRAMES)
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _decoded(
    message: PackedImage, frame: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The frame as BGR; of a JPEG no more than the scale that `size` needs, which is quicker."""
    data = np.frombuffer(message.data, np.uint8)
    scale, flags = 1, cv2.IMREAD_COLOR
    if bytes(data[:2]) == _JPEG_START:
        scale, flags = _jpeg_scale(frame, size)
    pixels = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != (frame[0] // scale, frame[1] // scale):
        _refuse(f"{data.size} bytes of format {message.format!r} cannot be decoded", _JPEG_OR_PNG)
    return pixels  # type: ignore[return-value]


def _jpeg_scale(frame: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest scale at which the frame has `size` or more, and its flag.

    One that divides the frame: libjpeg fills the last block up, which would shift the pixels.
    """
    (height, width), (rows, columns) = frame, size
    for scale, flag in _JPEG_SCALES:
        if (
            height % scale == width % scale == 0
            and height >= scale * rows
            and width >= scale * columns
        ):
            return scale, flag
    return 1, cv2.IMREAD_COLOR
