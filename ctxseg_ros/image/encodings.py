# SPDX-License-Identifier: Apache-2.0
"""Frames as sensor_msgs encodes them to RGB, without a copy where the encoding allows it.

A message is anything with the fields of sensor_msgs/Image or sensor_msgs/CompressedImage: rclpy's
or, where no ROS is installed, that of a library that reads bags.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol, TypeGuard, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.image.resize import resized


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


@dataclass(frozen=True)
class Reading:
    """How to read what frames do not say about themselves.

    Attributes:
        encoding: one of ENCODINGS, for frames whose own encoding says nothing about colours
            (8UC1, 8UC3, 16UC1 and the like), is empty or is not known; "": refuse those.
        bits: how many bits of 16-bit values are used, 8 to 16. Cameras of 12 bits that leave the
            upper 4 empty give nearly black frames with 16.
    """

    encoding: str = ""
    bits: int = 16

    def __post_init__(self) -> None:
        """Raise ValueError for what is not allowed."""
        if self.encoding and self.encoding not in ENCODINGS:
            allowed = ", ".join(ENCODINGS)
            raise ValueError(f"encoding must be one of {allowed}, not {self.encoding!r}")
        if self.bits not in BITS:
            raise ValueError(f"bits must be {BITS[0]} to {BITS[-1]}, not {self.bits}")


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

BITS = range(8, 17)
"""The bits of 16-bit values that may be used."""

AS_STATED = Reading()
"""Only what frames say themselves."""

# OpenCV's types: bits, kind of number, channels (one where none are given).
_TYPE = re.compile(r"(8|16|32|64)([USF])C(\d*)", re.IGNORECASE)
_COLOUR_TOPIC = "remap `image` to the camera's colour topic"
_WHOLE_FRAMES = "the camera driver must send whole frames"
_SETTINGS = "check the camera's settings"
_JPEG_OR_PNG = "send JPEG or PNG"

# Sensors of so many bits write them into the lower part of 16.
_SENSOR_BITS = (10, 12, 14)

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
_PNG_HEADER_ENDS = 33
_PNG_GREY = frozenset((0, 4))  # colour types: grey, and grey with alpha
_CODEC = re.compile("jpe?g|png", re.IGNORECASE)

_JPEG_MOST_STEPS = 1000


class BadImage(ValueError):
    """A frame that cannot be read; the message names the cause and the fix.

    `choices`: the encodings that it could be in, where `Reading.encoding` can tell.
    """

    def __init__(self, cause: str, fix: str, choices: Sequence[str] = ()) -> None:
        super().__init__(f"{cause}; {fix}")
        self.cause = cause
        self.choices = tuple(choices)


def _refuse(cause: str, fix: str, choices: Sequence[str] = ()) -> NoReturn:
    raise BadImage(cause, fix, choices)


def _is_raw(message: RawImage | PackedImage) -> TypeGuard[RawImage]:
    return hasattr(message, "encoding")


def frame_size(message: RawImage | PackedImage, reading: Reading = AS_STATED) -> tuple[int, int]:
    """Height and width of the camera's frame; microseconds, as no pixel is touched.

    Raises BadImage unless the header, the encoding and the amount of data fit together. Whether a
    compressed frame is damaged inside is known once it is decoded.
    """
    if _is_raw(message):
        _check_raw(message, _raw_layout(message, reading))
        return message.height, message.width
    inside, _ = _opened(cast(PackedImage, message), reading)
    return inside.height, inside.width


def read_rgb(
    message: RawImage | PackedImage,
    size: tuple[int, int] | None = None,
    out: NDArray[np.uint8] | None = None,
    reading: Reading = AS_STATED,
) -> NDArray[np.uint8]:
    """Pixels of a frame as uint8 [H, W, 3], RGB, at its own size or resized to (height, width).

    At its own size rgb8 is a view on the message's data, with the rows' padding. With `size` the
    result is C-contiguous; it goes into `out` if given, C-contiguous uint8 [height, width, 3]
    (ValueError otherwise). Bayer mosaics become colour, in JPEG and PNG too; 16 bits become 8 by
    `to_8_bits`; YUV is BT.601 of limited range; the EXIF orientation is ignored, since
    camera_info does not turn either. Raises BadImage.
    """
    frame = frame_size(message, reading)
    try:
        if _is_raw(message):
            layout = _raw_layout(message, reading)
            pixels = _view(message, layout)
        else:
            pixels, layout = _decoded(cast(PackedImage, message), reading, size or frame)
        return _to_rgb(pixels, layout, size, out, reading.bits)
    except cv2.error as error:
        cause = " ".join(str(error).split())
        raise BadImage(f"OpenCV cannot read the frame: {cause}", _SETTINGS) from error


def largest_value(message: RawImage | PackedImage, reading: Reading = AS_STATED) -> int | None:
    """The largest of a frame's 16-bit values; None for a frame of 8 bits. Raises BadImage."""
    frame = frame_size(message, reading)
    if _is_raw(message):
        layout = _raw_layout(message, reading)
        return int(_view(message, layout).max()) if layout.bits == 16 else None
    pixels, layout = _decoded(cast(PackedImage, message), reading, frame)
    return int(pixels.max()) if layout.bits == 16 else None


