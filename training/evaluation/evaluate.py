# SPDX-License-Identifier: Apache-2.0
"""``python -m training evaluate``: score a model file on images with labels, regions or objects.

What is scored is what the node runs: the exported file, through the same runtime and resizing.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctxseg_ros.command import run_command
from ctxseg_ros.image.attention import mass_mask
from ctxseg_ros.inference.pipeline import Model, at_frame_size
from ctxseg_ros.inference.runtimes import PRECISIONS, open_runtime
from ctxseg_ros.model.model_file import ModelInfo, format_size, parse_size
from ctxseg_ros.model.prediction import UNLABELLED, Prediction
from ctxseg_ros.model.store import load
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.merging import hierarchy
from ctxseg_ros.system.machine import commit, describe
from ctxseg_ros.system.output_files import check_writable, write_json
from training.data.bsds import check_pairs, pair_truths, read_truths
from training.data.class_maps import ClassMap
from training.data.files import DataError, each_file
from training.data.label_sets import LabelSet
from training.data.labelled_options import add_labelled, labelled
from training.data.pairs import (
    IGNORE,
    LabelReader,
    Pair,
    pair_files,
    read_label,
    read_pair,
)
from training.evaluation.matching import MATCHES, NONE, match_clusters, matched_confusion
from training.evaluation.objects import (
    FrameScore,
    centre_prior,
    random_vit,
    read_mask,
    score_frame,
    score_objects,
)
from training.evaluation.regions import (
    LEVELS,
    ImageScores,
    score_hierarchy,
    score_image,
    score_set,
)
from training.evaluation.reliability import Reliability
from training.evaluation.scores import Scores
from training.evaluation.truth import Truth, truth_for

#: The scores of a semantic model's confidence.
CONFIDENCE_SCORES = ("ece", "reliability", "min_confidence")

NOTHING_COUNTS = "no pixel of the label images counts: every one is 255 or --ignore"

#: Of one frame: of the ``model`` and of each control.
FrameScores = dict[str, FrameScore]


def evaluate_labels(
    info: ModelInfo,
    pairs: Sequence[Pair],
    ignore: int | None = None,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    match: str = "none",
    precision: str = "auto",
    label_set: LabelSet | None = None,
    changes: ClassMap | None = None,
) -> dict[str, Any]:
    """Scores against label images, at the truth's own size.

    The clusters of a ``clusters`` model are matched to classes once over the whole set. The truth
    determines the classes: every id that occurs in it, named by its number or by
    ``label_set``. Pixels of a cluster without a class count as wrong.

    Args:
        info: the model. pairs: frames and their ground truth.
        ignore: id of the ground truth that does not count. 255 never counts.
        label_set: reads the ground truth (colours, palettes, ids that are not the model's) and
            names its classes, which are the model's by name, in any order. None: the ground truth
            holds the model's ids.
        changes: for ground truth with other classes than the model's: the classes of the model
            that each of its classes may be, see ``training.data.class_maps.allowed_classes``. Its
            classes that may be the same are one. Where the model gives a class that none of them
            may be, it is wrong.
        size: (height, width) of the model's input; None: the size that it was trained for.
        device, precision: see ``ctxseg_ros.inference.runtimes.open_runtime``.
        match: ``none`` for a ``semantic`` model; for ``clusters`` a key of
            ``training.evaluation.matching.MATCHES``.

    Returns:
        ``miou``, ``iou`` (by class; None for a class neither true nor predicted),
        ``pixel_accuracy``, ``class_accuracy`` (fractions of 1), ``images``, ``match``. Of a
        ``semantic`` model also ``ece`` (expected calibration error of the confidence),
        ``reliability`` and ``min_confidence``, see ``Reliability.bins`` and
        ``curve``. Where clusters were matched also ``matching`` (class by cluster, None without
        one) and ``other``: the same scores by the other match.

    Raises:
        DataError: a file cannot be read, a label is outside the model's classes, the names of
            ``label_set`` are not the model's, or nothing in the ground truth counts.
        ValueError: ``match`` does not fit the model's task, ``size`` its input, or both
            ``ignore`` and ``label_set`` are given.
    """
    _check_match(info, match)
    if info.task == "semantic":
        truth = truth_for(info, ignore, label_set, changes)
        pixels, reliability = score_frames(info, pairs, truth, size, device, precision)
        result = {
            **_scores(pixels, truth.names),
            "ece": reliability.ece,
            "reliability": reliability.bins(),
            "min_confidence": reliability.curve(),
        }
    else:
        if changes is not None:
            raise ValueError("--map is for a semantic model: clusters have no classes to map to")
        if label_set is not None and ignore is not None:
            raise ValueError("the class list states what is ignored: give --ignore or --classes")
        # The clusters of a model say nothing about the ids of the ground truth.
        read: LabelReader = (
            label_set.read if label_set else partial(read_label, classes=IGNORE, ignore=ignore)
        )
        pixels = _count_clusters(info, pairs, read, size, device, precision)
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
    size: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
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
    for expected, prediction in _predictions(info, pairs, truth.read, size, device, precision):
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
    size: tuple[int, int] | None,
    device: str,
    precision: str,
) -> NDArray[np.int64]:
    """``count_pixels`` by [id of the truth, cluster], over a whole set."""
    ids = len(info.classes)
    pixels = np.zeros((IGNORE, ids + 1), np.int64)
    for truth, prediction in _predictions(info, pairs, read, size, device, precision):
        assert prediction.labels is not None
        pixels += count_pixels(truth, prediction.labels, IGNORE, ids)
    return pixels


def _predictions(
    info: ModelInfo,
    pairs: Sequence[Pair],
    read: LabelReader,
    size: tuple[int, int] | None,
    device: str,
    precision: str,
) -> Iterator[tuple[NDArray[np.uint8], Prediction]]:
    """The ground truth of each frame, and what the model gives at the truth's size."""
    runtime = open_runtime(info, size, device, precision=precision)
    segmenter = Model(runtime)
    try:
        for pair in track(pairs, f"{info.name}", console=Console(stderr=True)):
            truth = read(pair.label)
            yield truth, at_frame_size(segmenter.segment(pair.rgb()), *truth.shape)
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
    there = np.flatnonzero(pixels.sum(1))
    if not len(there):
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


def evaluate_regions(
    info: ModelInfo,
    pairs: Sequence[Pair],
    size: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Scores of a model's regions against BSDS truth, at each image's own size.

    Args:
        info: the model. pairs: images and their ``.mat`` files.
        size: (height, width) of the model's input; None: for each image the nearest to its own
            shape that the model takes, so that none is squeezed.
        device, precision: see ``ctxseg_ros.inference.runtimes.open_runtime``.

    Returns:
        ``plain`` (the partition by label, connected or not), ``crf`` (the same after the CRF) and
        ``merged`` (the hierarchy of regions, cut at ``regions.LEVELS``), each what
        ``regions.score_set`` returns; ``images``.

    Raises:
        DataError: a file cannot be read or used; all such files are named, before the model runs.
        ValueError: the model has no labels, or ``size`` does not fit it.
    """
    if info.task == "attention":
        raise ValueError(f"{info.name} is a model of task attention: it has no regions to score")
    check_pairs(pairs)
    scores: dict[str, list[ImageScores]] = {"plain": [], "crf": [], "merged": []}
    for pair, segmenter in _with_segmenters(info, pairs, size, device, precision):
        for name, score in _score_regions(segmenter, pair, len(info.classes)).items():
            scores[name].append(score)
    return {
        "plain": score_set(scores["plain"]),
        "crf": score_set(scores["crf"]),
        "merged": score_set(scores["merged"], LEVELS),
        "images": len(pairs),
    }


def fitting_size(info: ModelInfo, shape: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that the model takes and that is nearest to an image's ``shape``."""
    if info.fixed_size is not None:
        return info.fixed_size
    height, width = (max(round(side / info.stride), 1) * info.stride for side in shape)
    return height, width


def _with_segmenters(
    info: ModelInfo,
    pairs: Sequence[Pair],
    size: tuple[int, int] | None,
    device: str,
    precision: str,
) -> Iterator[tuple[Pair, Model]]:
    """Each pair with a segmenter of ``size``; None: of the size that fits the pair's image best.

    Pairs of one size follow each other, and no other is open then.
    """
    by_size: dict[tuple[int, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_size[size or fitting_size(info, pair.rgb().shape[:2])].append(pair)
    for used in by_size:
        info.check_size(used)
    queue = [(used, pair) for used, group in by_size.items() for pair in group]
    segmenter: Model | None = None
    try:
        for used, pair in track(queue, f"{info.name}", console=Console(stderr=True)):
            if segmenter is None or segmenter.runtime.size != used:
                if segmenter is not None:
                    segmenter.runtime.close()
                segmenter = Model(open_runtime(info, used, device, precision=precision))
            yield pair, segmenter
    finally:
        if segmenter is not None:
            segmenter.runtime.close()


def _score_regions(segmenter: Model, pair: Pair, classes: int) -> dict[str, ImageScores]:
    image, truths = pair.rgb(), read_truths(pair.label)
    prediction = segmenter.segment(image)
    assert prediction.labels is not None and prediction.confidence is not None
    refined = refine(image, prediction.labels, prediction.confidence, classes)
    return {
        "plain": score_image(truths, prediction.labels),
        "crf": score_image(truths, refined.argmax(0)),
        "merged": score_hierarchy(truths, hierarchy(image, refined)),
    }


def evaluate_objects(
    info: ModelInfo,
    pairs: Sequence[Pair],
    mass: float = 0.6,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Scores of attention masks against the masks of objects, at the truth's own size.

    Every frame weighs the same; those without an object are left out, since nothing could be
    right on them. Two controls are scored on the same frames and the same grid of patches: a
    prior for the centre, and a ViT that learnt nothing.

    Args:
        info: the model. pairs: frames and their masks, where what is not black is the object.
        mass: share of the attention that a mask holds.
        size: (height, width) of the model's input; None: for each frame the nearest to its own
            shape that the model takes, so that none is squeezed.
        device, precision: see ``ctxseg_ros.inference.runtimes.open_runtime``.

    Returns:
        What ``objects.score_objects`` returns, for the model and, in ``controls``, for
        ``centre_prior`` and ``random_vit``; ``sequences``, by folder of the frames: ``images`` and
        ``jaccard_mean`` and ``jaccard_best_head`` of the model, ``jaccard_mean`` of the controls;
        ``mass``, ``images`` (those scored), ``without_object``.

    Raises:
        DataError: a file cannot be read or used, all are named before the model runs; or there is
            no object at all.
        ValueError: the model has no attention, ``mass`` is not above 0 and up to 1, or ``size``
            does not fit the model.
    """
    if info.task != "attention":
        raise ValueError(
            f"{info.name} is a model of task {info.task}: it has no attention to score"
        )
    mass_mask(np.ones((1, 1), np.float32), mass)  # refuses a wrong mass before the minutes
    there = each_file(lambda pair: read_pair(pair, read_mask)[1].any(), pairs, "frames and masks")
    seen = [pair for pair, has_object in zip(pairs, there, strict=True) if has_object]
    if not seen:
        raise DataError("there is nothing to score: no mask has an object, all are black")
    scored = _score_attention(info, seen, mass, size, device, precision)
    sets = _score_sets([scores for _, scores in scored])
    return {
        **sets.pop("model"),
        "mass": mass,
        "images": len(seen),
        "without_object": len(pairs) - len(seen),
        "controls": sets,
        "sequences": _score_sequences(scored),
    }


def _score_attention(
    info: ModelInfo,
    pairs: Sequence[Pair],
    mass: float,
    size: tuple[int, int] | None,
    device: str,
    precision: str,
) -> list[tuple[Pair, FrameScores]]:
    """Each pair's scores, of the ``model`` and of the controls on the same grid of patches."""
    untaught, scored = random_vit(), []
    for pair, segmenter in _with_segmenters(info, pairs, size, device, precision):
        rows, columns = (side // info.stride for side in segmenter.runtime.size)
        image, truth, _ = read_pair(pair, read_mask)
        maps = {
            "model": segmenter.segment(image).attention,
            "centre_prior": centre_prior(rows, columns),
            "random_vit": untaught(image, (rows, columns)),
        }
        scores = {name: score_frame(attention, truth, mass) for name, attention in maps.items()}
        scored.append((pair, scores))
    return scored


def _score_sets(frames: Sequence[FrameScores]) -> dict[str, dict[str, Any]]:
    """What ``score_objects`` says of the model and of each control."""
    return {name: score_objects([scores[name] for scores in frames]) for name in frames[0]}


def _score_sequences(scored: Sequence[tuple[Pair, FrameScores]]) -> dict[str, dict[str, Any]]:
    """Scores by folder of the frames, named by its path below what all frames share."""
    frames_of: dict[Path, list[FrameScores]] = defaultdict(list)
    for pair, scores in scored:
        frames_of[pair.image.absolute().parent].append(scores)
    root = Path(os.path.commonpath(list(frames_of)))
    result = {}
    for folder, frames in sorted(frames_of.items()):
        sets = _score_sets(frames)
        model = sets.pop("model")
        result[root.name if folder == root else folder.relative_to(root).as_posix()] = {
            "images": len(frames),
            "jaccard_mean": model["jaccard_mean"],
            "jaccard_best_head": model["jaccard_best_head"],
            **{name: control["jaccard_mean"] for name, control in sets.items()},
        }
    return result


def _labels_table(name: str, result: dict[str, Any]) -> Table:
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


def _regions_table(name: str, result: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: {result['images']} images, ODS / OIS", title_justify="left")
    table.add_column("regions")
    for heading in ("covering", "PRI", "VI (bits)"):
        table.add_column(heading, justify="right")
    for kind in ("plain", "crf", "merged"):
        measures = [result[kind][m] for m in ("covering", "pri", "vi")]
        table.add_row(kind, *(f"{m['ods']:.3f} / {m['ois']:.3f}" for m in measures))
    return table


def _objects_table(name: str, result: dict[str, Any]) -> Table:
    left_out = result["without_object"]
    caption = "every frame weighs the same" + (
        f"; {left_out} without an object left out" if left_out else ""
    )
    table = Table(
        title=f"{name}: {result['images']} images, mass {result['mass']:g}, Jaccard",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    table.add_column("attention")
    for heading in ("heads' mean", "best head", "fixed head", "mass curve"):
        table.add_column(heading, justify="right")
    controls = result["controls"]
    for label, each in ((name, result), ("random ViT-Ti/16", controls["random_vit"])):
        table.add_row(
            label,
            f"{each['jaccard_mean']:.3f}",
            f"{each['jaccard_best_head']:.3f}",
            f"{each['jaccard_fixed_head']:.3f} (head {each['fixed_head']})",
            f"{each['mass_curve_area']:.3f}",
        )
    centre = controls["centre_prior"]  # one map: there is no choice of heads
    area = f"{centre['mass_curve_area']:.3f}"
    table.add_row("centre prior", f"{centre['jaccard_mean']:.3f}", "-", "-", area)
    if len(result["sequences"]) > 1:
        table.add_section()
        for folder, each in result["sequences"].items():
            values = (f"{each[key]:.3f}" for key in ("jaccard_mean", "jaccard_best_head"))
            table.add_row(f"{folder} ({each['images']})", *values)
    return table


def _labels(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    info, frames = load(args.model), labelled(args)
    result = evaluate_labels(
        info,
        frames.pairs,
        frames.ignore,
        args.size,
        args.device,
        args.match,
        args.precision,
        frames.label_set,
        frames.changes,
    )
    size = format_size(args.size or info.fixed_size or info.size)
    row = {"model": info.name, "size": size, "ignore": args.ignore, **result}
    return _labels_table(info.name, result), row


def _regions(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    info = load(args.model)
    pairs = pair_truths(args.images, args.segmentations)
    result = evaluate_regions(info, pairs, args.size, args.device, args.precision)
    size = _own_sizes(info, args.size)
    return _regions_table(info.name, result), {"model": info.name, "size": size, **result}


def _objects(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    info = load(args.model)
    pairs = pair_files(args.images, args.masks)
    result = evaluate_objects(info, pairs, args.mass, args.size, args.device, args.precision)
    size = _own_sizes(info, args.size)
    return _objects_table(info.name, result), {"model": info.name, "size": size, **result}


def _own_sizes(info: ModelInfo, size: tuple[int, int] | None) -> str:
    """In words, the size at which the images went in, where it is each image's own if None."""
    fixed = size or info.fixed_size
    return format_size(fixed) if fixed else f"nearest multiple of {info.stride} to each image"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser("labels", help="IoU against label images")
    regions = commands.add_parser("regions", help="covering, PRI and VI against BSDS .mat files")
    objects = commands.add_parser("objects", help="Jaccard of attention against objects' masks")
    for command, run in ((labels, _labels), (regions, _regions), (objects, _objects)):
        command.set_defaults(run=run)
        command.add_argument(
            "--model", required=True, help="a name of `ctxseg models` or an .onnx file"
        )
        command.add_argument("--size", type=parse_size, metavar="HxW", help="of the model's input")
        command.add_argument("--device", default="auto")
        command.add_argument(
            "--precision", default="auto", choices=["auto", *PRECISIONS], help="to compute in"
        )
        command.add_argument("--json", type=Path, metavar="FILE")
    add_labelled(labels)
    labels.add_argument(
        "--match",
        choices=["none", *MATCHES],
        default="none",
        help="how the clusters of a model without classes are matched to the truth's",
    )
    for command in (regions, objects):
        command.add_argument("--images", type=Path, required=True)
    regions.add_argument("--segmentations", type=Path, required=True, metavar="DIR")
    objects.add_argument("--masks", type=Path, required=True, help="not black = object")
    objects.add_argument(
        "--mass", type=float, default=0.6, help="share of attention in a mask (%(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``)."""
    args = _parser().parse_args(arguments)

    def work() -> None:
        if args.json:
            check_writable(args.json)  # better known before the minutes
        table, row = args.run(args)
        Console().print(table)
        if args.json:
            write_json(args.json, {**row, "machine": describe(), "commit": commit()})

    return run_command("evaluate", work)
