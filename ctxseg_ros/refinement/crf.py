# SPDX-License-Identifier: Apache-2.0
"""Dense CRF: labels aligned with the image's edges (Krähenbühl and Koltun 2011)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import MAX_CLASSES
from ctxseg_ros.model.prediction import UNLABELLED
from ctxseg_ros.refinement.extras import refining

# Smoothness: neighbours have one label. Pixels, and the Potts weight.
_NEAR = 3.0
_NEAR_WEIGHT = 3.0
# Appearance: distant pixels of one colour have one label. Pixels, grey levels of each of the three
# channels, and the Potts weight.
_FAR = 70.0
_COLOUR = 10.0
_FAR_WEIGHT = 5.0
_STEPS = 10
_SURE = 0.99  # no label is surer, or the image could not change it


def refine(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    classes: int,
) -> NDArray[np.float32]:
    """Class probabilities that follow the image's edges, float32 [classes, H, W], each pixel sum 1.

    `image`: uint8 [H, W, 3], RGB. `labels`: uint8 [H, W], ids below `classes`, or 255 = unlabelled
    (any class as likely as another). `confidence`: uint8 [H, W], 255 x the top class's
    probability; the other classes share the rest. About 0.4 s for nine classes at 321x481 on one
    core. Raises ValueError for what does not fit, ImportError without the extra `refine`.
    """
    _check(image, labels, confidence, classes)
    height, width = labels.shape
    if classes == 1:
        return np.ones((1, height, width), np.float32)
    crf = refining("pydensecrf.densecrf").DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-np.log(_unary(labels, confidence, classes)).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=_NEAR, compat=_NEAR_WEIGHT)
    # One scale for each channel: a shorter tuple silently leaves channels out.
    crf.addPairwiseBilateral(
        sxy=_FAR, srgb=(_COLOUR,) * 3, rgbim=np.ascontiguousarray(image), compat=_FAR_WEIGHT
    )
    found = np.array(crf.inference(_STEPS), np.float32)
    return found.reshape(classes, height, width)


def _unary(
    labels: NDArray[np.uint8], confidence: NDArray[np.uint8], classes: int
) -> NDArray[np.float32]:
    """The model's probabilities, float32 [classes, H, W], as far as the two images tell them."""
    # A top class has at least an even share.
    top = np.clip(confidence.astype(np.float32) / 255, 1 / classes, max(_SURE, 1 / classes))
    top[labels == UNLABELLED] = 1 / classes
    ids = np.arange(classes, dtype=np.uint8)[:, None, None]
    return np.where(labels == ids, top, (1 - top) / (classes - 1))


def _check(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    classes: int,
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image is {_kind(image)}. Give it as uint8 [height, width, 3], RGB")
    for name, plane in (("labels", labels), ("confidence", confidence)):
        if plane.dtype != np.uint8 or plane.shape != image.shape[:2]:
            raise ValueError(
                f"the {name} are {_kind(plane)} beside an image of {_kind(image)}. "
                "Give them as uint8 at the image's size"
            )
    if image.size == 0:
        raise ValueError("the image has no pixels. Give one of at least 1x1")
    if not 1 <= classes <= MAX_CLASSES:
        raise ValueError(f"there are {classes} classes. Give 1 to {MAX_CLASSES}")
    wrong = labels[(labels >= classes) & (labels != UNLABELLED)]
    if wrong.size:
        raise ValueError(
            f"the labels hold the id {wrong[0]}, there are {classes} classes. "
            "Give ids below that, or 255 for unlabelled"
        )


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
