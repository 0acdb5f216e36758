# SPDX-License-Identifier: Apache-2.0
"""``python -m training export CHECKPOINT --out X.onnx``: a checkpoint becomes a model file.

The file is accepted only if its labels or its attention agree with the network's on real frames.
What lower precision would change, and what it scores on labelled frames, is measured and written
into it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ctxseg_ros.command import CommandFailed, run_command
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import ModelInfo, read_model_info, write_metadata
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.system.machine import commit
from ctxseg_ros.system.output_files import replacing
from training.commands import KNOWN, Provenance, checked_name
from training.data.evenly import evenly
from training.data.frames import ALL_FRAMES, FrameOptions, open_frames
from training.data.ground_truth import MODEL_IDS, GroundTruth
from training.data.options import add_reading, add_stride, frame_options
from training.data.own import CLASSES_HELP, find_label_set
from training.data.pairs import pair_files
from training.export.precision import accuracy, bf16_change, label_scores, summary
from training.networks.deployed import AttentionGraph, DeployedGraph
from training.places import DATA, expanded
from training.systems.base import System
from training.systems.registry import load_system

OPSET = 18
#: Least share of pixels, or of patches, on which the file agrees with the network.
PARITY = 0.999
#: Patches agree whose attention differs by at most this share of their head's maximum.
NEAR = 0.05
#: Frames that parity and precision are measured on.
FRAMES = 20
#: Smaller tensors stay in float32: they are norms and biases, and few bytes.
HALVED_FROM = 4096


class ExportError(ValueError):
    """A checkpoint, or what was asked for, that cannot be exported."""


class ParityError(CommandFailed):
    """The exported file does not compute what the network computes."""


def export_graph(graph: DeployedGraph, task: str) -> onnx.ModelProto:
    """A task's deployment graph with symbolic ``height`` and ``width``, without metadata."""
    # Of every model it warns that it could not fold some constants.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    graph, stride = graph.eval(), graph.stride
    outputs, sizes = ["labels", "confidence"], {1: "height", 2: "width"}
    if task == "attention":
        outputs, sizes = ["attention"], {2: "rows", 3: "columns"}
    # 16:9, so that no dimension that differs from frame to frame is taken for a constant.
    example = torch.zeros(1, 9 * stride, 16 * stride, 3, dtype=torch.uint8)
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        dynamic_shapes=({1: stride * rows, 2: stride * columns},),
        input_names=["image"],
        output_names=outputs,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _name_sizes(model.graph.input[0], {1: "height", 2: "width"})
    for output in model.graph.output:
        _name_sizes(output, sizes)
    _strip(model)
    return model


def _name_sizes(value: onnx.ValueInfoProto, names: dict[int, str]) -> None:
    for axis, name in names.items():
        value.type.tensor_type.shape.dim[axis].dim_param = name


def _strip(model: onnx.ModelProto) -> None:
    """Remove what only a debugger of the exporter reads: it doubles the graph and names paths."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def halve_weights(model: onnx.ModelProto) -> None:
    """Store large float32 weights as float16, each behind a Cast that runtimes fold at loading.

    Half the file, and still float32 arithmetic. Changes ``model`` in place.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < HALVED_FROM:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def network_labels(system: System, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels [H, W] that the torch network gives to a frame uint8 [H, W, 3]."""
    with torch.inference_mode():
        logits = system.logits(torch.from_numpy(frame).permute(2, 0, 1)[None])
    return logits[0].argmax(0).to(torch.uint8).numpy()


def network_attention(graph: AttentionGraph, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Attention [heads, h, w] that the torch network gives to a frame uint8 [H, W, 3]."""
    with torch.inference_mode():
        _, attention = graph.encoder.features(torch.from_numpy(frame).permute(2, 0, 1)[None])
        attention = graph.published(attention)
    grid = [side // graph.encoder.patch for side in frame.shape[:2]]
    return attention[0].unflatten(-1, grid).numpy()


def agreement(left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]]) -> float:
    """Share of pixels on which two lists of label images agree."""
    equal = sum(int((a == b).sum()) for a, b in zip(left, right, strict=True))
    return equal / sum(a.size for a in left)


