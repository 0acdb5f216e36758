# SPDX-License-Identifier: Apache-2.0
"""From a frame of any size to a prediction of that size."""

from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.image.resize import resized
from ctxseg_ros.inference.runtimes import Runtime, open_runtime
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.model.store import load


class Model:
    """A model file, open on a device. One thread at a time: the input buffer is reused.

    Use it in a ``with`` statement, or call ``close``, to free the model's memory.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._input = np.empty((*runtime.size, 3), np.uint8)

    @property
    def info(self) -> ModelInfo:
        """The metadata of the model file."""
        return self.runtime.info

    @property
    def device(self) -> str:
        """tensorrt, cuda, openvino or cpu."""
        return self.runtime.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the ids; empty for a model of task attention."""
        return tuple(item.name for item in self.info.classes)

    @property
    def colours(self) -> NDArray[np.uint8]:
        """uint8 [256, 3], RGB: ``model.colours[prediction.labels]`` is a picture of the labels."""
        return self.info.colours

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

    def close(self) -> None:
        """Free the model's memory; ``segment`` raises RuntimeError from then on."""
        self.runtime.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load_model(
    name_or_path: str | Path,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Model:
    """Open a shipped model by its name (see ``ctxseg models``) or a model file by its path.

    Args:
        name_or_path: e.g. ``"segmenter_tiny"`` or ``"my_model.onnx"``.
        size: (height, width) that frames are resized to for inference, multiples of the model's
            stride; None: the size that the model was trained for.
        device: ``tensorrt``, ``cuda``, ``openvino``, ``cpu``, or ``auto`` for the best available.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto`` for the fastest that costs no accuracy.

    Raises:
        ModelFileError: there is no such model, or its file is damaged.
        RuntimeUnavailable: the device is not available; the message says what to install.
        ValueError: the size does not fit the model, or the device or precision does not exist.
    """
    return Model(open_runtime(load(name_or_path), size, device, precision=precision))


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
