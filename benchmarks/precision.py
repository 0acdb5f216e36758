# SPDX-License-Identifier: Apache-2.0
"""Precision benchmark: what bf16 changes in the shipped models, on several kinds of footage.

python benchmarks/precision.py [--frames 10] [--models wnet ...]

Each model runs at its own size in fp32 and in bf16 (OpenVINO; the processor needs bf16) on frames
that are spread evenly over each footage. Of labels the share that stays is counted by the
confidence that fp32 had; of attention the maps are correlated. Where there is ground truth, both
precisions are scored on the same frames. The last column is what
``ctxseg_ros.inference.runtimes.precision.cost`` makes of the row. Accuracy does not depend on what
else the machine does, so nothing is timed here.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it sees its folder only

from benchmarks.processes import ROOT
from ctxseg_ros.command import CommandFailed, run_command
from ctxseg_ros.image.resize import resized
from ctxseg_ros.inference.runtimes import Runtime
from ctxseg_ros.inference.runtimes.precision import SURE, LabelChange, cost
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import ModelInfo, format_size
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import write_json, write_text
from training.data.bsds import pair_truths
from training.data.evenly import evenly
from training.data.files import read_image
from training.data.frames import open_frames
from training.data.ground_truth import GroundTruth
from training.data.pairs import IGNORE, Pair, pair_files
from training.evaluation.objects import evaluate_objects
from training.evaluation.regions import evaluate_regions
from training.evaluation.running import RunOptions
from training.export.precision import DEVICE, label_scores, open_both, total_change, why_no_bf16
from training.places import DATA, expanded

RESULTS = ROOT / "benchmarks" / "results"
BANDS = (0.0, 0.4, 0.5, SURE, 0.8, np.inf)  # of the confidence in fp32
REGION_FRAMES = 8  # CRF and merging take a second a frame

#: Colours of LabelMeFacade by the CamVid class that means the same; all else is left out. Doors
#: and windows are parts of buildings.
FACADE_COLOURS = {
    "sky": [(0, 128, 128)],
    "building": [(128, 0, 0), (128, 128, 0), (0, 0, 128)],
    "road": [(128, 64, 0)],
    "pavement": [(128, 128, 128)],
    "tree": [(0, 128, 0)],
    "car": [(128, 0, 128)],
}
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree")
CAMVID += ("sign", "fence", "car", "pedestrian", "bicyclist")
CAMVID_VOID = 11

Scores = dict[str, float]
#: scorer(data, info, count, precision): scores by name on `count` frames below the folder `data`
Scorer = Callable[[Path, ModelInfo, int, str], Scores]


@dataclass(frozen=True, eq=False)
class Footage:
    """Frames below the folder of the data sets; where they have ground truth, a scorer by task."""

    name: str
    frames: str
    scorers: dict[str, Scorer]


def chosen(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` of the pairs, evenly spread."""
    return [pairs[i] for i in evenly(len(pairs), count)]


def camvid(data: Path, info: ModelInfo, count: int, precision: str) -> Scores:
    """mIoU over the 11 classes; clusters by Hungarian matching."""
    root = data / "camvid" / "val"
    pairs = chosen(pair_files(root / "images", root / "labels"), count)
    return {"mIoU": label_scores(info, pairs, precision, GroundTruth(CAMVID_VOID))["miou"]}


def facades(data: Path, info: ModelInfo, count: int, precision: str) -> Scores:
    """mIoU over the six classes that CamVid and LabelMeFacade share."""
    root = data / "labelmefacade"
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for pair in chosen(pair_files(root / "images", root / "labels"), count):
            label = Path(folder) / pair.label.name
            cv2.imwrite(str(label), camvid_ids(read_image(pair.label)))
            pairs.append(Pair(pair.image, label))
        iou = label_scores(info, pairs, precision)["iou"]
    if info.task == "semantic":
        iou = {name: iou[name] for name in FACADE_COLOURS}
    return {"mIoU of 6": float(np.mean(list(iou.values())))}


