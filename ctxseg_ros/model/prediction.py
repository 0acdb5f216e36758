# SPDX-License-Identifier: Apache-2.0
"""What a model says about one image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNLABELLED = 255
"""The id of a pixel that has no label."""


@dataclass(frozen=True)
class Prediction:
    """One image's result. What a model's task does not give is None.

    `labels`: uint8 [H, W], class ids, 255 = unlabelled. `confidence`: uint8 [H, W], 255 x the
    top class's probability. `attention`: float32 [heads, h, w], the share of attention that each
    patch gets (a head's patches sum to at most 1).
    """

    labels: NDArray[np.uint8] | None = None
    confidence: NDArray[np.uint8] | None = None
    attention: NDArray[np.float32] | None = None
