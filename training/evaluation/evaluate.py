# SPDX-License-Identifier: Apache-2.0
"""``python -m training evaluate``: score a model file on images with labels, regions or objects.

What is scored is what the node runs: the exported file, through the same runtime and resizing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctxseg_ros.command import run_command
from ctxseg_ros.inference.runtimes import PRECISIONS
from ctxseg_ros.model.model_file import format_size, parse_size
from ctxseg_ros.model.store import load
from ctxseg_ros.system.machine import commit, describe
from ctxseg_ros.system.output_files import check_writable, write_json
from training.data.bsds import pair_truths
from training.data.labelled_options import add_labelled, labelled
from training.data.pairs import pair_files
from training.evaluation.labels import evaluate_labels, labels_table
from training.evaluation.matching import MATCHES
from training.evaluation.objects import evaluate_objects, objects_table
from training.evaluation.regions import evaluate_regions, regions_table
from training.evaluation.running import RunOptions


def _labels(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    info, frames = load(args.model), labelled(args)
    result = evaluate_labels(info, frames.pairs, frames.truth, args.match, _run_options(args))
    size = format_size(args.size or info.fixed_size or info.size)
    row = {"model": info.name, "size": size, "ignore": args.ignore, **result}
    return labels_table(info.name, result), row


def _regions(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    info = load(args.model)
    pairs = pair_truths(args.images, args.segmentations)
    run = _run_options(args)
    result = evaluate_regions(info, pairs, run)
    size = run.image_size(info)
    return regions_table(info.name, result), {"model": info.name, "size": size, **result}


def _objects(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    info = load(args.model)
    pairs = pair_files(args.images, args.masks)
    run = _run_options(args)
    result = evaluate_objects(info, pairs, args.mass, run)
    size = run.image_size(info)
    return objects_table(info.name, result), {"model": info.name, "size": size, **result}


def _run_options(args: argparse.Namespace) -> RunOptions:
    return RunOptions(args.size, args.device, args.precision)


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
            check_writable(args.json)  # validated before the long run
        table, row = args.run(args)
        Console().print(table)
        if args.json:
            write_json(args.json, {**row, "machine": describe(), "commit": commit()})

    return run_command("evaluate", work)