def camvid_ids(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask of LabelMeFacade, uint8 [H, W, 3] RGB, as CamVid's ids, IGNORE where it has none."""
    ids = np.full(colours.shape[:2], IGNORE, np.uint8)
    for name, members in FACADE_COLOURS.items():
        for colour in members:
            ids[(colours == colour).all(-1)] = CAMVID.index(name)
    return ids


def regions(data: Path, info: ModelInfo, count: int, precision: str) -> Scores:
    """Covering at one level for all images: the clusters as they are, and merged."""
    root = data / "bsds500" / "val"
    pairs = pair_truths(root / "images", root / "groundTruth")
    pairs = chosen(pairs, min(count, REGION_FRAMES))
    found = evaluate_regions(info, pairs, RunOptions(None, DEVICE, precision))
    return {
        "covering": found["plain"]["covering"]["ods"],
        "covering merged": found["merged"]["covering"]["ods"],
    }


def objects(data: Path, info: ModelInfo, count: int, precision: str) -> Scores:
    """Jaccard of the mean of the heads at a mass of 0.6, each frame at its own shape."""
    root = data / "davis_dev"
    pairs = chosen(pair_files(root / "images", root / "masks"), count)
    found = evaluate_objects(info, pairs, run=RunOptions(None, DEVICE, precision))
    return {"Jaccard": found["jaccard_mean"]}


FOOTAGE = (
    Footage("CamVid val", "camvid/val/images", {"semantic": camvid, "clusters": camvid}),
    Footage("LabelMeFacade", "labelmefacade/images", {"semantic": facades, "clusters": facades}),
    Footage("BSDS500 val", "bsds500/val/images", {"clusters": regions}),
    Footage("DAVIS", "davis_dev/images", {"attention": objects}),
    Footage("motorway, clip 960x540", "clips/highway_960x540.mp4", {}),
    Footage("motorway, clip 1280x720", "clips/highway_1280x720.mp4", {}),
    Footage("suburb, drive.ai", "streets/driveai", {}),
    Footage("motorway, Udacity", "streets/udacity", {}),
    Footage("Berlin and Lund, Mapillary", "streets/opensfm", {}),
    Footage("robot car, Donkeycar", "donkeycar/tub/images", {}),
)


def compare(
    fp32: Runtime,
    bf16: Runtime,
    footage: Footage,
    frames: Sequence[NDArray[np.uint8]],
    data: Path,
) -> dict[str, Any]:
    """One row: what bf16 changes on `frames` of the footage; as many are scored, if it has labels.

    `data`: the folder of the data sets.
    """
    info = fp32.info
    change = total_change(fp32, bf16, [resized(frame, fp32.size) for frame in frames])
    row: dict[str, Any] = {
        "model": info.name,
        "task": info.task,
        "size": format_size(fp32.size),
        "footage": footage.name,
        "frames": len(frames),
    }
    if isinstance(change, LabelChange):
        row |= change.measured() | {"bands": bands(change)}
    else:
        row["map_correlation"] = round(min(change), 6)
        row["mean_correlation"] = round(float(np.mean(change)), 6)
    measured = dict(row)
    if scorer := footage.scorers.get(info.task):
        full, lower = (scorer(data, info, len(frames), precision) for precision in ("fp32", "bf16"))
        row["scores"] = {name: {"fp32": full[name], "bf16": lower[name]} for name in full}
        name = max(full, key=lambda name: full[name] - lower[name])  # what suffers most
        measured |= {"fp32_score": full[name], "score": lower[name]}
    row["reason"] = cost(measured, info.task, "bf16")
    return row


def load_frames(data: Path, footage: Footage, count: int) -> list[NDArray[np.uint8]]:
    """At most `count` frames of a footage, evenly spread."""
    frames = open_frames(data / footage.frames)
    return [frames[i] for i in evenly(len(frames), count)]


def bands(change: LabelChange) -> list[dict[str, float | None]]:
    """For each band of confidence: its share of the pixels, and the share of it that changed."""
    found: list[dict[str, float | None]] = []
    confidence = np.arange(256) / 255
    for least, below in pairwise(BANDS):
        pixels = change.pixels[(confidence >= least) & (confidence < below)].sum()
        found.append(
            {
                "from": least,
                "to": min(below, 1.0),
                "share": round(float(pixels / change.pixels.sum()), 6),
                "changed": round(1 - change.agreement(least, below), 6) if pixels else None,
            }
        )
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    edges = [f"{least:g}-{min(below, 1):g}" for least, below in pairwise(BANDS)]
    labels = [row for row in rows if "bands" in row]
    maps = [row for row in rows if "bands" not in row]
    lines = []
    if labels:
        heads = ["model", "footage", "labels kept %", "95 % of changed below"]
        heads += [f"changed % at {edge}" for edge in edges]
        heads += ["score % fp32 / bf16", "bf16"]
        lines += ["| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 3) + "---|"]
    for row in labels:
        cells = [row["model"], row["footage"], f"{100 * row['label_agreement']:.2f}"]
        cells.append(f"{row['changed_confidence']:.2f}")
        for band in row["bands"]:
            cells.append("-" if band["changed"] is None else f"{100 * band['changed']:.3f}")
        cells += [score_cell(row), "no" if row["reason"] else "yes"]
        lines.append("| " + " | ".join(cells) + " |")
    if maps:
        lines += ["", "| model | footage | correlation of maps: mean | least | score % | bf16 |"]
        lines.append("|---|---|--:|--:|--:|---|")
    for row in maps:
        cells = [row["model"], row["footage"], f"{row['mean_correlation']:.5f}"]
        cells += [f"{row['map_correlation']:.5f}", score_cell(row)]
        cells.append("no" if row["reason"] else "yes")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def score_cell(row: dict[str, Any]) -> str:
    """The scores of a row in words; empty without ground truth."""
    return ", ".join(
        f"{name} {100 * pair['fp32']:.2f} / {100 * pair['bf16']:.2f}"
        for name, pair in row.get("scores", {}).items()
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10, help="of each footage (%(default)s)")
    parser.add_argument("--models", nargs="+", default=store.model_names())
    parser.add_argument(
        "--data", default=f"${DATA}", help="the folder of the data sets (%(default)s)"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "precision.json")
    options = parser.parse_args(arguments)
    return run_command("precision", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    data = expanded(options.data, "--data")
    if reason := why_no_bf16():
        raise CommandFailed(f"bf16 cannot be measured here: {reason}")
    start, console, rows = machine.commit(), Console(), []
    frames = {footage: load_frames(data, footage, options.frames) for footage in FOOTAGE}
    for model in options.models:
        fp32, bf16 = open_both(store.load(model))
        for footage in FOOTAGE:
            rows.append(compare(fp32, bf16, footage, frames[footage], data))
            console.print(rows[-1], soft_wrap=True)
        fp32.close()
        bf16.close()
    write_json(
        options.json,
        {"machine": machine.describe(), "commit": start, "results": rows},
    )
    write_text(options.json.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    sys.exit(main())
