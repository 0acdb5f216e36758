# SPDX-License-Identifier: Apache-2.0
"""Label images scored against ground truth: intersection over union, accuracies, confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctxseg_ros.inference.pipeline import Model, at_frame_size
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import UNLABELLED, Prediction
from training.data.files import DataError
from training.data.ground_truth import MODEL_IDS, GroundTruth
from training.data.label_files import IGNORE
from training.data.pairs import LabelReader, Pair, read_label
from training.evaluation.matching import MATCHES, NONE, match_clusters, matched_confusion
from training.evaluation.reliability import Reliability
from training.evaluation.running import AUTO, RunOptions
from training.evaluation.scores import Scores
from training.evaluation.truth import Truth, truth_for

#: The scores of a semantic model's confidence.
CONFIDENCE_SCORES = ("ece", "reliability", "min_confidence")

NOTHING_COUNTS = "no pixel of the label images counts: every one is 255 or --ignore"


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
        ``pixel_accuracy``, ``class_accuracy`` (fractions of 1), ``images``, ``match``. Of a
        ``semantic`` model also ``ece`` (expected calibration error of the confidence),
        ``reliability`` and ``min_confidence``, see ``Reliability.bins`` and ``curve``. Where
        clusters were matched also ``matching`` (class by cluster, None without one) and ``other``:
        the same scores by the other match.

    Raises:
        DataError: a file cannot be read, a label is outside the model's classes, the names of
            ``truth.label_set`` are not the model's, or nothing in the ground truth counts.
        ValueError: ``match`` does not fit the model's task, the size its input, or the parts of
            ``truth`` each other.
    """
    _check_match(info, match)
    if info.task == "semantic":
        model_truth = truth_for(info, truth)
        pixels, reliability = score_frames(info, pairs, model_truth, run)
        result = {
            **_scores(pixels, model_truth.names),
            "ece": reliability.ece,
            "reliability": reliability.bins(),
            "min_confidence": reliability.curve(),
        }
    else:
        label_set = truth.label_set
        if truth.changes is not None:
            raise ValueError("--map is for a semantic model: clusters have no classes to map to")
        if label_set is not None and truth.ignore is not None:
            raise ValueError("the class list states what is ignored: give --ignore or --classes")
        # The clusters of a model say nothing about the ids of the ground truth.
        read: LabelReader = (
            label_set.read
            if label_set
            else partial(read_label, classes=IGNORE, ignore=truth.ignore)
        )
        pixels = _count_clusters(info, pairs, read, run)
        named = [name for name, _ in label_set.classes] if label_set else None
        result = matched_scores(pixels, match, named)
    return {**result, "images": len(pairs), "match": match}


def _check_match(info: ModelInfo, match: str) -> None:
    choices = " or ".join(f"{name} ({what})" for name, what in MATCHES.items())
    if info.task == "clusters" and match not in MATCHES:
        raise ValueError(f"{info.name} has clusters, not classes: match them by {choices}")
    if info.task == "semantic" and match != "none":
        raise ValueError(f"{info.name} has classes of its own: leave --match at none")
    if info.task == "attention":
        raise ValueError(f"{info.name} is a model of task attention: it has no labels to score")


def score_frames(
    info: ModelInfo,
    pairs: Sequence[Pair],
    truth: Truth,
    run: RunOptions = AUTO,
) -> tuple[NDArray[np.int64], Reliability]:
    """Run a semantic model on frames and count pixels at the size of their ground truth.

    Returns:
        ``count_pixels`` by [class of the truth, label as such a class], and the ``Reliability`` of
        the confidence. A label that no class of the truth may be is wrong.

    Raises:
        DataError: a file cannot be read or used, or no pixel counts.
    """
    count = len(truth.names)
    pixels = np.zeros((count, count + 1), np.int64)
    reliability = Reliability.count(np.zeros(0, np.uint8), np.zeros(0, bool))
    for expected, prediction in _predictions(info, pairs, truth.read, run):
        assert prediction.labels is not None and prediction.confidence is not None
        labels = truth.fold[prediction.labels]
        pixels += count_pixels(expected, labels, count)
        seen = expected != IGNORE
        given = seen & (prediction.labels != UNLABELLED)
        reliability += Reliability.count(
            prediction.confidence[given],
            labels[given] == expected[given],
            np.count_nonzero(seen) - np.count_nonzero(given),
        )
    if not pixels.any():
        raise DataError(NOTHING_COUNTS)
    return pixels, reliability


def _count_clusters(
    info: ModelInfo,
    pairs: Sequence[Pair],
    read: LabelReader,
    run: RunOptions,
) -> NDArray[np.int64]:
    """``count_pixels`` by [id of the truth, cluster], over a whole set."""
    ids = len(info.classes)
    pixels = np.zeros((IGNORE, ids + 1), np.int64)
    for truth, prediction in _predictions(info, pairs, read, run):
        assert prediction.labels is not None
        pixels += count_pixels(truth, prediction.labels, IGNORE, ids)
    return pixels


def _predictions(
    info: ModelInfo,
    pairs: Sequence[Pair],
    read: LabelReader,
    run: RunOptions,
) -> Iterator[tuple[NDArray[np.uint8], Prediction]]:
    """The ground truth of each frame, and what the model gives at the truth's size."""
    runtime = run.open(info)
    model = Model(runtime)
    try:
        for pair in track(pairs, info.name, console=Console(stderr=True)):
            truth = read(pair.label)
            yield truth, at_frame_size(model.segment(pair.rgb()), *truth.shape)
    finally:
        runtime.close()


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
        raise DataError(NOTHING_COUNTS)
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
    if result.get("ece") is not None:
        table.add_row("calibration error", f"{100 * result['ece']:.2f}")
    if "other" in result:
        other = result["other"]
        table.add_section()
        table.add_row(f"mIoU by {other['match']}", f"{100 * other['miou']:.2f}")
        table.add_row("pixel accuracy", f"{100 * other['pixel_accuracy']:.2f}")
    return table