def attention_agreement(
    expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]
) -> tuple[float, float]:
    """How well lists of maps [heads, h, w] agree, by what is expected of each head.

    Returns:
        The share of patches that differ by at most NEAR of their head's maximum, and the largest
        difference as a share of it.
    """
    apart = np.concatenate(
        [
            (np.abs(a - b) / b.max((1, 2), keepdims=True)).ravel()
            for a, b in zip(found, expected, strict=True)
        ]
    )
    return float((apart <= NEAR).mean()), float(apart.max())


def compare(expected: Sequence[NDArray], found: Sequence[NDArray]) -> dict[str, float]:
    """How well two lists of labels, or of attention, agree: names and figures, a share first."""
    if expected[0].dtype == np.uint8:
        return {"label_agreement": round(agreement(expected, found), 6)}
    share, apart = attention_agreement(expected, found)
    return {"attention_agreement": round(share, 6), "attention_deviation": round(apart, 6)}


def _said(prediction: Prediction) -> NDArray:
    said = prediction.labels if prediction.attention is None else prediction.attention
    assert said is not None
    return said


def parity(
    info: ModelInfo, frames: Sequence[NDArray[np.uint8]], expected: Sequence[NDArray]
) -> dict[str, float]:
    """How well a model file agrees with the labels, or the attention, that a network gave.

    Raises:
        ParityError: on fewer than PARITY of the pixels or patches.
    """
    runtime = open_runtime(info, frames[0].shape[:2], device="cpu")
    found = compare(expected, [_said(runtime.run(frame)) for frame in frames])
    runtime.close()
    name, share = next(iter(found.items()))
    if not share >= PARITY:
        what = "pixels' labels" if name == "label_agreement" else "patches' attention"
        raise ParityError(
            f"{share:.3%} of the {what} agree with the network, {PARITY:.1%} is the least: the "
            "export went wrong; no file was written"
        )
    return {f"network_{name}": value for name, value in found.items()}


