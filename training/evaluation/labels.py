# SPDX-License-Identifier: Apache-2.0
"""Label images scored against ground truth: intersection over union, and accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import UNLABELLED
from training.data.class_maps import ClassMap, allowed_classes
from training.data.files import DataError
from training.data.label_files import IGNORE
from training.data.label_sets import LabelSet
from training.data.pairs import LabelReader, Pair, read_label
from training.evaluation.matching import MATCHES, NONE, match_clusters, matched_confusion
from training.evaluation.running import AUTO, RunOptions
from training.evaluation.scores import Scores


@dataclass(frozen=True)
class GroundTruth:
    """How label images are read, and which of their pixels count.

    Args:
        ignore: id of the label images that does not count. 255 never counts.
        label_set: reads the label images (colours, palettes, ids that are not the model's) and
            names its classes, which are the model's by name, in any order. None: the label images
            hold the model's ids.
        changes: for label images with other classes than the model's: the classes of the model
            that each of their classes may be, see ``training.data.class_maps.allowed_classes``.
            Classes that may be the same are one. Where the model predicts a class that none of
            them may be, it is wrong.
    """

    ignore: int | None = None
    label_set: LabelSet | None = None
    changes: ClassMap | None = None


#: Label images that hold the model's ids, all of which count.
MODEL_IDS = GroundTruth()


def evaluate_labels(
    info: ModelInfo,
    pairs: Sequence[Pair],
    truth: GroundTruth = MODEL_IDS,
    match: str = "none",
    run: RunOptions = AUTO,
) -> dict[str, Any]:
    """Scores against label images, at their own size.

    The clusters of a ``clusters`` model are matched to classes once over the whole set. The ground
    truth determines the classes: every id that occurs in it, named by its number or by
    ``truth.label_set``. Pixels of a cluster without a class count as wrong.

    Args:
        info: the model. pairs: frames and their label images. truth: how these are read.
        match: ``none`` for a ``semantic`` model; for ``clusters`` a key of
            ``training.evaluation.matching.MATCHES``.
        run: its size is by default the one that the model was trained for.

    Returns:
        ``miou``, ``iou`` (by class; None for a class neither true nor predicted),
        ``pixel_accuracy``, ``class_accuracy`` (fractions of 1), ``images``, ``match``; where
        clusters were matched also ``matching`` (class by cluster, None without one) and ``other``:
        the same scores by the other match.

    Raises:
        DataError: a file cannot be read, a label is outside the model's classes, the names of
            ``truth.label_set`` are not the model's, or nothing in the ground truth counts.
        ValueError: ``match`` does not fit the model's task, the size its input, or the parts of
            ``truth`` each other.
    """
    _check_match(info, match)
    label_set = truth.label_set
    if label_set is not None and truth.ignore is not None:
        raise ValueError("the class list states what is ignored: give --ignore or --classes")
    names = [item.name for item in info.classes] if info.task == "semantic" else None
    if truth.changes is not None:
        if names is None or label_set is None:
            raise ValueError("--map tells a class list of a semantic model: give --classes too")
        groups = _Groups(label_set, names, truth.changes)
        pixels = _count_set(info, pairs, len(groups.names), groups.read, run, groups.fold)
        return {**_scores(pixels, groups.names), "images": len(pairs), "match": match}
    # The clusters of a model say nothing about the ids of the ground truth.
    count = len(names) if names else IGNORE
    read: LabelReader
    if label_set is None:
        read = partial(read_label, classes=count, ignore=truth.ignore)
    elif names is not None:
        read = _by_name(label_set, names)
    else:
        read = label_set.read
    pixels = _count_set(info, pairs, count, read, run)
    if names is not None:
        result = _scores(pixels, names)
    else:
        named = [name for name, _ in label_set.classes] if label_set else None
        result = matched_scores(pixels, match, named)
    return {**result, "images": len(pairs), "match": match}


def _by_name(label_set: LabelSet, names: Sequence[str]) -> LabelReader:
    """Reads the labels of a set as the ids that a model gives to classes of the same names."""
    listed = [name for name, _ in label_set.classes]
    if set(listed) != set(names):
        differences = [
            f"{who} lacks {', '.join(sorted(lacking))}"
            for who, lacking in (
                ("the model", set(listed) - set(names)),
                ("the class list", set(names) - set(listed)),
            )
            if lacking
        ]
        raise DataError(
            f"the classes of the model and of the class list differ: {'; '.join(differences)}. "
            "Rows of a class list may share a name"
        )
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(listed)] = [names.index(name) for name in listed]
    return lambda path: table[label_set.read(path)]


class _Groups:
    """Classes of a truth as sets of a model's classes that have none in common.

    ``names``: the model's classes in each, joined by "|". ``fold``: uint8 [256], the group of each
    of the model's ids, UNLABELLED for those in none.

    Raises:
        DataError: a class cannot be mapped, or two sets overlap without being equal.
    """

    def __init__(self, label_set: LabelSet, names: Sequence[str], changes: ClassMap) -> None:
        self._label_set = label_set
        allowed = allowed_classes([name for name, _ in label_set.classes], names, changes)
        groups = list(dict.fromkeys(each for each in allowed if each))
        self.names = ["|".join(names[k] for k in sorted(group)) for group in groups]
        self.fold = np.full(IGNORE + 1, UNLABELLED, np.uint8)
        for i, group in enumerate(groups):
            if (self.fold[list(group)] != UNLABELLED).any():
                raise DataError(
                    f"{self.names[i]} has a class in common with another class of the truth: a "
                    "pixel of it could be counted as either"
                )
            self.fold[list(group)] = i
        self._table = np.full(IGNORE + 1, IGNORE, np.uint8)
        for label, each in enumerate(allowed):
            if each:
                self._table[label] = groups.index(each)

    def read(self, path: Path) -> NDArray[np.uint8]:
        """A label image as groups, uint8 [H, W]."""
        return self._table[self._label_set.read(path)]


def _check_match(info: ModelInfo, match: str) -> None:
    choices = " or ".join(f"{name} ({what})" for name, what in MATCHES.items())
    if info.task == "clusters" and match not in MATCHES:
        raise ValueError(f"{info.name} has clusters, not classes: match them by {choices}")
    if info.task == "semantic" and match != "none":
        raise ValueError(f"{info.name} has classes of its own: leave --match at none")
    if info.task == "attention":
        raise ValueError(f"{info.name} is a model of task attention: it has no labels to score")


def _count_set(
    info: ModelInfo,
    pairs: Sequence[Pair],
    classes: int,
    read: LabelReader,
    run: RunOptions,
    fold: NDArray[np.uint8] | None = None,
) -> NDArray[np.int64]:
    ids = len(info.classes) if fold is None else classes
    pixels = np.zeros((classes, ids + 1), np.int64)
    runtime = run.open(info)
    model = Model(runtime)
    try:
        for pair in track(pairs, info.name, console=Console(stderr=True)):
            truth = read(pair.label)
            labels = model.segment(pair.rgb()).labels
            assert labels is not None
            labels = labels if fold is None else fold[labels]
            if labels.shape != truth.shape:
                height, width = truth.shape
                how = cv2.INTER_NEAREST_EXACT
                enlarged = cv2.resize(labels, (width, height), interpolation=how)
                labels = np.asarray(enlarged, np.uint8)
            pixels += count_pixels(truth, labels, classes, ids)
    finally:
        runtime.close()
    return pixels


def count_pixels(
    truth: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int, ids: int | None = None
) -> NDArray[np.int64]:
    """Pixels by [truth, label], [C, K + 1]; labels of 255 (unlabelled) in the last column.

    Both are uint8 [H, W]; where the truth is IGNORE nothing is counted. The truth has ``classes``
    ids (C), the labels ``ids`` (K; None: as many).
    """
    columns = (classes if ids is None else ids) + 1
    seen = truth != IGNORE
    predicted = np.minimum(labels[seen], columns - 1).astype(np.int64)
    pixels = truth[seen] * np.int64(columns) + predicted
    return np.bincount(pixels, minlength=classes * columns).reshape(classes, columns)


def matched_scores(
    pixels: NDArray[np.int64], match: str, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scores of clusters, see ``evaluate_labels``, by a key of ``matching.MATCHES``.

    Args:
        pixels: [C, K + 1], from ``count_pixels`` over the whole set; row = id in the truth.
        match: see above. names: of the ids; None: their numbers.

    Raises:
        DataError: there is no pixel.
    """
    there = np.flatnonzero(pixels.sum(1)).tolist()
    if not there:
        raise DataError("no pixel of the label images counts: every one is 255 or --ignore")
    pixels = pixels[there]
    names = [names[each] if names else str(each) for each in there]
    results = {}
    for how in MATCHES:
        matching = match_clusters(pixels[:, :-1], how)
        results[how] = _scores(matched_confusion(pixels, matching), names)
        results[how]["matching"] = {
            str(cluster): None if item == NONE else names[item]
            for cluster, item in enumerate(matching)
        }
    (other,) = results.keys() - {match}
    return {**results[match], "other": {"match": other, **results[other]}}


def _scores(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    scores = Scores(confusion)
    return {
        "miou": round(scores.miou, 6),
        "iou": {
            name: None if np.isnan(iou) else round(float(iou), 6)
            for name, iou in zip(names, scores.iou, strict=True)
        },
        "pixel_accuracy": round(scores.pixel_accuracy, 6),
        "class_accuracy": round(scores.class_accuracy, 6),
    }


def labels_table(name: str, result: dict[str, Any]) -> Table:
    """``evaluate_labels``'s result for people; ``name``: of the model."""
    how = f", by {result['match']}" if "matching" in result else ""
    table = Table(title=f"{name}: {result['images']} images{how}", title_justify="left")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    if "matching" in result:
        table.add_column("clusters", justify="right")
    for item, iou in result["iou"].items():
        row = [item, "-" if iou is None else f"{100 * iou:.1f}"]
        if "matching" in result:
            row.append(" ".join(k for k, v in result["matching"].items() if v == item) or "-")
        table.add_row(*row)
    table.add_section()
    table.add_row("mIoU", f"{100 * result['miou']:.2f}", style="bold")
    table.add_row("pixel accuracy", f"{100 * result['pixel_accuracy']:.2f}")
    table.add_row("class accuracy", f"{100 * result['class_accuracy']:.2f}")
    if "other" in result:
        other = result["other"]
        table.add_section()
        table.add_row(f"mIoU by {other['match']}", f"{100 * other['miou']:.2f}")
        table.add_row("pixel accuracy", f"{100 * other['pixel_accuracy']:.2f}")
    return table
