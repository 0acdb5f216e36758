# SPDX-License-Identifier: Apache-2.0
"""``python -m training record-precision X.onnx --frames F``: what bf16 changes, into the file.

OpenVINO runs a model in bf16 only if its file records that this costs no accuracy. The export
records it where the processor has bf16; this command does so for a file that was made elsewhere.
Nothing but the record changes in the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import onnx

from ctxseg_ros.command import CommandFailed, run_command
from ctxseg_ros.inference.runtimes.precision import cost, recorded
from ctxseg_ros.model.model_file import ModelInfo, read_model_info, write_metadata
from ctxseg_ros.system.output_files import check_writable, write_bytes
from training.data.frames import ALL_FRAMES, FrameOptions
from training.data.ground_truth import MODEL_IDS, GroundTruth
from training.data.options import add_reading, add_stride, frame_options
from training.data.pairs import pair_files
from training.evaluation.objects import evaluate_objects
from training.evaluation.running import RunOptions
from training.export.checkpoint import fitted_frames
from training.export.precision import (
    DEVICE,
    accuracy,
    bf16_change,
    label_scores,
    summary,
    why_no_bf16,
)


def measured(
    info: ModelInfo,
    frames: Path,
    labels: Path | None = None,
    truth: GroundTruth = MODEL_IDS,
    options: FrameOptions = ALL_FRAMES,
) -> dict[str, object]:
    """The entries of ``training.export.precision`` for a model file.

    Args:
        info: the model.
        frames: a folder, a video or a bag.
        labels: folder of their label images; for task attention, of the masks of objects.
        truth: how label images are read.
        options: of ``frames``; the stride holds for those with ground truth too.

    Raises:
        CommandFailed: the processor has no bf16.
        DataError: there are no frames, or frames and ground truth do not fit.
    """
    if reason := why_no_bf16():
        raise CommandFailed(f"bf16 cannot be measured here: {reason}")
    size = info.fixed_size or info.size
    entries = bf16_change(info, fitted_frames(frames, size, options))
    if labels is None:
        return entries
    pairs = pair_files(frames, labels)[:: options.stride]
    scores = {}
    for precision in ("fp32", "bf16"):
        if info.task == "attention":
            name = "jaccard_mean"
            found = evaluate_objects(info, pairs, run=RunOptions(None, DEVICE, precision))
        else:
            name = "miou"
            found = label_scores(info, pairs, precision, truth, size)
        scores[precision] = found[name]
    return entries | accuracy(name, scores["fp32"], scores["bf16"])


def record(info: ModelInfo, entries: dict[str, object]) -> ModelInfo:
    """Write ``entries`` into the model's file as its record, and return what the file is then."""
    model = onnx.load(info.path)
    write_metadata(
        model,
        name=info.name,
        task=info.task,
        classes=info.classes,
        stride=info.stride,
        size=info.size,
        source={**info.source, "precision": entries},
    )
    write_bytes(info.path, model.SerializeToString())
    return read_model_info(info.path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see ``ctxseg_ros.command`` for the exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m training record-precision", description=__doc__
    )
    parser.add_argument("model", type=Path, help="the .onnx file; its record is replaced")
    parser.add_argument("--frames", type=Path, required=True, help="folder, video or bag")
    add_reading(parser)
    add_stride(parser)
    parser.add_argument(
        "--truth", type=Path, help="label images of the frames, or masks for attention"
    )
    parser.add_argument("--ignore", type=int, metavar="ID", help="id of the labels to leave out")
    args = parser.parse_args(arguments)

    def work() -> None:
        info = read_model_info(args.model)
        check_writable(args.model)
        truth = GroundTruth(args.ignore)
        entries = measured(info, args.frames, args.truth, truth, frame_options(args))
        print(summary(entries))
        info = record(info, entries)
        if reason := cost(recorded(info), info.task, "bf16"):
            print(f"{args.model}: OpenVINO will run it in fp32, because {reason}")
        else:
            print(f"{args.model}: OpenVINO will run it in bf16 where that is faster")

    return run_command("record_precision", work)