def is_picture(message: RawImage | PackedImage, reading: Reading = AS_STATED) -> bool:
    """Whether any viewer shows the data of this frame as it is meant: a JPEG or PNG of 8 bits, and
    neither a mosaic nor with red and blue swapped. Raises BadImage."""
    if _is_raw(message):
        return False
    inside, name = _opened(cast(PackedImage, message), reading)
    return inside.bits == 8 and name in ("bgr", "mono")


def to_8_bits(pixels: NDArray, bits: int = 16) -> NDArray[np.uint8]:
    """16-bit values as 8 bits: 2**bits - 1 and more become 255, what is below in proportion.

    Args:
        pixels: uint16 of any shape. bits: that are used, 8 to 16.
    """
    scaled = cv2.convertScaleAbs(pixels, alpha=255 / (2**bits - 1))
    return scaled  # type: ignore[return-value]  # OpenCV's stubs do not know the type


def sensor_bits(largest: int) -> int | None:
    """The bits of the sensor, 10, 12 or 14, where no 16-bit value is above `largest`; None where
    more are used. With 16 such frames are nearly black."""
    return next((bits for bits in _SENSOR_BITS if largest < 2**bits), None)


def _to_rgb(
    pixels: NDArray,
    layout: _Layout,
    size: tuple[int, int] | None,
    out: NDArray[np.uint8] | None,
    bits: int,
) -> NDArray[np.uint8]:
    rgb8 = layout.bits == 8 and layout.to_rgb is None
    if size is not None and layout.interleaved and not rgb8:
        pixels = resized(pixels, size)  # before: there are fewer pixels to convert
    if layout.bits == 16:
        pixels = to_8_bits(pixels, bits)
    if layout.to_rgb is not None:
        pixels = cv2.cvtColor(pixels, layout.to_rgb)
    if size is None and out is None:
        return pixels
    return resized(pixels, size or (pixels.shape[0], pixels.shape[1]), out)


# Encodings


def _raw_layout(message: RawImage, reading: Reading) -> _Layout:
    return _LAYOUTS.get(message.encoding) or _LAYOUTS[_told(message.encoding, reading)]


