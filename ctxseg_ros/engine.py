# SPDX-License-Identifier: Apache-2.0
"""A model that is open and warm at every size it may run at."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros import store
from ctxseg_ros.label_groups import LabelGroups, read_label_groups
from ctxseg_ros.model_file import ClassInfo, ModelInfo, colour_table, format_size
from ctxseg_ros.pipeline import at_frame_size
from ctxseg_ros.prediction import UNLABELLED, Prediction
from ctxseg_ros.runtimes import Runtime, open_runtime
from ctxseg_ros.runtimes.base import fastest_ms, pattern_image


@dataclass(frozen=True)
class EngineSpec:
    """What to open: the parameters of the same names. `label_groups`: a path, empty for none."""

    model: str
    device: str
    input_sizes: tuple[tuple[int, int], ...]
    label_groups: str


@dataclass(frozen=True)
class Engine:
    """One model on one device, at each of its sizes, in the order that was asked for.

    `costs_ms`: how long each size takes in a quiet moment of this machine. `classes` and `colours`
    (uint8 [256, 3], RGB, by id) are those of the groups, if any. `heads`: how many heads the
    attention has; 0 for models that give labels.
    """

    spec: EngineSpec
    info: ModelInfo
    runtimes: tuple[Runtime, ...]
    costs_ms: tuple[float, ...]
    groups: LabelGroups | None
    classes: tuple[ClassInfo, ...]
    colours: NDArray[np.uint8]
    heads: int

    @property
    def device(self) -> str:
        """tensorrt, cuda, openvino or cpu."""
        return self.runtimes[0].device

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

    def close(self) -> None:
        """Free the model's memory. Not while a runtime is running."""
        for runtime in self.runtimes:
            runtime.close()


def open_engine(spec: EngineSpec, log: logging.Logger, device: str | None = None) -> Engine:
    """Open a model at all its sizes on one device; the first size decides where "auto" goes.

    `device`: where it is to run now, if not where `spec` asks.

    Every size is warmed up and measured. Raises ModelFileError,
    LabelGroupsError, RuntimeUnavailable, or ValueError for sizes that do not fit the model or do
    not go from the largest to the smallest.
    """
    info = store.load(spec.model)
    groups, classes, colours = _grouping(spec, info)
    _check_order(spec.input_sizes)
    for size in spec.input_sizes:
        info.check_size(size)
    sizes = spec.input_sizes or (info.fixed_size or info.size,)
    runtimes, costs = _open_runtimes(info, sizes, device or spec.device, log)
    heads = _heads(runtimes[0]) if info.task == "attention" else 0
    return Engine(spec, info, runtimes, costs, groups, classes, colours, heads)


def reopened(engine: Engine, device: str, log: logging.Logger) -> Engine:
    """The same model, sizes and groups on another device, or on the same one anew.

    Raises RuntimeUnavailable, or ModelFileError if the model's file is another one by now.
    """
    sizes = [runtime.size for runtime in engine.runtimes]
    runtimes, costs = _open_runtimes(engine.info, sizes, device, log)
    return dataclasses.replace(engine, runtimes=runtimes, costs_ms=costs)


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


def regrouped(engine: Engine, spec: EngineSpec) -> Engine:
    """The same open model with the groups of `spec`. Raises LabelGroupsError."""
    groups, classes, colours = _grouping(spec, engine.info)
    return dataclasses.replace(engine, spec=spec, groups=groups, classes=classes, colours=colours)


def _grouping(
    spec: EngineSpec, info: ModelInfo
) -> tuple[LabelGroups | None, tuple[ClassInfo, ...], NDArray[np.uint8]]:
    if not spec.label_groups:
        return None, info.classes, info.colours
    groups = read_label_groups(spec.label_groups, info.classes)
    return groups, groups.classes, colour_table(groups.classes)


def _check_order(sizes: Sequence[tuple[int, int]]) -> None:
    areas = [height * width for height, width in sizes]
    if areas != sorted(areas, reverse=True) or len(set(sizes)) < len(sizes):
        listed = ", ".join(format_size(size) for size in sizes)
        raise ValueError(
            f"input_sizes must go from the largest to the smallest, each once, not {listed}"
        )
