# SPDX-License-Identifier: Apache-2.0
"""``python -m training report``: the two pictures of a model's card.

``NAME_curve.png`` shows how the run went; ``NAME_worst.png`` the ten validation frames that the
exported model gets least right, beside their truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctxseg_ros.command import run_command
from ctxseg_ros.image import render
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.store import load
from ctxseg_ros.system.output_files import make_folder, replacing
from training.data.files import DataError
from training.data.pairs import Pair, pair_files, read_label
from training.evaluation.labels import count_pixels
from training.evaluation.scores import Scores

WORST = 10

Curve = dict[int, float]


def read_curves(run: Path) -> dict[str, Curve]:
    """Scalars of a run by name and step. Later parts of a resumed run replace earlier ones.

    Raises:
        DataError: there are no TensorBoard events below ``run``.
    """
    curves: dict[str, Curve] = {}
    parts = sorted({path.parent for path in run.rglob("events.out.tfevents.*")})
    if not parts:
        raise DataError(f"{run}: no TensorBoard events in it")
    for part in parts:
        events = EventAccumulator(str(part), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            values = {e.step: e.value for e in events.Scalars(name)}
            first = min(values)
            kept = {s: v for s, v in curves.get(name, {}).items() if s < first}
            curves[name] = kept | values
    return curves


def draw_curves(curves: dict[str, Curve], classes: Sequence[str], out: Path) -> None:
    """The training loss, val mIoU, and val IoU by class, over steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    steps, loss = zip(*sorted(curves["train/loss"].items()), strict=True)
    left.plot(steps, loss, color="0.7", linewidth=0.8, label="training loss")
    width = min(20, len(loss))
    smooth = np.convolve(loss, np.ones(width) / width, "valid")
    left.plot(steps[width - 1 :], smooth, color="0.2", label="mean of 20")
    left.set(xlabel="step", ylabel="loss", ylim=(0, 1.1 * np.percentile(loss, 98)))
    twin = left.twinx()
    twin.plot(*zip(*sorted(curves["val/miou"].items()), strict=True), "C0", label="val mIoU")
    twin.set(ylabel="val mIoU", ylim=(0, 1))
    lines = [*left.get_lines(), *twin.get_lines()]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="upper right", framealpha=1)
    for i, name in enumerate(classes):
        curve = sorted(curves[f"val/iou_{name}"].items())
        right.plot(*zip(*curve, strict=True), color=plt.get_cmap("tab20")(i), label=name)
    right.set(xlabel="step", ylabel="val IoU", ylim=(0, 1))
    right.legend(bbox_to_anchor=(1, 0.5), loc="center left", frameon=False)
    with replacing(out) as draft:
        figure.savefig(draft, dpi=100)
    plt.close(figure)


def draw_worst(info: ModelInfo, pairs: Sequence[Pair], ignore: int | None, out: Path) -> None:
    """The WORST frames by their own mIoU: frame, truth and prediction, with a legend."""
    runtime = open_runtime(info)
    segmenter = Model(runtime)
    count = len(info.classes)
    scored = []
    for pair in pairs:
        image, truth = pair.rgb(), read_label(pair.label, count, ignore)
        labels = segmenter.segment(image).labels
        assert labels is not None
        if labels.shape != truth.shape:
            height, width = truth.shape
            how = cv2.INTER_NEAREST_EXACT
            labels = np.asarray(cv2.resize(labels, (width, height), interpolation=how), np.uint8)
        miou = Scores(count_pixels(truth, labels, count)).miou
        scored.append((miou, pair.image.stem, image, truth, labels))
    runtime.close()
    scored.sort(key=lambda item: item[0])
    worst = scored[:WORST]
    figure, axes = plt.subplots(
        (len(worst) + 1) // 2, 6, figsize=(15, 10.5), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (miou, stem, image, truth, labels) in enumerate(worst):
        row = axes[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        for axis, picture, title in (
            (row[0], image, stem),
            (row[1], render.colour_map(truth, info.colours), "truth"),
            (row[2], render.colour_map(labels, info.colours), f"predicted: {100 * miou:.0f} mIoU"),
        ):
            axis.imshow(picture)
            axis.set_title(title, fontsize=9)
    patches = [
        matplotlib.patches.Patch(color=(red / 255, green / 255, blue / 255), label=item.name)
        for item in info.classes
        for red, green, blue in (item.colour,)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=count, frameon=False)
    with replacing(out) as draft:
        figure.savefig(draft, dpi=80)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``)."""
    parser = argparse.ArgumentParser(prog="python -m training report", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run's logs")
    parser.add_argument("--model", required=True, help="a name of `ctxseg models` or an .onnx file")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--ignore", type=int, metavar="ID", help="id of the truth to leave out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args(arguments)
    matplotlib.use("Agg")

    def work() -> None:
        info = load(args.model)
        make_folder(args.out)
        curves = read_curves(args.run)
        draw_curves(curves, [c.name for c in info.classes], args.out / f"{info.name}_curve.png")
        pairs = pair_files(args.images, args.labels)
        draw_worst(info, pairs, args.ignore, args.out / f"{info.name}_worst.png")

    return run_command("report", work)
