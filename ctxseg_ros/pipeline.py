# SPDX-License-Identifier: Apache-2.0
"""From a camera's frame to labels at the camera's own size."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.prediction import Prediction
from ctxseg_ros.runtimes import Runtime


class FrameSegmenter:
    """Runs frames of any size through a runtime. One thread at a time: the buffers are reused."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._input = np.empty((*runtime.size, 3), np.uint8)
        self._packed = self._input  # a frame without gaps, for frames that come with strides

    def segment(self, rgb: NDArray[np.uint8]) -> Prediction:
        """Segment uint8 [h, w, 3] RGB, any strides; the result is in new arrays of h x w.

        Labels are resized by nearest neighbour, confidence linearly; attention stays on the
        model's patch grid. Raises ValueError for another shape or dtype.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise ValueError(
                f"a frame must be uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}"
            )
        prediction = self.runtime.run(self._fit(rgb))
        height, width = rgb.shape[:2]
        if (height, width) == self.runtime.size:
            return prediction
        return Prediction(
            labels=_resize(prediction.labels, height, width, cv2.INTER_NEAREST_EXACT),
            confidence=_resize(prediction.confidence, height, width, cv2.INTER_LINEAR),
            attention=prediction.attention,
        )

    def _fit(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame at the runtime's size, C-contiguous; copied only where that is needed."""
        if not rgb.flags.c_contiguous:
            if self._packed.shape != rgb.shape:
                self._packed = np.empty(rgb.shape, np.uint8)
            np.copyto(self._packed, rgb)
            rgb = self._packed
        height, width = self.runtime.size
        if rgb.shape[:2] == (height, width):
            return rgb
        shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        cv2.resize(rgb, (width, height), dst=self._input, interpolation=how)
        return self._input


def _resize(
    plane: NDArray[np.uint8] | None, height: int, width: int, how: int
) -> NDArray[np.uint8] | None:
    if plane is None:
        return None
    return cv2.resize(plane, (width, height), interpolation=how)  # type: ignore[return-value]
