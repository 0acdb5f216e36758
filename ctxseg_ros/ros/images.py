# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs images to numpy and back, without a copy where the encoding allows it."""

import array
from functools import cache
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

# encoding -> channels, and what makes it RGB (None: it is)
_NATIVE: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}
_DEPTH = ("16UC1", "16SC1", "32SC1", "32FC1", "64FC1")
_PUBLISH = f"let the camera publish {', '.join(_NATIVE)}"


class BadImage(ValueError):
    """A frame that cannot be read; the message names the cause and the fix."""


def _refuse(cause: str, fix: str) -> NoReturn:
    raise BadImage(f"{cause}; {fix}")


def check_image(message: Image) -> None:
    """Raise BadImage unless the header, the encoding and the amount of data fit together."""
    width, height, step = message.width, message.height, message.step
    encoding, size = message.encoding, len(message.data)
    if not width or not height:
        _refuse(f"the frame is {width}x{height} and holds no pixel", "check the camera's settings")
    if encoding in _DEPTH:
        _refuse(
            f"encoding {encoding} is depth or raw numbers, not colour",
            "remap `image` to the camera's colour topic",
        )
    if encoding in _NATIVE:
        row = width * _NATIVE[encoding][0]
        if step < row:
            _refuse(
                f"step is {step}, but {width} pixels of {encoding} take {row} bytes",
                "the camera driver must set step to the bytes of one row",
            )
    elif _cv_bridge() is None:
        _refuse(
            f"encoding {encoding!r} needs cv_bridge, which cannot be imported here",
            f"{_PUBLISH}, or install it: sudo apt install ros-$ROS_DISTRO-cv-bridge",
        )
    if size < step * height:
        _refuse(
            f"data holds {size} bytes, but {height} rows of step {step} are {step * height}",
            "the camera driver must send whole frames",
        )


def image_to_rgb(message: Image) -> NDArray[np.uint8]:
    """Pixels of an Image as uint8 [H, W, 3], RGB; for rgb8 a view on its data. Raises BadImage."""
    check_image(message)
    if message.encoding not in _NATIVE:
        return _bridged(message)
    channels, conversion = _NATIVE[message.encoding]
    pixels: NDArray[np.uint8] = np.ndarray(
        (message.height, message.width, channels),
        np.uint8,
        buffer=message.data,
        strides=(message.step, channels, 1),
    )
    if conversion is None:
        return pixels
    return cv2.cvtColor(pixels, conversion)  # type: ignore[return-value]


def compressed_to_rgb(message: CompressedImage) -> NDArray[np.uint8]:
    """Pixels of a JPEG or PNG as uint8 [H, W, 3], RGB. Raises BadImage."""
    if "compressedDepth" in message.format:
        _refuse(
            f"format {message.format!r} is depth, not colour",
            "remap `image` to the camera's colour topic",
        )
    data = np.frombuffer(message.data, np.uint8)
    # The camera's own orientation: camera_info and the frames of other nodes do not turn either.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise BadImage(f"the image cannot be decoded: {error.err}; send JPEG or PNG") from error
    if pixels is None:
        _refuse(
            f"{data.size} bytes of format {message.format!r} are no whole image", "send JPEG or PNG"
        )
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def to_image(header: Header, pixels: NDArray[np.uint8], encoding: str) -> Image:
    """An Image of uint8 [H, W] or [H, W, channels]; the header is taken as it is."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).data)  # 300 times faster than a list
    height, width = pixels.shape[:2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        step=pixels.size // height,
        data=data,
    )


@cache
def _cv_bridge() -> Any | None:
    """A CvBridge, or None where cv_bridge is not installed or does not fit this NumPy."""
    try:
        from cv_bridge import CvBridge

        return CvBridge()
    except (ImportError, AttributeError):  # built for NumPy 1, it fails with either under NumPy 2
        return None


def _bridged(message: Image) -> NDArray[np.uint8]:
    bridge = _cv_bridge()
    try:
        return bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")  # type: ignore[union-attr]
    except Exception as error:  # CvBridgeError, and NumPy's when the data do not fit the header
        raise BadImage(
            f"cv_bridge cannot make rgb8 of encoding {message.encoding!r}: {error}; {_PUBLISH}"
        ) from error