def _told(encoding: str, reading: Reading) -> str:
    """What `reading` says a frame is in whose own `encoding` does not say it."""
    kind = _TYPE.fullmatch(encoding)
    if kind is None:
        if reading.encoding:
            return reading.encoding
        _refuse(
            f"encoding {encoding!r} is not known",
            f"let the camera publish one of {', '.join(ENCODINGS)}, or set input_encoding to the "
            "one that it is",
            ENCODINGS,
        )
    choices = _encodings_of(int(kind[1]), kind[2].upper(), int(kind[3] or 1))
    if reading.encoding in choices:
        return reading.encoding
    if not choices:
        _refuse(f"encoding {encoding} is depth or raw numbers, not colour", _COLOUR_TOPIC)
    listed = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    if reading.encoding:
        _refuse(
            f"encoding {encoding} cannot be {reading.encoding}, which differs in channels or bits",
            f"set input_encoding to {listed}",
            choices,
        )
    if kind[1] == "16":
        _refuse(
            f"encoding {encoding} is depth or raw numbers, not colour",
            f"{_COLOUR_TOPIC}; if it is an image all the same, set input_encoding to {listed}",
            choices,
        )
    _refuse(
        f"encoding {encoding} does not state its pixel format",
        f"let the camera publish {listed}, or set input_encoding to the one that it is",
        choices,
    )


def _encodings_of(bits: int, kind: str, channels: int) -> tuple[str, ...]:
    """The encodings whose pixels have these bits and channels."""
    return tuple(
        name
        for name, layout in _LAYOUTS.items()
        if kind == "U" and (layout.bits, layout.channels, layout.half_rows) == (bits, channels, 2)
    )


# Raw


def _check_raw(message: RawImage, layout: _Layout) -> None:
    width, height, step = message.width, message.height, message.step
    if not width or not height:
        _refuse(f"the frame is {width}x{height} and holds no pixel", _SETTINGS)
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


class _Inside(NamedTuple):
    """What the header of a JPEG or PNG says; colours of a palette count as three channels."""

    height: int
    width: int
    grey: bool
    bits: int


# Other data that CompressedImage messages carry, by how it starts.
_FOREIGN = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"qoif": "QOI",
    b"\0\0\0\x01": "H.264 or H.265 video",
    b"\0\0\x01": "H.264 or H.265 video",
}


def _opened(message: PackedImage, reading: Reading) -> tuple[_Inside, str]:
    """The header, and the encoding (without its bits) of the pixels as OpenCV decodes them."""
    data, text = bytes(message.data), message.format
    encoding, target = _stated_encoding(text)
    if "compresseddepth" in text.lower():
        _refuse(f"format {text!r} is depth, not colour", _COLOUR_TOPIC)
    if encoding and not data:
        _refuse(
            f"the frame of format {text!r} is empty, as image_transport sends it where it cannot "
            f"compress {encoding}",
            "let the camera publish rgb8 or bgr8, or set image_transport to raw",
        )
    inside = _header(data)
    if inside is None:
        known = (name for start, name in _FOREIGN.items() if data.startswith(start))
        what = f" but {name}" if (name := next(known, "")) else ""
        _refuse(
            f"{len(data)} bytes of format {text!r} are neither JPEG nor PNG{what}", _JPEG_OR_PNG
        )
    if not 0 < inside.height * inside.width <= _MAX_PIXELS:
        _refuse(f"the frame's header says {inside.width}x{inside.height}", _WHOLE_FRAMES)
    return inside, _pixels_inside(text, encoding, target, inside, reading)


def _stated_encoding(text: str) -> tuple[str, str]:
    """The encoding that was compressed and the one that it was turned into for that, of a format
    `ENCODING; CODEC compressed TARGET`; "" for what is not stated.

    TARGET is empty where image_transport compressed the values as they were. Many drivers state
    the codec alone.
    """
    encoding, separator, rest = (part.strip() for part in text.partition(";"))
    known = encoding.lower() in _LAYOUTS or _TYPE.fullmatch(encoding) or "bayer" in encoding.lower()
    if not known and (not separator or _CODEC.search(encoding)):
        return "", ""
    return encoding, rest.lower().partition("compressed")[2].strip()


