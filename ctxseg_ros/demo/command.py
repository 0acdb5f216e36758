# SPDX-License-Identifier: Apache-2.0
"""The demo's command line, and the order in which things happen."""

import argparse
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ctxseg_ros.command import CommandFailed, run_command
from ctxseg_ros.demo import report
from ctxseg_ros.demo.clip import bikes
from ctxseg_ros.demo.pictures import write_pictures
from ctxseg_ros.demo.run import play
from ctxseg_ros.image.source import FrameSource, SourceError
from ctxseg_ros.inference.runtimes import DEVICES, RuntimeUnavailable, check_device
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import ModelFileError
from ctxseg_ros.system.files import shown
from ctxseg_ros.system.output_files import OutputError, make_folder, write_json

LIVE_SECONDS = 20.0
_BAD_INPUT = (ModelFileError, OutputError, RuntimeUnavailable, SourceError)


@dataclass(frozen=True)
class Options:
    """What to play, how, and where to write. Rates in Hz, 0 for the source's own."""

    source: str
    model: str
    device: str
    out: Path
    rate: float
    budget_ms: float
    seconds: float | None


def run(arguments: Sequence[str]) -> int:
    """Run the demo; returns its exit code (`ctxseg_ros.command`)."""
    options = _parse(arguments)
    # A closed terminal and `kill` end the nodes too, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    return run_command("demo", lambda: _demo(options), _BAD_INPUT)


def _demo(options: Options) -> None:
    console = Console(highlight=False, emoji=False)
    _check_names(options)
    notes: list[str] = []
    source = FrameSource(options.source or bikes(), report=notes.append)
    for note in notes:  # such as what was passed over in a folder
        console.print(note, markup=False, soft_wrap=True)
    info = store.load(options.model)
    check_device(options.device)
    make_folder(options.out)
    seconds = options.seconds or (LIVE_SECONDS if source.live else math.inf)
    recording = play(
        source,
        info,
        options.out,
        device=options.device,
        rate_hz=options.rate,
        budget_ms=options.budget_ms,
        seconds=seconds,
        console=console,
    )
    result = report.summarise(recording, source, options.budget_ms)
    report.show(result, console)
    write_json(options.out / report.FILE, result)
    files = write_pictures(recording, source, info, options.out, console)
    for path in (*files, options.out / report.FILE):
        console.print(shown(path), markup=False, soft_wrap=True)
    if recording.failure:
        raise CommandFailed(recording.failure)


def _check_names(options: Options) -> None:
    """Refuse names that ROS cannot pass on to the nodes: its parameters are UTF-8."""
    for option, name, kind in (
        ("--source", options.source, SourceError),
        ("--model", options.model, ModelFileError),
    ):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise kind(
                f"{option} {shown(name)}: the name is not UTF-8, as ROS needs it; rename it"
            ) from error


def _parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="demo", description="Play a source through a camera and the segmenter, and measure."
    )
    parser.add_argument(
        "--source",
        default="",
        help="video, image, folder of images, URL, or camera index (default: a street clip)",
    )
    parser.add_argument("--model", default="segmenter_tiny", help="name or .onnx (%(default)s)")
    parser.add_argument(
        "--device", default="auto", choices=("auto", *DEVICES), help="(%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder (%(default)s)")
    parser.add_argument(
        "--rate",
        type=_rate,
        default=0.0,
        metavar="HZ",
        help="frame rate, up to 1000 (default: the source's own)",
    )
    parser.add_argument(
        "--budget-ms",
        type=_positive,
        default=100.0,
        metavar="MS",
        help="from the frame's stamp to its labels (%(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        help=f"stop after this time (default: at the end; {LIVE_SECONDS:g} for a live source)",
    )
    return Options(**vars(parser.parse_args(arguments)))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _rate(text: str) -> float:
    value = _positive(text)
    if value > 1000:
        raise argparse.ArgumentTypeError(f"{text} Hz is too fast: at most 1000")
    return value
