# SPDX-License-Identifier: Apache-2.0
"""Image files to pixels: any name, any EXIF orientation, 8 or 16 bits."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxseg_ros.image.encodings import BadImage, sensor_bits, stated_size, to_8_bits
from ctxseg_ros.system.files import shown, told_by

#: Bits that a 16-bit image uses, the default; sensors of 10, 12 or 14 bits leave the upper ones 0.
ALL_BITS = 16

_ORIENTATION = 0x0112  # the tag's number in EXIF
# What turns an image upright, by the tag's value: OpenCV's flip or rotation.
_UPRIGHT: dict[int, Callable[[NDArray], NDArray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class BadImageFile(ValueError):
    """An image file that cannot be used; the message names the file and the cause."""


class ImageFile(NamedTuple):
    """An image: ``bgr`` uint8 [H, W, 3]; ``highest``: its largest value if it has 16 bits."""

    bgr: NDArray[np.uint8]
    highest: int | None


def decoded(path: Path, flags: int) -> NDArray:
    """The pixels of an image file as OpenCV decodes it with ``flags`` (``cv2.IMREAD_...``),
    turned as its EXIF orientation asks, whatever the format.

    Not detected: damage in the middle of a JPEG, which has no checksums; decoders show it as
    smeared or shifted blocks, often without a warning. A PNG has checksums, and they are checked.

    Raises:
        BadImageFile: the file is missing, not an image, too large (more than 2**30 pixels), or cut
            short; a JPEG without its end marker counts as cut short, whatever is missing before it.
    """
    name = shown(path)
    try:
        data = path.read_bytes()  # OpenCV takes paths as UTF-8, and some file names are not
    except OSError as error:
        raise BadImageFile(f"{name}: cannot be read as an image ({error.strerror})") from error
    try:
        stated_size(data)
        buffer = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(buffer, flags | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    except BadImage as error:
        raise BadImageFile(f"{name}: {error.cause}; copy it again or remove it") from error
    except cv2.error as error:  # such as a header that asks for more pixels than OpenCV allows
        raise BadImageFile(f"{name}: cannot be read as an image ({error.err})") from error
    if image is None:
        raise BadImageFile(f"{name}: cannot be read as an image ({_what_it_is(data)})")
    return _upright(image, data)


def read_bgr(path: Path, bits: int = ALL_BITS) -> ImageFile:
    """An image file in OpenCV's order of channels.

    Grey becomes colour, alpha is dropped, and the EXIF orientation is applied. 16 bits become 8,
    by 255 / (2**bits - 1), rounded; what is above becomes 255.

    Args:
        bits: that a 16-bit image uses, 8 to 16, from the lowest.

    Raises:
        BadImageFile: see ``decoded``; or it is of floating-point numbers.
    """
    # OpenCV alone would turn 16 bits into 8 by dropping the lower ones.
    image = decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    highest = None
    if image.dtype == np.uint16:
        highest = int(image.max())
        image = to_8_bits(image, bits)
    if image.dtype != np.uint8:
        raise BadImageFile(f"{shown(path)}: pixels are {image.dtype}; save it with 8 or 16 bits")
    return ImageFile(image, highest)


def too_dark(highest: int | None, bits: int = ALL_BITS) -> str | None:
    """A warning where a 16-bit image is nearly black because it uses its lower bits only.

    Args:
        highest: the image's largest value, None for one of 8 bits. bits: as given to ``read_bgr``.
    """
    used = None if highest is None or bits < ALL_BITS else sensor_bits(highest)
    if used is None:
        return None
    return (
        f"its largest value is {highest} of {2**bits - 1}, which is nearly black: if it comes from "
        f"a sensor of {used} bits, give those as source_bits (camera_node), --bits (commands) or "
        "--data.bits (training)"
    )


def _what_it_is(data: bytes) -> str:
    """Why OpenCV does not read it, and what helps."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = f"{image.format} of Pillow's mode {image.mode}"
    except Exception:  # of damaged files Pillow raises almost anything
        return told_by(data) or "it is damaged, or not an image: copy it again or remove it"
    return f"{kind}, damaged or of a kind that OpenCV does not read: save it with 8 or 16 bits"


def _upright(image: NDArray, data: bytes) -> NDArray:
    if data.startswith(_TIFF_STARTS):
        return image  # OpenCV turns a TIFF in any case
    turn = _UPRIGHT.get(_orientation(data))
    return image if turn is None else turn(image)


def _orientation(data: bytes) -> int:
    """1 to 8, 1 where there is none. Only headers are read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of a damaged EXIF block Pillow raises almost anything; OpenCV ignores it
        return 1
