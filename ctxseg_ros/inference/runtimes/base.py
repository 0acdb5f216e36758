# SPDX-License-Identifier: Apache-2.0
"""What every runtime offers, and the checks that all of them share."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import ModelFileError, ModelInfo, format_size
from ctxseg_ros.model.prediction import UNLABELLED, Prediction

_TRIALS = 5  # runs to know a runtime's time


class RuntimeUnavailable(RuntimeError):
    """The device asked for is not there; the message lists those that are, and what to install."""


class Runtime(Protocol):
    """A model that is open at one size on one device. For one thread at a time."""

    info: ModelInfo
    device: str
    """tensorrt, cuda, openvino or cpu."""
    precision: str
    """fp32, bf16 or fp16."""
    reason: str
    """Why this device and not a better one, in words."""
    size: tuple[int, int]
    """Height, width of the images it takes."""

    def run(self, image: NDArray[np.uint8]) -> Prediction:
        """Predict uint8 [H, W, 3] RGB, C-contiguous, of exactly `size`; new arrays each time.

        Releases the GIL while it computes. Raises ValueError for another image, RuntimeError
        after `close`.
        """

    def close(self) -> None:
        """Free the model's memory."""


def check_image(image: NDArray[np.uint8], size: tuple[int, int]) -> None:
    """Raise ValueError unless the image is C-contiguous uint8 [H, W, 3] of `size`."""
    if image.dtype != np.uint8 or image.shape != (*size, 3) or not image.flags.c_contiguous:
        order = "" if image.flags.c_contiguous else ", not C-contiguous"
        raise ValueError(
            f"the image must be C-contiguous uint8 [{size[0]}, {size[1]}, 3], "
            f"it is {image.dtype} {list(image.shape)}{order}"
        )


def to_prediction(outputs: Mapping[str, NDArray]) -> Prediction:
    """Drop the batch axis of the model's outputs."""
    return Prediction(**{name: value[0] for name, value in outputs.items()})


def warm_up(runtime: Runtime) -> None:
    """Run a grey frame twice, so that the first real one is fast, and check what comes out.

    Raises ModelFileError if the outputs are not those that the model file promises.
    """
    grey = np.full((*runtime.size, 3), 128, np.uint8)
    for _ in range(2):
        prediction = runtime.run(grey)
    check_prediction(prediction, runtime.info, runtime.size)


def check_prediction(prediction: Prediction, info: ModelInfo, size: tuple[int, int]) -> None:
    """Raise ModelFileError unless sizes and class ids are those that the model file promises."""
    height, width = size
    expected: dict[str, tuple[int, ...]] = {"labels": size, "confidence": size}
    if prediction.attention is not None:
        heads = prediction.attention.shape[0]
        expected = {"attention": (heads, height // info.stride, width // info.stride)}
    for name, shape in expected.items():
        found = getattr(prediction, name).shape
        if found != shape:
            raise ModelFileError(
                f"{info.path}: output {name!r} is {list(found)} for an image of "
                f"{format_size(size)}, it must be {list(shape)}. Export the model again"
            )
    if prediction.labels is not None:
        ids = np.unique(prediction.labels)
        unknown = ids[(ids >= len(info.classes)) & (ids != UNLABELLED)]
        if unknown.size:
            raise ModelFileError(
                f"{info.path}: the model predicts class {unknown[0]}, but ctxseg.classes names "
                f"0 to {len(info.classes) - 1} only. Export the model again with all its classes"
            )


def pattern_image(size: tuple[int, int]) -> NDArray[np.uint8]:
    """A fixed image with gradients, edges and texture, uint8 [H, W, 3], for measuring."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 12, (*size, 3))
    planes = (
        255 * rows / size[0],
        255 * columns / size[1],
        127 + 80 * np.sin(rows / 9) * np.cos(columns / 13) + 40 * ((rows + columns) // 32 % 2),
    )
    return np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8)


def fastest_ms(runtimes: Sequence[Runtime]) -> list[float]:
    """The fastest of a few runs of each: what else the machine does only ever adds to them.

    They take turns, so that a busy moment meets all of them alike.
    """
    images = [pattern_image(runtime.size) for runtime in runtimes]
    best = [math.inf] * len(runtimes)
    for number in range(1 + _TRIALS):
        for place, (runtime, image) in enumerate(zip(runtimes, images, strict=True)):
            start = time.perf_counter()
            runtime.run(image)
            if number:  # the first run warms the caches
                best[place] = min(best[place], time.perf_counter() - start)
    return [seconds * 1e3 for seconds in best]
