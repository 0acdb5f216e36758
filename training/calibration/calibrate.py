# SPDX-License-Identifier: Apache-2.0
"""``python -m training calibrate --model X.onnx --images D --labels D --out Y.onnx``.

Makes the confidence of a semantic model file a probability: of the pixels with a confidence of 0.8,
80 % should be right. The temperature of its softmax is fitted to frames that the network was
not trained on; a class gets one of its own where cross-validation over frames shows that it pays.
It goes into the graph; the labels stay as they are. ``ctxseg.source`` of the new file has the entry
``calibration``: the ``temperature``, those ``by_class``, the ``data`` with the expected calibration
error ``before``, ``after`` and ``held_out`` (on frames that the temperature was not fitted to), and
the recommended ``min_confidence`` with what it buys. Each --images begins a data set, to which the
options behind it belong; each set weighs the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctxseg_ros.command import run_command
from ctxseg_ros.image.resize import resized
from ctxseg_ros.model.model_file import ModelFileError, ModelInfo, read_model_info, write_metadata
from ctxseg_ros.model.store import load
from ctxseg_ros.system.machine import commit
from ctxseg_ros.system.output_files import check_writable, write_bytes
from training.calibration.temperature import (
    FOLDS,
    LogitSet,
    classes_that_pay,
    fit_temperature,
    held_out_confidence,
)
from training.commands import checked_name, counted
from training.data.evenly import evenly
from training.data.files import DataError
from training.data.label_files import IGNORE
from training.data.labelled_options import Labelled, add_labelled, labelled_sets
from training.evaluation.labels import score_frames
from training.evaluation.reliability import Reliability, recommended
from training.evaluation.reliability_picture import draw_reliability
from training.evaluation.running import RunOptions
from training.evaluation.truth import Truth, truth_for
from training.export.checkpoint import FRAMES
from training.export.graph_logits import graph_end, remove_temperature, set_temperature
from training.export.precision import bf16_change, summary

#: Pixels of a frame that the temperature is fitted to: neighbours say nearly the same.
PIXELS = 2000


def read_logits(
    model: onnx.ModelProto, info: ModelInfo, frames: Labelled, truth: Truth
) -> LogitSet:
    """Logits of PIXELS random pixels of each frame, at the model's size.

    Frames without a pixel that counts are left out.

    Raises:
        ModelFileError: the graph has no logits. DataError: a file cannot be used, or fewer than
            FOLDS frames are left.
    """
    end = graph_end(model)
    if end is None:
        raise ModelFileError(
            f"{info.path}: its graph does not end in a softmax over logits, so there is no "
            "temperature to fit. Networks that training.export.checkpoint wrote can be calibrated"
        )
    height, width = info.fixed_size or info.size
    session = _session(model, end.logits)
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.uint8]] = []
    numbers: list[NDArray[np.int64]] = []
    console = Console(stderr=True)
    for pair in track(frames.pairs, f"logits of {frames.name}", console=console):
        image, expected = pair.rgb(), truth.read(pair.label)
        nearest = cv2.INTER_NEAREST_EXACT
        expected = cv2.resize(expected, (width, height), interpolation=nearest).ravel()
        counting = np.flatnonzero(expected != IGNORE)
        if not len(counting):
            continue
        rng = np.random.default_rng(len(logits))
        chosen = rng.choice(counting, min(PIXELS, len(counting)), replace=False)
        (found,) = session.run([end.logits], {"image": resized(image, (height, width))[None]})
        logits.append(found[0].reshape(height * width, -1)[chosen])
        labels.append(expected[chosen])
        numbers.append(np.full(len(chosen), len(numbers)))
    if len(numbers) < FOLDS:
        raise DataError(
            f"{frames.name}: {counted(len(numbers), 'frame')} with a label that counts; "
            f"cross-validation needs at least {FOLDS} of each data set"
        )
    return LogitSet(
        np.concatenate(logits), np.concatenate(labels), np.concatenate(numbers), truth.members
    )


def _session(model: onnx.ModelProto, output: str) -> onnxruntime.InferenceSession:
    """The graph with an inner tensor, float [1, H, W, K], as an output too."""
    wider = onnx.ModelProto.FromString(model.SerializeToString())
    value = onnx.helper.make_tensor_value_info(
        output, onnx.TensorProto.FLOAT, [1, None, None, None]
    )
    wider.graph.output.append(value)
    return onnxruntime.InferenceSession(
        wider.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def calibrate(
    info: ModelInfo, sets: Sequence[Labelled], out: Path, device: str = "auto"
) -> tuple[ModelInfo, dict[str, tuple[Reliability, Reliability]]]:
    """Write the calibrated model file.

    A file that was calibrated before is calibrated anew: the old temperature is taken out first.

    Args:
        info: a semantic model. sets: each with frames that it was not trained on.
        out: the file to write, in the place of any that is there.
        device: to measure on, see ``ctxseg_ros.inference.runtimes.open_runtime``.

    Returns:
        What was written, and by name of a set its reliability before and after.

    Raises:
        ValueError: the model is not a semantic one, or the options of a set do not fit together.
        ModelFileError, DataError: see ``read_logits``. OutputError: the file cannot be written.
    """
    if info.task != "semantic":
        raise ValueError(
            f"{info.name} is a model of task {info.task}: only the confidence of a semantic one "
            "can be compared with labels"
        )
    truths = [truth_for(info, each.truth) for each in sets]
    model = onnx.load(info.path)
    remove_temperature(model)
    logits = [read_logits(model, info, *both) for both in zip(sets, truths, strict=True)]
    own = classes_that_pay(logits)
    fit = fit_temperature(logits, own)

    def written(path: Path, source: dict[str, Any]) -> ModelInfo:
        write_metadata(
            model,
            name=info.name,
            task=info.task,
            classes=info.classes,
            stride=info.stride,
            size=info.size,
            source=source,
        )
        write_bytes(path, model.SerializeToString())
        return read_model_info(path)

    def measured(draft: ModelInfo) -> list[Reliability]:
        return [
            score_frames(draft, each.pairs, truth, RunOptions(None, device, "fp32"))[1]
            for each, truth in zip(sets, truths, strict=True)
        ]

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        before = measured(written(draft, info.source))
        set_temperature(model, fit.temperature(len(info.classes)))
        calibrated = written(draft, info.source)
        after = measured(calibrated)
        precision = _precision(calibrated, sets)
    held_out = [
        Reliability.count(confidence, part.right())
        for part, confidence in zip(logits, held_out_confidence(logits, own), strict=True)
    ]
    titles, least = _titles(sets), recommended(after)
    rows = [
        {
            "data": title,
            "frames": len(each.pairs),
            "ece": {"before": old.ece, "after": new.ece, "held_out": held.ece},
            "at_min_confidence": new.at(least),
        }
        for title, each, old, new, held in zip(titles, sets, before, after, held_out, strict=True)
    ]
    entry = {
        "temperature": round(fit.shared, 4),
        "by_class": {info.classes[k].name: round(t, 4) for k, t in fit.own.items()},
        "min_confidence": least,
        "data": rows,
        "commit": commit(),
    }
    written_info = written(out, {**info.source, **precision, "calibration": entry})
    return written_info, dict(zip(titles, zip(before, after, strict=True), strict=True))


def _precision(info: ModelInfo, sets: Sequence[Labelled]) -> dict[str, Any]:
    """``precision`` of ``ctxseg.source`` for the calibrated file; nothing if it had none.

    What bf16 changes is judged by the confidence, so it is measured again. Scores hold: they are
    of labels.
    """
    if "precision" not in info.source:
        return {}
    pairs = [pair for each in sets for pair in each.pairs]
    size = info.fixed_size or info.size
    frames = [resized(pairs[i].rgb(), size) for i in evenly(len(pairs), FRAMES)]
    change = bf16_change(info, frames)
    scores = {key: value for key, value in info.source["precision"].items() if "score" in key}
    return {"precision": {**change, **scores} if change else {}}


def _titles(sets: Sequence[Labelled]) -> list[str]:
    """The names of the sets, numbered where several have the same."""
    names = [each.name for each in sets]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _table(info: ModelInfo) -> Table:
    entry = info.source["calibration"]
    temperatures = [f"{entry['temperature']:.3f}"]
    temperatures += [f"{name} {value:.3f}" for name, value in entry["by_class"].items()]
    table = Table(
        title=f"{info.name}: temperature {', '.join(temperatures)}",
        title_justify="left",
        caption=f"min_confidence {entry['min_confidence']:g} is recommended",
        caption_justify="left",
    )
    table.add_column("expected calibration error %")
    for heading in ("frames", "before", "after", "held out", "labelled %", "of these right %"):
        table.add_column(heading, justify="right")
    for row in entry["data"]:
        kept = row["at_min_confidence"]
        figures = [*row["ece"].values(), kept["labelled"], kept["accuracy"]]
        table.add_row(
            row["data"],
            str(row["frames"]),
            *("-" if value is None else f"{100 * value:.2f}" for value in figures),
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training calibrate", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="a name of `ctxseg models` or an .onnx file")
    add("--out", type=Path, required=True, help="the .onnx file to write")
    add_labelled(parser)
    add("--device", default="auto")
    add("--picture", type=Path, metavar="FILE", help="reliability before and after, .png")
    return parser


def _work(args: argparse.Namespace, given: Sequence[str]) -> None:
    info = load(args.model)
    checked_name(args.out, info.name)
    if args.picture:
        check_writable(args.picture)
    sets = labelled_sets(_parser(), given)
    info, reliability = calibrate(info, sets, args.out, args.device)
    Console().print(_table(info))
    if "precision" in info.source:
        print(summary(info.source["precision"]))
    if args.picture:
        draw_reliability(info.name, reliability, args.picture)


def main(args: Sequence[str] | None = None) -> int:
    """The command; exit codes as of ``ctxseg_ros.command.run_command``."""
    given = sys.argv[1:] if args is None else list(args)
    parsed = _parser().parse_args(given)
    return run_command("calibrate", lambda: _work(parsed, given))


if __name__ == "__main__":
    sys.exit(main())
