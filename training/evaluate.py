# SPDX-License-Identifier: Apache-2.0
"""``python -m training.evaluate labels``: score a model file on labelled frames.

What is scored is what the node runs: the exported file, through the same runtime and resizing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctxseg_ros.machine import commit, describe
from ctxseg_ros.model_file import ModelFileError, ModelInfo, format_size, parse_size
from ctxseg_ros.pipeline import FrameSegmenter
from ctxseg_ros.runtimes import RuntimeUnavailable, open_runtime
from ctxseg_ros.store import load
from training.data.pairs import IGNORE, DataError, Pair, pair_files, read_image, read_label
from training.scores import Scores


def evaluate_labels(
    info: ModelInfo,
    pairs: Sequence[Pair],
    ignore: int | None = None,
    size: tuple[int, int] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Scores of a ``semantic`` model, at the truth's own size.

    Args:
        info: the model. pairs: frames and their truth.
        ignore: id of the truth that does not count. 255 never counts.
        size: (height, width) of the model's input; None: the size that it was trained for.
        device: see ``ctxseg_ros.runtimes.open_runtime``.

    Returns:
        ``miou``, ``iou`` (by class; None for a class neither true nor predicted),
        ``pixel_accuracy``, ``class_accuracy`` (fractions of 1), ``images``.

    Raises:
        DataError: a file cannot be read, or a label is outside the model's classes.
        ValueError: the model's task has no named classes, or ``size`` does not fit it.
    """
    if info.task != "semantic":
        raise ValueError(f"{info.name} is a model of task {info.task}: it has no named classes")
    count = len(info.classes)
    confusion = np.zeros((count, count + 1), np.int64)
    runtime = open_runtime(info, size, device)
    segmenter = FrameSegmenter(runtime)
    try:
        for pair in track(pairs, f"{info.name}", console=Console(stderr=True)):
            truth = read_label(pair.label, count, ignore)
            labels = segmenter.segment(read_image(pair.image)).labels
            assert labels is not None
            if labels.shape != truth.shape:
                height, width = truth.shape
                labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            confusion += count_pixels(truth, labels, count)
    finally:
        runtime.close()
    scores = Scores(confusion)
    return {
        "miou": round(scores.miou, 6),
        "iou": {
            item.name: None if np.isnan(iou) else round(float(iou), 6)
            for item, iou in zip(info.classes, scores.iou, strict=True)
        },
        "pixel_accuracy": round(scores.pixel_accuracy, 6),
        "class_accuracy": round(scores.class_accuracy, 6),
        "images": len(pairs),
    }


def count_pixels(
    truth: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """Pixels by [truth, label], [K, K + 1]; labels of 255 (unlabelled) in the last column.

    Both are uint8 [H, W]; where the truth is IGNORE nothing is counted.
    """
    seen = truth != IGNORE
    predicted = np.minimum(labels[seen], classes).astype(np.int64)
    pixels = truth[seen] * np.int64(classes + 1) + predicted
    return np.bincount(pixels, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _table(name: str, result: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: {result['images']} images", title_justify="left")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for item, iou in result["iou"].items():
        table.add_row(item, "-" if iou is None else f"{100 * iou:.1f}")
    table.add_section()
    table.add_row("mIoU", f"{100 * result['miou']:.2f}", style="bold")
    table.add_row("pixel accuracy", f"{100 * result['pixel_accuracy']:.2f}")
    table.add_row("class accuracy", f"{100 * result['class_accuracy']:.2f}")
    return table


def main() -> int:
    """The command. Returns 1, after one clear line, where an input is at fault."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser("labels", help="IoU against label images")
    labels.add_argument("--model", required=True, help="a name of `ctxseg models` or an .onnx file")
    labels.add_argument("--images", type=Path, required=True)
    labels.add_argument("--labels", type=Path, required=True)
    labels.add_argument("--ignore", type=int, metavar="ID", help="id of the truth to leave out")
    labels.add_argument("--size", type=parse_size, metavar="HxW", help="of the model's input")
    labels.add_argument("--device", default="auto")
    labels.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    try:
        if args.json and not args.json.absolute().parent.is_dir():
            raise DataError(f"{args.json}: its folder does not exist")
        info = load(args.model)
        pairs = pair_files(args.images, args.labels)
        result = evaluate_labels(info, pairs, args.ignore, args.size, args.device)
    except (DataError, ModelFileError, RuntimeUnavailable, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    Console().print(_table(info.name, result))
    if args.json:
        size = format_size(args.size or info.fixed_size or info.size)
        row = {"model": info.name, "size": size, "ignore": args.ignore, **result}
        report = {**row, "machine": describe(), "commit": commit()}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