def write_checked(
    model: onnx.ModelProto,
    out: Path,
    source: dict[str, Any],
    check: Callable[[ModelInfo], dict[str, Any]],
    **metadata: Any,
) -> dict[str, Any]:
    """Write a model file that appears only when ``check`` has raised nothing about its draft.

    Args:
        source: of the file; what ``check`` returns is added to it.
        metadata: the rest of what ``write_metadata`` takes.

    Returns:
        ``ctxseg.source`` as written.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(out) as draft:

        def write() -> ModelInfo:
            write_metadata(model, source=source, **metadata)
            draft.write_bytes(model.SerializeToString())
            return read_model_info(draft)

        source |= check(write())
        write()
    return source


def fitted_frames(
    frames: Path, size: tuple[int, int], options: FrameOptions = ALL_FRAMES
) -> list[NDArray[np.uint8]]:
    """At most FRAMES real frames, evenly over those of a source, at ``size`` (height, width)."""
    images = open_frames(frames, options)
    return [
        cv2.resize(images[i], size[::-1], interpolation=cv2.INTER_AREA)
        for i in evenly(len(images), FRAMES)
    ]


def export(
    checkpoint: Path,
    out: Path,
    name: str,
    frames: Path,
    labels: Path | None = None,
    options: FrameOptions = ALL_FRAMES,
    truth: GroundTruth = MODEL_IDS,
    stated: Provenance = KNOWN,
) -> dict[str, Any]:
    """Write the model file and return its ``ctxseg.source``.

    Args:
        checkpoint: of ``python -m training fit``.
        out: the file to write; it appears only when every check has passed.
        name: of the model.
        frames: real frames to measure parity and precision on: a folder, a video or a bag.
        labels: folder of their label images, to score the file on (clusters by Hungarian
            matching); None leaves the scores out.
        options: of ``frames``; FRAMES are used, evenly over those.
        truth: how the label images are read.
        stated: in place of what the run says about its training data.

    Raises:
        ParityError: the file differs from the network on more than 0.1 % of pixels (attention:
            patches).
        CheckpointError: see ``load_system``.
        ExportError: labels are given for attention.
        DataError: there are no frames, or frames and labels do not fit.
    """
    system, run = load_system(checkpoint)
    if labels is not None and system.task == "attention":
        raise ExportError(
            f"{checkpoint}: its task is attention, which labels cannot score: leave them out and "
            "use python -m training evaluate objects"
        )
    size = tuple(system.hparams.size)
    pictures = fitted_frames(frames, size, options)
    graph = system.graph()
    if isinstance(graph, AttentionGraph):
        expected: list[NDArray] = [network_attention(graph, frame) for frame in pictures]
    else:
        expected = [network_labels(system, frame) for frame in pictures]
    model = export_graph(graph, system.task)
    halve_weights(model)

    def check(draft: ModelInfo) -> dict[str, Any]:
        found: dict[str, Any] = {"parity": parity(draft, pictures, expected)}
        if change := bf16_change(draft, pictures):
            found["precision"] = change
        if labels is not None:
            pairs = pair_files(frames, labels, options.bits)
            scores = label_scores(draft, pairs, "fp32", truth, size)
            found["scores"] = {"data": "/".join(frames.absolute().parts[-3:-1]), **scores}
            if change:
                lower = label_scores(draft, pairs, "bf16", truth, size)
                change |= accuracy("miou", scores["miou"], lower["miou"])
        return found

    origin, known_terms = system.origin()
    source: dict[str, Any] = {
        "data": stated.data or origin,
        **run,
        "commit": commit(),
        "licence": {"data": stated.terms or known_terms, "weights": "Apache-2.0"},
    }
    return write_checked(
        model,
        out,
        source,
        check,
        name=name,
        task=system.task,
        classes=system.class_infos(),
        stride=graph.stride,
        size=size,
    )


def report(out: Path, source: dict[str, Any]) -> None:
    """Print what was written and measured."""
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    figures = source["parity"]
    if "network_label_agreement" in figures:
        print(f"labels agree with the network on {figures['network_label_agreement']:.3%}")
    else:
        print(
            f"attention agrees with the network on {figures['network_attention_agreement']:.3%} "
            f"of patches, {figures['network_attention_deviation']:.3%} of the peak apart at most"
        )
    print(summary(source.get("precision", {})))
    if "scores" in source:
        print(f"mIoU {source['scores']['miou']:.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``)."""
    parser = argparse.ArgumentParser(prog="python -m training export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--name", help="of the model (default: the stem of --out)")
    parser.add_argument(
        "--frames",
        default=f"${DATA}/camvid/val/images",
        help="real frames to check on: folder, video or bag (%(default)s)",
    )
    add_reading(parser)
    add_stride(parser)
    parser.add_argument(
        "--labels", type=Path, help="their labels, to write scores into the file (default: none)"
    )
    parser.add_argument("--ignore", type=int, metavar="ID", help="id of the labels to leave out")
    parser.add_argument("--classes", metavar="FILE", help=CLASSES_HELP)
    parser.add_argument("--data", metavar="TEXT", help="what taught it (default: as the run says)")
    parser.add_argument("--terms", metavar="TEXT", help="of that data (default: as the run says)")
    args = parser.parse_args(arguments)

    def work() -> None:
        name = checked_name(args.out, args.name)
        truth = GroundTruth(args.ignore, find_label_set(args.classes) if args.classes else None)
        source = export(
            args.checkpoint,
            args.out,
            name,
            expanded(args.frames, "--frames"),
            args.labels,
            frame_options(args),
            truth,
            Provenance(args.data, args.terms),
        )
        report(args.out, source)

    return run_command("export", work)
