# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs images to RGB, by ``ctxseg_ros.image.encodings``, and back."""

import array

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ctxseg_ros.image.encodings import (
    ENCODINGS,
    BadImage,
    Reading,
    frame_size,
    largest_value,
    read_rgb,
    sensor_bits,
)

__all__ = [
    "ENCODINGS",
    "BadImage",
    "Reading",
    "frame_size",
    "largest_value",
    "read_rgb",
    "sensor_bits",
    "to_image",
]


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
