# SPDX-License-Identifier: Apache-2.0
"""A model that is open and warm at every size it may run at."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.inference.pipeline import at_frame_size
from ctxseg_ros.inference.runtimes import Runtime, open_runtime
from ctxseg_ros.inference.runtimes.base import fastest_ms, pattern_image
from ctxseg_ros.model import store
from ctxseg_ros.model.label_groups import LabelGroups, read_label_groups
from ctxseg_ros.model.model_file import ClassInfo, ModelInfo, colour_table, format_size
from ctxseg_ros.model.prediction import UNLABELLED, Prediction
from ctxseg_ros.refinement.refiner import NONE, RefinementFailed, Refiner

_SCALES = (1.0, 0.85, 0.7, 0.55)  # of the model's own sides, for `automatic_sizes`


@dataclass(frozen=True)
class EngineSpec:
    """What to open: the parameters of the same names.

    `input_sizes`: (height, width), largest first; empty for the model's own size, None for
    `automatic_sizes`. `label_groups`: a path, empty for none.
    """

    model: str
    device: str
    input_sizes: tuple[tuple[int, int], ...] | None
    label_groups: str
    refinement: str = NONE


@dataclass(frozen=True)
class Engine:
    """One model on one device, at each of its sizes, in the order that was asked for.

    `inference_ms`, `refine_ms`: how long each size takes in a quiet moment of this machine.
    `refiner`: None without refinement. `classes` and `colours` (uint8 [256, 3], RGB, by id) are
    those of the groups, if any. `heads`: how many heads the attention has; 0 for models that give
    labels.
    """

    spec: EngineSpec
    info: ModelInfo
    runtimes: tuple[Runtime, ...]
    inference_ms: tuple[float, ...]
    refiner: Refiner | None
    refine_ms: tuple[float, ...]
    groups: LabelGroups | None
    classes: tuple[ClassInfo, ...]
    colours: NDArray[np.uint8]
    heads: int

    @property
    def device(self) -> str:
        """tensorrt, cuda, openvino or cpu."""
        return self.runtimes[0].device

    @property
    def costs_ms(self) -> tuple[float, ...]:
        """What each size takes that another size would not: inference and refinement."""
        return tuple(map(sum, zip(self.inference_ms, self.refine_ms, strict=True)))

    def may_be_unlabelled(self, min_confidence: float) -> bool:
        """Whether a pixel can become 255: unsure (below `min_confidence`, 0-1), by its group, or
        by the model's own graph."""
        if not self.classes:
            return False
        ids = [item.id for item in self.info.classes]
        grouped = self.groups is not None and UNLABELLED in self.groups.table[ids]
        return min_confidence > 0 or grouped or self.info.unlabelled

    def refined(
        self, image: NDArray[np.uint8], prediction: Prediction, merge_level: float
    ) -> Prediction:
        """A runtime's prediction for the image, refined if `spec` says so; see `Refiner`."""
        if self.refiner is None:
            return prediction
        return self.refiner(image, prediction, merge_level)

    def finish(
        self,
        prediction: Prediction,
        height: int,
        width: int,
        min_confidence: float,
        with_confidence: bool = True,
    ) -> Prediction:
        """A runtime's prediction at the camera's size, grouped, unsure pixels unlabelled (255).

        Where a group makes a label 255, its confidence is 0. Attention stays on the model's patch
        grid. Without `with_confidence`, confidence is None unless `min_confidence` (0-1) needs it.
        """
        if prediction.labels is None:
            return prediction
        grid = prediction.labels
        if self.groups is not None:  # before it grows: the model's grid has fewer pixels
            grid = cv2.LUT(grid, self.groups.table)  # type: ignore[assignment]
        needed = with_confidence or min_confidence
        sure = prediction.confidence if needed else None
        prediction = at_frame_size(Prediction(grid, sure), height, width)
        labels, confidence = prediction.labels, prediction.confidence
        assert labels is not None
        if confidence is not None and self.groups is not None:
            _, known = cv2.threshold(labels, UNLABELLED - 1, 255, cv2.THRESH_BINARY_INV)
            cv2.bitwise_and(confidence, known, dst=confidence)
        if confidence is not None and min_confidence:
            least = math.ceil(min_confidence * 255)
            _, unsure = cv2.threshold(confidence, least - 1, UNLABELLED, cv2.THRESH_BINARY_INV)
            cv2.bitwise_or(labels, unsure, dst=labels)
        return prediction

    def close_runtimes(self) -> None:
        """Free the model's memory, and keep the rest. Not while a runtime is running."""
        for runtime in self.runtimes:
            runtime.close()

    def close(self) -> None:
        """Free everything. Not while a runtime is running."""
        self.close_runtimes()
        if self.refiner is not None:
            self.refiner.close()


def open_engine(spec: EngineSpec, log: logging.Logger, device: str | None = None) -> Engine:
    """Open a model at all its sizes on one device; the first size decides where "auto" goes.

    `device`: where it is to run now, if not where `spec` asks.

    Every size is warmed up and measured. Raises ModelFileError,
    LabelGroupsError, RuntimeUnavailable, or ValueError for sizes that do not fit the model or do
    not go from the largest to the smallest, and for a refinement that cannot be.
    """
    info = store.load(spec.model)
    groups, classes, colours = _grouping(spec, info)
    sizes = _sizes(spec, info)
    refiner = _refiner(spec, info)
    refine_ms = _refine_ms(refiner, sizes)
    runtimes, inference_ms = _open_runtimes(info, sizes, device or spec.device, log)
    heads = _heads(runtimes[0]) if info.task == "attention" else 0
    return Engine(
        spec, info, runtimes, inference_ms, refiner, refine_ms, groups, classes, colours, heads
    )


