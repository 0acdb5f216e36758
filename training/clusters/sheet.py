# SPDX-License-Identifier: Apache-2.0
"""A picture with examples of each cluster of a model, and a file for a person to name them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.image.render import overlay
from ctxseg_ros.image.resize import resized
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import ClassInfo, ModelInfo
from ctxseg_ros.model.prediction import UNLABELLED
from ctxseg_ros.system.output_files import make_folder, write_image, write_text
from training.data.evenly import evenly
from training.data.files import progress
from training.data.frames import FrameList

NAMES_FILE, SHEET_FILE = "names.yaml", "clusters.png"

#: Frames that a sheet is made from, at most, evenly over the source.
SHEET_FRAMES = 200
#: Examples of each cluster on it, and the width of one in pixels.
EXAMPLES = 5
_WIDTH = 240
_GAP = 6
_BACKGROUND, _INK = 24, (235, 235, 235)


class NamingError(ValueError):
    """Clusters cannot be named so; the message says what to change."""


def check_task(info: ModelInfo) -> None:
    """Raise NamingError unless the model has clusters."""
    if info.task != "clusters":
        raise NamingError(
            f"{info.name} is a model of task {info.task}: it has no clusters to name; make one "
            "with python -m training cluster"
        )


def identity(info: ModelInfo) -> str:
    """A model's name and the beginning of its SHA-256: what a names file is for."""
    return f"{info.name} {info.sha256[:12]}"


@dataclass(frozen=True)
class _Example:
    """A frame that shows a cluster: how well, which frame it is, and its labels at sheet size."""

    score: float
    frame: int
    labels: NDArray[np.uint8]


def write_sheet(
    info: ModelInfo,
    frames: FrameList,
    folder: Path,
    size: tuple[int, int] | None = None,
    device: str = "auto",
) -> None:
    """Write a picture with examples of each cluster, and the names file to fill in.

    A cluster's examples are the frames in which its pixels have the most confidence in sum; all
    but its pixels is dimmed.

    Args:
        info: a clusters model. frames: SHEET_FRAMES of them are used, evenly chosen.
        folder: for SHEET_FILE and NAMES_FILE; made where it is missing.
        size, device: see ``training.clusters.name_clusters.Truth``.

    Raises:
        NamingError: the model has no clusters, or there is a names file already.
        OutputError: they cannot be written.
    """
    check_task(info)
    names = folder / NAMES_FILE
    if names.exists():
        raise NamingError(f"{names}: is there already; move it away, or give another --sheet")
    make_folder(folder)
    best, shares = _examples(info, frames, size, device)
    rows = [
        _row(item, share, [(frames[e.frame], e.labels) for e in examples])
        for item, share, examples in zip(info.classes, shares, best, strict=True)
    ]
    height = max(row.shape[0] for row in rows)
    sheet = np.full((len(rows) * height, rows[0].shape[1], 3), _BACKGROUND, np.uint8)
    for i, row in enumerate(rows):
        sheet[i * height : i * height + row.shape[0]] = row
    write_image(folder / SHEET_FILE, sheet)
    write_text(names, _form(info, shares))


def _examples(
    info: ModelInfo, frames: FrameList, size: tuple[int, int] | None, device: str
) -> tuple[list[list[_Example]], NDArray[np.float64]]:
    """The best examples of each cluster, and each one's share of the pixels."""
    count = len(info.classes)
    best: list[list[_Example]] = [[] for _ in range(count)]
    shares = np.zeros(count)
    chosen = evenly(len(frames), SHEET_FRAMES)
    runtime = open_runtime(info, size, device)
    try:
        segmenter = Model(runtime)
        for index in progress(chosen, info.name, len(chosen)):
            said = segmenter.segment(frames[index])
            assert said.labels is not None and said.confidence is not None
            flat = said.labels.ravel()
            shares += np.bincount(flat, minlength=count) / flat.size / len(chosen)
            scores = np.bincount(flat, said.confidence.ravel(), count) / flat.size
            small = _small(said.labels)
            for cluster in np.flatnonzero(scores):
                best[cluster].append(_Example(scores[cluster], index, small))
                best[cluster].sort(key=lambda example: -example.score)
                del best[cluster][EXAMPLES:]
    finally:
        runtime.close()
    return best, shares


def _small(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels at the width that an example has on the sheet."""
    height = max(round(plane.shape[0] * _WIDTH / plane.shape[1]), 1)
    how = cv2.INTER_NEAREST_EXACT
    return cv2.resize(plane, (_WIDTH, height), interpolation=how)  # type: ignore[return-value]


def _row(
    item: ClassInfo, share: float, examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    """A cluster's colour, number and share, and its examples beside them."""
    tiles = [_tile(frame, labels == item.id, item.colour) for frame, labels in examples]
    height = max((tile.shape[0] for tile in tiles), default=60) + _GAP
    row = np.full((height, 150 + EXAMPLES * (_WIDTH + _GAP), 3), _BACKGROUND, np.uint8)
    cv2.rectangle(row, (_GAP, _GAP), (40, 40), item.colour, cv2.FILLED)
    for text, place, scale in ((str(item.id), (50, 36), 1.0), (f"{share:.1%}", (50, 62), 0.5)):
        cv2.putText(row, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
    for i, tile in enumerate(tiles):
        left = 150 + i * (_WIDTH + _GAP)
        row[: tile.shape[0], left : left + _WIDTH] = tile
    return row


def _tile(
    frame: NDArray[np.uint8], there: NDArray[np.bool_], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """A frame with all dimmed but one cluster, which has an outline in its colour."""
    small = resized(frame, there.shape)
    painted = overlay(
        small, np.where(there, UNLABELLED, 0).astype(np.uint8), np.zeros((256, 3), np.uint8), 0.6
    )
    outlines, _ = cv2.findContours(there.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(painted, outlines, -1, colour, 1)  # type: ignore[return-value]


def _form(info: ModelInfo, shares: NDArray[np.float64]) -> str:
    lines = [
        f"# Names of the clusters that {SHEET_FILE} shows. Clusters of one name become one class;",
        "# those without a name are left unlabelled.",
        f"model: {identity(info)}",
        "clusters:",
    ]
    lines += [f"  {c.id}:  # {share:.1%}" for c, share in zip(info.classes, shares, strict=True)]
    lines += [
        "# Colours by name, where others than the sheet's are wanted: road: [128, 64, 128]",
        "colours: {}",
        "",
    ]
    return "\n".join(lines)
