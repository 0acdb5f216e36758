# SPDX-License-Identifier: Apache-2.0
"""From a camera's frame to the model's size, and from its prediction back to the frame's."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.image.resize import resized
from ctxseg_ros.inference.runtimes import Runtime
from ctxseg_ros.model.prediction import Prediction


class FrameSegmenter:
    """Runs frames of any size through a runtime. One thread at a time: the buffer is reused."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._input = np.empty((*runtime.size, 3), np.uint8)

    def segment(self, rgb: NDArray[np.uint8]) -> Prediction:
        """Segment uint8 [h, w, 3] RGB, any strides; the result is in new arrays of h x w.

        Attention stays on the model's patch grid. Raises ValueError for another shape or dtype.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise ValueError(
                f"a frame must be uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}"
            )
        fitted = resized(rgb, self.runtime.size, self._input)
        return at_frame_size(self.runtime.run(fitted), *rgb.shape[:2])


def at_frame_size(prediction: Prediction, height: int, width: int) -> Prediction:
    """A prediction at the camera's size: labels by nearest neighbour, confidence linearly.

    Attention stays on the model's patch grid: there it is a few hundred numbers.
    """
    return Prediction(
        labels=_resize(prediction.labels, height, width, cv2.INTER_NEAREST_EXACT),
        confidence=_resize(prediction.confidence, height, width, cv2.INTER_LINEAR),
        attention=prediction.attention,
    )


def _resize(
    plane: NDArray[np.uint8] | None, height: int, width: int, how: int
) -> NDArray[np.uint8] | None:
    if plane is None or plane.shape == (height, width):
        return plane
    return cv2.resize(plane, (width, height), interpolation=how)  # type: ignore[return-value]
