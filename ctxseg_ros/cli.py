# SPDX-License-Identifier: Apache-2.0
"""The `ctxseg` command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ctxseg_ros import bench
from ctxseg_ros.command import run_command
from ctxseg_ros.inference.runtimes import DEVICES, check_device
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import ModelFileError, ModelInfo, format_size, parse_size
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import check_writable, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (`ctxseg_ros.command`)."""
    options = _parser().parse_args(arguments)
    return run_command("ctxseg", lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctxseg", description="Real-time semantic segmentation: models on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the models that this package ships")
    models.set_defaults(command=_models)

    measure = commands.add_parser("bench", help="measure how fast models run on this machine")
    measure.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a name of `ctxseg models` or a path to an .onnx file (default: all shipped models)",
    )
    measure.add_argument(
        "--size",
        dest="sizes",
        nargs="+",
        action="extend",
        metavar="HxW",
        help="input size, such as 352x480 (default: the size each model was trained for)",
    )
    measure.add_argument(
        "--device",
        dest="devices",
        nargs="+",
        action="extend",
        choices=("auto", *DEVICES),
        metavar="DEVICE",
        help=f"auto, {', '.join(DEVICES)} (default: auto)",
    )
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    measure.set_defaults(command=_bench)
    return parser


def _models(options: argparse.Namespace) -> int:
    names = store.model_names()
    if not names:
        print(f"no models are shipped in {store.models_dir()}; commands take a path to an .onnx")
        return 0
    table = Table("name", "task", "classes", "size", "parameters", "mIoU", "file", box=SIMPLE_HEAD)
    for name in names:
        try:
            info = store.load(name)
        except ModelFileError as error:
            table.add_row(name, *["-"] * 5, f"damaged: {error}")
            continue
        score = info.source.get("scores", {}).get("miou")
        table.add_row(
            name,
            info.task,
            str(len(info.classes)),
            format_size(info.size),
            f"{info.parameters / 1e6:.2f} M",
            "-" if score is None else f"{score:.1%}",
            "ok",
        )
    _print(table)
    return 0


def _bench(options: argparse.Namespace) -> int:
    names = options.models or store.model_names()
    if not names:
        raise ValueError("no models are shipped: give a path to an .onnx")
    if options.json:
        check_writable(options.json)
    cases = _cases(names, options.sizes, options.devices or ["auto"])
    rows, failed = [], False
    for number, (name, size, device) in enumerate(cases, 1):
        label = f"{name} {format_size(size)} {device}"
        print(f"[{number}/{len(cases)}] {label} ...", file=sys.stderr, flush=True)
        try:
            rows.append(bench.measure(name, size, device))
        except (ValueError, RuntimeError) as error:
            print(f"ctxseg: {label}: {error}", file=sys.stderr)
            failed = True
    _print(_bench_table(rows))
    if options.json:
        result = {"machine": machine.describe(), "commit": machine.commit(), "results": rows}
        write_json(options.json, result)
    return 1 if failed else 0


def _cases(
    names: Sequence[str], sizes: Sequence[str] | None, wanted: Sequence[str]
) -> list[tuple[str, tuple[int, int], str]]:
    """Everything to measure, checked before the first measurement starts."""
    asked = [parse_size(size) for size in sizes or ()]
    infos: dict[str, ModelInfo] = {name: store.load(name) for name in names}
    for info in infos.values():
        for size in asked:
            info.check_size(size)
    for device in wanted:
        check_device(device)
    return [
        (name, size, device)
        for name, info in infos.items()
        for size in asked or [info.fixed_size or info.size]
        for device in wanted
    ]


def _print(table: Table) -> None:
    # Messages hold shapes, such as [height, width], which are no markup.
    Console(markup=False, highlight=False).print(table)


def _bench_table(rows: Sequence[dict[str, Any]]) -> Table:
    # Narrow, so that 80 columns show every figure whole.
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        caption="p50, p95, p99: latency in ms; load: s; MB: peak memory",
        caption_justify="left",
    )
    table.add_column("model", overflow="fold")
    for heading in ("device", "size"):
        table.add_column(heading, no_wrap=True)
    for heading in ("p50", "p95", "p99", "FPS", "load", "MB"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['device']} {row['precision']}",
            row["size"],
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['fps']:.1f}",
            f"{row['load_s']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