def reopened(engine: Engine, device: str, log: logging.Logger) -> Engine:
    """The same model, sizes, groups and refinement on another device, or on the same one anew.

    Raises RuntimeUnavailable, or ModelFileError if the model's file is another one by now.
    """
    sizes = [runtime.size for runtime in engine.runtimes]
    runtimes, inference_ms = _open_runtimes(engine.info, sizes, device, log)
    return dataclasses.replace(engine, runtimes=runtimes, inference_ms=inference_ms)


def _open_runtimes(
    info: ModelInfo, sizes: Sequence[tuple[int, int]], device: str, log: logging.Logger
) -> tuple[tuple[Runtime, ...], tuple[float, ...]]:
    """The model at each size, and its times."""
    runtimes: list[Runtime] = []
    with contextlib.ExitStack() as opened:  # closes what is open already if a later size fails
        for size in sizes:
            runtime = open_runtime(info, size, device, log)
            opened.callback(runtime.close)
            runtimes.append(runtime)
            device = runtime.device
        costs = fastest_ms(runtimes)
        opened.pop_all()
    return tuple(runtimes), tuple(costs)


def _heads(runtime: Runtime) -> int:
    attention = runtime.run(pattern_image(runtime.size)).attention
    assert attention is not None  # the task's only output
    return len(attention)


def adapted(engine: Engine, spec: EngineSpec) -> Engine:
    """The same open model with the groups and the refinement of `spec`.

    Raises LabelGroupsError, and ValueError for a refinement that cannot be.
    """
    groups, classes, colours = _grouping(spec, engine.info)
    refiner, refine_ms = engine.refiner, engine.refine_ms
    if spec.refinement != engine.spec.refinement:
        refiner = _refiner(spec, engine.info)
        refine_ms = _refine_ms(refiner, [runtime.size for runtime in engine.runtimes])
    return dataclasses.replace(
        engine,
        spec=spec,
        refiner=refiner,
        refine_ms=refine_ms,
        groups=groups,
        classes=classes,
        colours=colours,
    )


def _refiner(spec: EngineSpec, info: ModelInfo) -> Refiner | None:
    if spec.refinement == NONE:
        return None
    if info.task == "attention":
        raise ValueError(
            f"refinement is for models that give labels, {info.name} gives attention. "
            f"Set refinement to {NONE}"
        )
    return Refiner(spec.refinement, len(info.classes))


def _refine_ms(refiner: Refiner | None, sizes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """What each size takes, from what the smallest does: it goes with the pixels.

    Not on the model's labels: it may be labelling frames meanwhile.
    """
    if refiner is None:
        return (0.0,) * len(sizes)
    height, width = sizes[-1]
    rows, columns = np.mgrid[0:height, 0:width] // 16
    labels = (rows + columns).astype(np.uint8) % refiner.classes
    prediction = Prediction(labels, np.full_like(labels, 200))
    for _ in range(2):  # the first run warms up
        start = time.perf_counter()
        try:
            refiner(pattern_image((height, width)), prediction, 0.5)
        except RefinementFailed as error:
            raise ValueError(str(error)) from error
        took_ms = (time.perf_counter() - start) * 1e3
    return tuple(took_ms * size[0] * size[1] / (height * width) for size in sizes)


def _grouping(
    spec: EngineSpec, info: ModelInfo
) -> tuple[LabelGroups | None, tuple[ClassInfo, ...], NDArray[np.uint8]]:
    if not spec.label_groups:
        return None, info.classes, info.colours
    groups = read_label_groups(spec.label_groups, info.classes)
    return groups, groups.classes, colour_table(groups.classes)


def automatic_sizes(info: ModelInfo) -> tuple[tuple[int, int], ...]:
    """The model's own size and smaller ones, (height, width), to choose from by the budget."""
    if info.fixed_size is not None:
        return (info.fixed_size,)
    height, width = info.size
    sides = [(_fitting(height * scale, info), _fitting(width * scale, info)) for scale in _SCALES]
    return tuple(dict.fromkeys(sides))


def _fitting(side: float, info: ModelInfo) -> int:
    return max(round(side / info.stride), 1) * info.stride


def _sizes(spec: EngineSpec, info: ModelInfo) -> tuple[tuple[int, int], ...]:
    if spec.input_sizes is None:
        return automatic_sizes(info)
    _check_order(spec.input_sizes)
    for size in spec.input_sizes:
        info.check_size(size)
    return spec.input_sizes or (info.fixed_size or info.size,)


def _check_order(sizes: Sequence[tuple[int, int]]) -> None:
    areas = [height * width for height, width in sizes]
    if areas != sorted(areas, reverse=True) or len(set(sizes)) < len(sizes):
        listed = ", ".join(format_size(size) for size in sizes)
        raise ValueError(
            f"input_sizes must go from the largest to the smallest, each once, not {listed}"
        )