def _pixels_inside(text: str, encoding: str, target: str, inside: _Inside, reading: Reading) -> str:
    """What the pixels in a JPEG or PNG are, as OpenCV decodes them: a name of _COLOURS."""
    is_type = _TYPE.fullmatch(encoding) is not None
    if not inside.grey and (not is_type or target.startswith(("bgr", "rgb"))):
        return "bgr"  # the file itself says which of its channels is red
    if not encoding:
        name = reading.encoding if reading.encoding.startswith("bayer") else "mono"
    elif encoding.lower() in _LAYOUTS:
        name = encoding.lower()
    elif target.startswith("mono") and not is_type and "bayer" not in encoding.lower():
        name = "mono"
    else:
        name = _told(encoding, reading)
    name = name.rstrip("0123456789")
    if not inside.grey:
        # image_transport put the channels of, say, 8UC3 into a PNG as if the first were blue.
        return name
    if not name.startswith("bayer"):
        return "mono"
    if target.startswith("mono"):
        _refuse(
            f"format {text!r}: the mosaic was turned into grey before it was compressed, its "
            "colours are lost",
            "let the camera compress as PNG (its parameter IMAGE.compressed.format), or publish "
            "the colours (image_proc's debayer node)",
        )
    least = _COLOURS[name].least
    if min(inside.height, inside.width) < least:
        size = f"{inside.width}x{inside.height}"
        _refuse(f"{encoding} needs {least}x{least} pixels, the frame is {size}", _SETTINGS)
    return name


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG or PNG; None for any other data.

    Raises BadImage where its end is missing: decoders may fill up the rest with grey.
    """
    inside = _header(data)
    return inside and (inside.height, inside.width)


def _header(data: bytes) -> _Inside | None:
    if data.startswith(_JPEG_START):
        return _jpeg_header(data)
    if data.startswith(_PNG_START):
        return _png_header(data)
    return None


def _jpeg_header(data: bytes) -> _Inside:
    inside = None
    for marker, segment, after in _jpeg_segments(data):
        if marker in _JPEG_FRAME_HEADERS and len(segment) >= 8:
            height, width, channels = struct.unpack_from(">HHB", segment, 3)
            inside = _Inside(height, width, channels == 1, 8)
        # The decoder would fill up what is missing with grey. Not from the start: a thumbnail
        # within a segment has an end of its own.
        if marker == _JPEG_SCAN_HEADER and inside and data.rfind(_JPEG_END, after) >= 0:
            return inside
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


def _png_header(data: bytes) -> _Inside:
    if data[12:16] != b"IHDR" or data.rfind(_PNG_END, _PNG_HEADER_ENDS) < 0:
        _refuse(f"the PNG of {len(data)} bytes is damaged or cut off", _WHOLE_FRAMES)
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    return _Inside(height, width, kind in _PNG_GREY, 16 if bits == 16 else 8)


def _decoded(
    message: PackedImage, reading: Reading, size: tuple[int, int]
) -> tuple[NDArray, _Layout]:
    """The pixels of a frame; of a JPEG no more than the scale that `size` needs, which is
    quicker."""
    inside, name = _opened(message, reading)
    data = np.frombuffer(message.data, np.uint8)
    scale, flags = 1, cv2.IMREAD_COLOR
    if name.startswith("bayer"):
        flags = cv2.IMREAD_GRAYSCALE
    elif bytes(data[:2]) == _JPEG_START:
        scale, flags = _jpeg_scale((inside.height, inside.width), size)
    if inside.bits == 16:
        flags |= cv2.IMREAD_ANYDEPTH
    pixels = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != (inside.height // scale, inside.width // scale):
        _refuse(f"{data.size} bytes of format {message.format!r} cannot be decoded", _JPEG_OR_PNG)
    if not name.startswith("bayer"):  # three channels: of grey alike, of alpha none
        name = "rgb" if name.startswith("rgb") else "bgr"
    return pixels, _LAYOUTS[f"{name}{inside.bits}"]


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
