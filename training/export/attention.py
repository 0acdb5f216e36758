# SPDX-License-Identifier: Apache-2.0
"""``python -m training export-attention NAME_OR_FILE --out X.onnx``: a pretrained ViT's attention.

Takes a timm name of DINO, DINOv2, DINOv3 or DeiT, whose weights are downloaded, or a file of such
weights, and writes a model file of task attention. The file is accepted only if its maps agree
with the network's.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from numpy.typing import NDArray

from ctxseg_ros.command import run_command
from ctxseg_ros.inference.runtimes.base import pattern_image
from ctxseg_ros.model.model_file import ModelInfo, parse_size
from ctxseg_ros.system.machine import commit
from training.commands import KNOWN, Provenance, checked_name
from training.data.frames import ALL_FRAMES, FrameOptions
from training.data.options import add_reading, frame_options
from training.export.checkpoint import (
    ExportError,
    export_graph,
    fitted_frames,
    halve_weights,
    network_attention,
    parity,
    report,
    write_checked,
)
from training.export.precision import bf16_change
from training.networks.deployed import AttentionGraph
from training.networks.encoder import Encoder, check_multiple
from training.networks.weights import Weights, architectures, read_weights

#: About as many pixels a side as the exported model is meant for, unless a size is asked for.
SIDE = 384


def default_size(patch: int) -> tuple[int, int]:
    """The square (height, width) nearest to SIDE that the patch divides."""
    side = round(SIDE / patch) * patch
    return side, side


def choose_architecture(weights: Weights) -> tuple[str, list[str]]:
    """The timm name that weights are most likely of, and the others that their shapes fit.

    Raises:
        ExportError: there is none.
    """
    fits = architectures(weights)
    if not fits:
        tensors = weights.tensors
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        raise ExportError(
            f"{weights.path}: a ViT of width {width}, depth {depth} and patch {patch}, which is "
            "none of DINO, DINOv2, DINOv3 and DeiT; name its timm architecture with --arch"
        )
    return fits[0], fits[1:]


def from_file(path: Path, architecture: str | None) -> tuple[Encoder, str]:
    """The encoder of a file of weights, and its timm name; both are printed.

    Its position embedding is kept at the file's own grid, so that nothing is resampled twice.

    Args:
        architecture: timm name; None takes what a checkpoint of ours says, else the likeliest.

    Raises:
        ExportError: no known architecture fits.
        ValueError: the file holds no weights, or not those of ``architecture``.
    """
    return from_weights(read_weights(path), architecture)


def from_weights(weights: Weights, architecture: str | None) -> tuple[Encoder, str]:
    """As ``from_file``, of a file that is read already."""
    others: list[str] = []
    architecture = architecture or weights.architecture
    if architecture is None:
        architecture, others = choose_architecture(weights)
    encoder = Encoder(architecture, None, weights=weights.path, last_heads=weights.last_heads)
    print(f"architecture {architecture}, {_statistics(encoder)}")
    if others:
        print(f"the shapes also fit {', '.join(others)}: if it is one of them, name it with --arch")
    return encoder, architecture


def _from_published(path: Path, architecture: str | None) -> tuple[Encoder, str]:
    """As ``from_file``. Raises ExportError for a checkpoint of ours, which is more than a ViT."""
    weights = read_weights(path)
    if weights.architecture is not None:
        raise ExportError(
            f"{path}: a checkpoint of `python -m training fit`: use `python -m training export`"
        )
    return from_weights(weights, architecture)


def from_name(name: str) -> tuple[Encoder, str]:
    """The encoder of timm's weights called ``name``, and its full name.

    Raises:
        ExportError: timm has none, or they cannot be downloaded.
    """
    _check_name(name)
    print(f"weights of {name} from timm")
    try:
        encoder = Encoder(name, None, pretrained=True)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"the weights of {name} cannot be downloaded: {reason} Without a connection, give a "
            "file of weights in place of the name"
        ) from error
    cfg = encoder.vit.pretrained_cfg
    return encoder, ".".join(filter(None, (cfg["architecture"], cfg["tag"])))


def _check_name(name: str) -> None:
    """Raises ExportError if timm has no model of this name."""
    try:
        known = timm.get_pretrained_cfg(name, allow_unregistered=False) is not None
    except RuntimeError:  # of a tag that there is not
        known = False
    if not known:
        names = ", ".join(timm.list_pretrained("vit_small*dino*"))
        raise ExportError(f"{name}: no such file, and no model of timm's; such as {names}")


def _statistics(encoder: Encoder) -> str:
    mean, std = (" ".join(f"{x:.3f}" for x in t.tolist()) for t in (encoder.mean, encoder.std))
    heads = encoder.vit.blocks[-1].attn.num_heads
    return f"{heads} heads, patch {encoder.patch}, mean {mean}, std {std}"


def export_attention(
    weights: str,
    out: Path,
    name: str,
    architecture: str | None = None,
    size: tuple[int, int] | None = None,
    frames: Path | None = None,
    options: FrameOptions = ALL_FRAMES,
    stated: Provenance = KNOWN,
) -> dict[str, Any]:
    """Write the model file and return its ``ctxseg.source``.

    Args:
        weights: a file, or a timm name.
        out: the file to write; it appears only when every check has passed.
        name: of the model.
        architecture: timm name that a file is of; None finds it by the shapes.
        size: (height, width) that the model is meant for; None: a square near SIDE.
        frames: real frames (folder, video, bag) to check on, and to measure what bf16 changes;
            None checks on a test pattern and leaves bf16 out, so that the model runs in fp32.
        options: of ``frames``.
        stated: in place of what timm says about the training data and the weights' licence.

    Raises:
        ExportError: the name is unknown, the download fails, no architecture fits, or the file is
            a checkpoint of a system.
        ParityError: the written maps differ from the network's on more than 0.1 % of patches.
        ValueError: the weights or the size do not fit the architecture.
        DataError: there are no frames.
    """
    local = Path(weights) if Path(weights).exists() else None
    if local is None and architecture is not None:
        raise ExportError(f"{weights}: no such file; --arch goes with a file only")
    encoder, found = _from_published(local, architecture) if local else from_name(weights)
    size = size or default_size(encoder.patch)
    check_multiple(size, encoder.patch)
    pictures: list[NDArray[np.uint8]] = (
        [pattern_image(size)] if frames is None else fitted_frames(frames, size, options)
    )
    graph = AttentionGraph(encoder.eval())
    expected = [network_attention(graph, picture) for picture in pictures]
    model = export_graph(graph, "attention")
    halve_weights(model)

    def check(draft: ModelInfo) -> dict[str, Any]:
        measured: dict[str, Any] = {"parity": parity(draft, pictures, expected)}
        if frames is not None and (change := bf16_change(draft, pictures)):
            measured["precision"] = change
        return measured

    # What timm says of its own weights need not hold for a file of the same shapes.
    licence = encoder.vit.pretrained_cfg.get("license") if local is None else None
    source: dict[str, Any] = {
        "data": stated.data or (f"timm's {found}" if local is None else "not known"),
        "weights": local.name if local else found,
        "architecture": found,
        "commit": commit(),
        "licence": {"weights": stated.terms or licence or "not known"},
    }
    return write_checked(
        model,
        out,
        source,
        check,
        name=name,
        task="attention",
        classes=[],
        stride=graph.stride,
        size=size,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``)."""
    parser = argparse.ArgumentParser(
        prog="python -m training export-attention", description=__doc__
    )
    parser.add_argument("weights", metavar="NAME_OR_FILE")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--arch", help="timm name that a file is of (default: by its shapes)")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help=f"it is meant for (default: the multiple of the patch nearest to {SIDE}x{SIDE})",
    )
    parser.add_argument("--name", help="of the model (default: the stem of --out)")
    parser.add_argument(
        "--frames", type=Path, help="real frames to check on (default: a test pattern, and fp32)"
    )
    add_reading(parser)
    parser.add_argument("--data", metavar="TEXT", help="what taught it")
    parser.add_argument("--terms", metavar="TEXT", help="licence of the weights")
    args = parser.parse_args(arguments)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def work() -> None:
        name = checked_name(args.out, args.name)
        source = export_attention(
            args.weights,
            args.out,
            name,
            args.arch,
            args.size,
            args.frames,
            frame_options(args),
            Provenance(args.data, args.terms),
        )
        report(args.out, source)

    return run_command("export_attention", work)
