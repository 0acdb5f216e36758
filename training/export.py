# SPDX-License-Identifier: Apache-2.0
"""``python -m training.export CHECKPOINT --out X.onnx``: a checkpoint becomes a model file.

The file is accepted only if its labels agree with the network's on real frames. What lower
precision would change, and what it scores on labelled frames, is measured and written into it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import openvino
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ctxseg_ros.machine import commit
from ctxseg_ros.model_file import ModelFileError, read_model_info, write_metadata
from ctxseg_ros.runtimes import RuntimeUnavailable, open_runtime
from ctxseg_ros.runtimes.open_vino import OpenVinoRuntime
from training.data.files import DataError
from training.data.frames import open_frames
from training.data.pairs import pair_files
from training.evaluate import evaluate_labels
from training.systems.segmenter import SegmenterSystem
from training.systems.unet import UNetSystem
from training.systems.wnet import WNetSystem

OPSET = 18
#: Least share of pixels on which the file's labels equal the network's.
PARITY = 0.999
#: Frames that parity and precision are measured on.
FRAMES = 20
#: Smaller tensors stay in float32: they are norms and biases, and few bytes.
HALVED_FROM = 4096

#: What torch.load raises for a file that is damaged, something else, or not there.
_NOT_A_CHECKPOINT = (OSError, EOFError, RuntimeError, pickle.UnpicklingError)


System = SegmenterSystem | UNetSystem | WNetSystem
SYSTEMS: dict[str, type[System]] = {
    kind.__name__: kind for kind in (SegmenterSystem, UNetSystem, WNetSystem)
}


class ExportError(RuntimeError):
    """The exported file does not do what the network does."""


def export_graph(graph: nn.Module) -> onnx.ModelProto:
    """A deployment graph with symbolic ``height`` and ``width``, without metadata."""
    graph, stride = graph.eval(), graph.stride
    # 16:9, so that no dimension that differs from frame to frame is taken for a constant.
    example = torch.zeros(1, 9 * stride, 16 * stride, 3, dtype=torch.uint8)
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        dynamic_shapes=({1: stride * rows, 2: stride * columns},),
        input_names=["image"],
        output_names=["labels", "confidence"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _name_sizes(model.graph.input[0], {1: "height", 2: "width"})
    for output in model.graph.output:
        _name_sizes(output, {1: "height", 2: "width"})
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


def load_system(checkpoint: Path) -> tuple[System, dict[str, Any]]:
    """The system of a checkpoint, in evaluation mode, and what the run was.

    Raises:
        ExportError: the file is no checkpoint of a system that can be exported.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        run = {
            "epochs": saved["epoch"] + 1,
            "steps": saved["global_step"],
            "recipe": {k: v for k, v in saved["hyper_parameters"].items() if k[0] != "_"},
        }
        kind = SYSTEMS[saved["system"]]
        # The weights are in the checkpoint: nothing to begin from is looked for.
        untaught = {"weights": None, "pretrained": False} if kind is SegmenterSystem else {}
        system = kind.load_from_checkpoint(
            checkpoint, map_location="cpu", weights_only=True, **untaught
        )
    except (*_NOT_A_CHECKPOINT, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{checkpoint}: no checkpoint of this version: {error}") from error
    if weights := run["recipe"].get("weights"):
        run["recipe"]["weights"] = Path(weights).name
    return system.eval(), run


def network_labels(system: System, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels [H, W] that the torch network gives to a frame uint8 [H, W, 3]."""
    with torch.inference_mode():
        logits = system.logits(torch.from_numpy(frame).permute(2, 0, 1)[None])
    return logits[0].argmax(0).to(torch.uint8).numpy()


def agreement(left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]]) -> float:
    """Share of pixels on which two lists of label images agree."""
    equal = sum(int((a == b).sum()) for a, b in zip(left, right, strict=True))
    return equal / sum(a.size for a in left)


def bf16_agreement(path: Path, frames: Sequence[NDArray[np.uint8]]) -> float | None:
    """Share of pixels whose label OpenVINO's bf16 inference keeps, against its fp32.

    None on a processor without bf16: there OpenVINO would quietly compute both in fp32.
    """
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    info, model = read_model_info(path), path.read_bytes()
    size = frames[0].shape[:2]
    labels = []
    for precision in ("fp32", "bf16"):
        runtime = OpenVinoRuntime(model, info, size, precision)
        labels.append([runtime.run(frame).labels for frame in frames])
        runtime.close()
    return agreement(labels[0], labels[1])


def export(
    checkpoint: Path,
    out: Path,
    name: str,
    frames: Path,
    truth: Path | None,
    ignore: int | None = None,
    data: str | None = None,
    terms: str | None = None,
    topic: str | None = None,
    stride: int = 1,
) -> dict[str, Any]:
    """Write the model file and return its ``ctxseg.source``.

    Args:
        checkpoint: of ``python -m training fit``.
        out: the file to write; it appears only when every check has passed.
        name: of the model.
        frames: real frames to measure parity and precision on: a folder, a video or a bag.
        truth: folder of their labels, to score the file on (clusters by Hungarian matching);
            None leaves the scores out.
        ignore: id of the truth that does not count.
        data, terms: what taught the model, and the terms of that data; None: as the run says.
        topic: of the images in bags; None where a bag has only one.
        stride: decode every stride-th of the frames only; 20 are used, evenly over those.

    Raises:
        ExportError: the file's labels differ from the network's on more than 0.1 % of pixels.
        DataError: there are no frames, or frames and labels do not fit.
    """
    system, run = load_system(checkpoint)
    size = tuple(system.hparams.size)
    images = open_frames(frames, topic, stride)
    pictures = [
        cv2.resize(images[i], size[::-1], interpolation=cv2.INTER_AREA)
        for i in _spread(len(images), FRAMES)
    ]
    expected = [network_labels(system, frame) for frame in pictures]
    graph = system.graph()
    model = export_graph(graph)
    halve_weights(model)

    origin, known_terms = system.origin()
    source: dict[str, Any] = {
        "data": data or origin,
        **run,
        "commit": commit(),
        "licence": {"data": terms or known_terms, "weights": "Apache-2.0"},
    }
    draft = out.with_suffix(".part")

    def write() -> None:
        write_metadata(
            model,
            name=name,
            task=system.task,
            classes=system.class_infos(),
            stride=graph.stride,
            size=size,
            source=source,
        )
        draft.write_bytes(model.SerializeToString())

    try:
        write()
        runtime = open_runtime(read_model_info(draft), size, device="cpu")
        parity = agreement(expected, [runtime.run(frame).labels for frame in pictures])
        runtime.close()
        if parity < PARITY:
            raise ExportError(
                f"labels agree with the network on {parity:.3%} of pixels, {PARITY:.1%} is the "
                "least: the export went wrong; no file was written"
            )
        source["parity"] = {"network_label_agreement": round(parity, 6)}
        bf16 = bf16_agreement(draft, pictures)
        if bf16 is not None:
            source["precision"] = {"bf16_label_agreement": round(bf16, 6)}
        if truth is not None:
            match = "none" if system.task == "semantic" else "hungarian"
            scores = evaluate_labels(
                read_model_info(draft), pair_files(frames, truth), ignore, size, match=match
            )
            source["scores"] = {"data": "/".join(frames.absolute().parts[-3:-1]), **scores}
        write()
        read_model_info(draft)
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return source


def _spread(items: int, count: int) -> range:
    """At most ``count`` indices, evenly over ``items``."""
    return range(0, items, max(1, items // count))[:count]


def main() -> int:
    """The command. Returns 1, after one clear line, if there is no good file to write."""
    data = Path(os.environ.get("CTXSEG_DATA", "../shared/data")) / "camvid" / "val"
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--name", help="of the model (default: the stem of --out)")
    parser.add_argument(
        "--frames",
        type=Path,
        default=data / "images",
        help="real frames to check on: folder, video or bag (%(default)s)",
    )
    parser.add_argument("--topic", help="of the images in bags")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th frame")
    parser.add_argument(
        "--labels", type=Path, help="their labels, to write scores into the file (default: none)"
    )
    parser.add_argument("--ignore", type=int, metavar="ID", help="id of the labels to leave out")
    parser.add_argument("--data", metavar="TEXT", help="what taught it (default: as the run says)")
    parser.add_argument("--terms", metavar="TEXT", help="of that data (default: as the run says)")
    args = parser.parse_args()
    try:
        if not args.out.absolute().parent.is_dir():
            raise ExportError(f"{args.out}: its folder does not exist")
        source = export(
            args.checkpoint,
            args.out,
            args.name or args.out.stem,
            args.frames,
            args.labels,
            args.ignore,
            args.data,
            args.terms,
            args.topic,
            args.stride,
        )
    except (ExportError, DataError, ModelFileError, RuntimeUnavailable, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    print(f"labels agree with the network on {source['parity']['network_label_agreement']:.3%}")
    if "precision" in source:
        print(f"bf16 agrees with fp32 on {source['precision']['bf16_label_agreement']:.3%}")
    else:
        print("bf16 not measured: this processor has none, so the model will run in fp32")
    if "scores" in source:
        print(f"mIoU {source['scores']['miou']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
