# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks from a DINO model's attention.

Attention is float32 [heads, h, w], the last block's CLS row over the patches (`Prediction`); a
plane, float32 [h, w], is one head's or their mean. Its values count as shares of attention: below
0 they count as 0, and a plane with a value that is not finite counts as 0 everywhere.
"""

import cv2
import numpy as np
from numpy.typing import NDArray


def head_map(attention: NDArray[np.float32], head: int) -> NDArray[np.float32]:
    """One head's plane (a view), or the mean over the heads for -1; float32 [h, w].

    Raises ValueError, naming the range, for a head that there is not.
    """
    heads = len(attention)
    if not -1 <= head < heads:
        raise ValueError(
            f"attention head must be 0 to {heads - 1}, or -1 for the mean of the {heads} heads, "
            f"not {head}"
        )
    if head == -1:
        return attention.mean(axis=0, dtype=np.float32)
    return attention[head]


def attention_image(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """The plane as an image, uint8 [height, width], enlarged bilinearly; right to 1 level.

    It is linear: 0 is no attention, 255 the most attended patch's. The image's own greatest value
    may be less, as few pixels lie on a patch's centre.
    """
    shares = _shares(plane)
    peak = shares.max()
    levels = np.rint(255 * (shares / peak)) if peak > 0 else shares
    # Rounded first: bytes are enlarged in a third of the time of floats.
    return cv2.resize(  # type: ignore[return-value]
        levels.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR
    )


def mass_mask(plane: NDArray[np.float32], mass: float) -> NDArray[np.bool_]:
    """The fewest patches that together hold at least `mass` of the plane's sum; bool [h, w].

    Of equal patches the first in row-major order is taken. Without any attention no patch is.
    Raises ValueError if mass is not above 0 and up to 1.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"attention mass must be above 0 and up to 1, not {mass}")
    shares = _shares(plane).ravel()
    largest_first = np.argsort(-shares, kind="stable")
    sums = np.cumsum(shares[largest_first])
    mask = np.zeros(shares.shape, np.bool_)
    if sums[-1] > 0:
        count = np.searchsorted(sums, mass * sums[-1]) + 1
        mask[largest_first[:count]] = True
    return mask.reshape(plane.shape)


def mask_image(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.uint8]:
    """The mask as an image, uint8 [height, width], 0 or 255, enlarged by nearest neighbour."""
    levels = np.where(mask, np.uint8(255), np.uint8(0))
    return cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _shares(plane: NDArray[np.float32]) -> NDArray[np.float64]:
    if not np.isfinite(plane).all():
        return np.zeros(plane.shape)
    return np.maximum(plane, 0, dtype=np.float64)
