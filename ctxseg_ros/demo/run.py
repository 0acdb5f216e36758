# SPDX-License-Identifier: Apache-2.0
"""Runs the camera and the segmenter as processes of their own, and records what they send."""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ctxseg_ros.command import CommandFailed
from ctxseg_ros.demo.recording import Recorder, Recording
from ctxseg_ros.image.source import FrameSource
from ctxseg_ros.inference.runtimes import RuntimeUnavailable
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.ros import transport
from ctxseg_ros.system.files import shown
from ctxseg_ros.system.output_files import write_bytes

READY_S = 900.0  # a TensorRT engine takes minutes to build
FIRST_FRAME_S = 60.0
REPORTS_S = 15.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class NodeProcess:
    """A node in a process of its own; what it logs goes to a file in the output folder.

    The process is in a session of its own, so that Ctrl-C reaches the demo alone, which ends its
    nodes in order; the kernel ends them if the demo is killed.
    """

    def __init__(self, name: str, namespace: str, out: Path, **parameters: object) -> None:
        """`name`: camera or segment. `parameters` of the node. Raises OutputError."""
        self.name = f"{name}_node"
        self._log = out / f"{name}.log"
        command = [sys.executable, "-m", f"ctxseg_ros.ros.{self.name}", "--ros-args"]
        command += ["-r", f"__ns:={namespace}", "--disable-external-lib-logs"]
        for key, value in parameters.items():
            # JSON is YAML, as ROS wants it, but for \u escapes beyond U+FFFF.
            text = json.dumps(value, ensure_ascii=False)
            command += ["-p", f"{key}:={text}"]
        write_bytes(self._log, b"")  # raises OutputError
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs, negative if a signal killed it."""
        return self._process.poll()

    def ended(self) -> str:
        """A sentence on how the process ended, with the last line of its log."""
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line]
        last = f": {lines[-1].strip()}" if lines else ""
        return f"{self.name} {how} (log: {shown(self._log)}){last}"

    def ask_to_end(self) -> None:
        """Send SIGINT."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Wait until the process has ended; kill it after 10 s."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def play(
    source: FrameSource,
    info: ModelInfo,
    out: Path,
    *,
    device: str,
    rate_hz: float,
    budget_ms: float,
    seconds: float,
    console: Console,
) -> Recording:
    """Start the nodes, play the source once, stop the nodes, and give what was recorded.

    Ctrl-C while frames are played ends the playing. What camera_node complains of at its end is
    the recording's `failure`.

    Args:
        rate_hz: frame rate; 0: the source's own.
        budget_ms: from a frame's stamp to its labels.
        seconds: stop so long after the first frame; may be infinite.

    Raises:
        RuntimeUnavailable: the model does not run on that device.
        CommandFailed: a node ended unasked, no frame came, or the nodes' counts do not add up.
        OutputError: a node's log cannot be written.
        KeyboardInterrupt: Ctrl-C before the first frame, or one of the other signals of ENDING.
    """
    # In this process's own environment: its participant needs the profile as the children's do.
    profile = transport.choose()
    os.environ.update(profile.variables)
    if profile.message:
        console.print(profile.message, markup=False)
    # Unique on the network: process ids are the same in many containers.
    namespace = f"/demo_{uuid.uuid4().hex}"
    rclpy.init(
        args=["--ros-args", "--disable-external-lib-logs"],
        signal_handler_options=SignalHandlerOptions.NO,
    )
    topic = "attention" if info.task == "attention" else "labels"
    recorder = Recorder(namespace, topic, source.live)
    nodes: list[NodeProcess] = []
    with _signals() as signals:
        try:
            with console.status(f"loading {escape(info.name)}"):
                segment = NodeProcess(
                    "segment", namespace, out,
                    model=str(info.path), device=device, latency_budget_ms=budget_ms,
                    input_sizes=["auto"],
                )  # fmt: skip
                nodes.append(segment)
                _wait_until_active(recorder, segment, signals)
            camera = NodeProcess(
                "camera", namespace, out,
                source=source.name, rate_hz=rate_hz, loop=False, wait_for_subscriber=True,
            )  # fmt: skip
            nodes.append(camera)
            _watch(recorder, camera, segment, source, seconds, signals, console)
            _settle(recorder, segment, signals)
            if camera.exit_code:
                recorder.recording.failure = camera.ended()
            return recorder.recording
        finally:
            for node in nodes:
                node.ask_to_end()
            for node in nodes:
                node.end()
            recorder.destroy_node()
            rclpy.shutdown()


@dataclass
class Signals:
    """What this process was asked for by signals."""

    interrupted: bool = False
    """Ctrl-C: end the playing."""
    terminated: bool = False
    """SIGTERM, or SIGHUP of a closed terminal: end everything."""


@contextmanager
def _signals() -> Iterator[Signals]:
    """Note the signals of the block, in place of raising KeyboardInterrupt amid its work."""
    signals = Signals()

    def on_signal(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signals.interrupted = True
        else:
            signals.terminated = True

    handlers = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        if handlers[number] != signal.SIG_IGN:  # as under nohup
            signal.signal(number, on_signal)
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_active(recorder: Recorder, segment: NodeProcess, signals: Signals) -> None:
    deadline = time.monotonic() + READY_S
    while recorder.recording.values("labels").get("state") != "active":
        rclpy.spin_once(recorder, timeout_sec=0.2)
        status = recorder.recording.status.get("labels")
        if status and status.level == DiagnosticStatus.ERROR:
            # What follows the cause is about a node that stays: this one is about to end.
            raise RuntimeUnavailable(status.message.partition(". Correct that")[0])
        if signals.interrupted or signals.terminated:
            raise KeyboardInterrupt
        if segment.exit_code is not None:
            raise CommandFailed(segment.ended())
        if time.monotonic() > deadline:
            raise CommandFailed(f"segment_node was not ready after {READY_S:g} s")


def _watch(
    recorder: Recorder,
    camera: NodeProcess,
    segment: NodeProcess,
    source: FrameSource,
    seconds: float,
    signals: Signals,
    console: Console,
) -> None:
    """Record until the camera has ended, the time is over, or Ctrl-C."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    recording = recorder.recording
    first_deadline = time.monotonic() + FIRST_FRAME_S
    deadline = math.inf
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task("waiting for the first frame", total=source.count)
        while camera.exit_code is None:
            rclpy.spin_once(recorder, timeout_sec=0.2)
            now = time.monotonic()
            sent, labelled = len(recording.stamps), len(recording.labels)
            if segment.exit_code is not None:
                raise CommandFailed(f"{segment.ended()}; {labelled} frames were labelled before")
            if sent and first_deadline < math.inf:
                first_deadline, deadline = math.inf, now + seconds
            if signals.terminated or (signals.interrupted and not sent):
                raise KeyboardInterrupt
            if now > first_deadline:
                raise CommandFailed(_no_frame(recording, source))
            if signals.interrupted or now > deadline:
                camera.ask_to_end()
                signals.interrupted, deadline = False, math.inf
            progress.update(
                task, completed=sent, description=f"{sent} frames sent, {labelled} labelled"
            )
    if not recording.sent:
        raise CommandFailed(camera.ended() if camera.exit_code else _no_frame(recording, source))


def _no_frame(recording: Recording, source: FrameSource) -> str:
    status = recording.status.get("frames")
    said = f"; camera_node reports: {status.message}" if status else ""
    return f"no frame of {shown(source.name)} came within {FIRST_FRAME_S:g} s{said}"


def _settle(recorder: Recorder, segment: NodeProcess, signals: Signals) -> None:
    """Wait until every frame that was received is accounted for. Raises CommandFailed."""
    recording = recorder.recording
    start = time.monotonic()
    while time.monotonic() < start + REPORTS_S:
        rclpy.spin_once(recorder, timeout_sec=0.2)
        # A report that is younger than the camera's last frame by as much as the transport takes.
        if recording.status_times["labels"] > start + 1:
            done = recording.labelled + sum(recording.dropped.values())
            # A label message that the recorder missed is missing in the video, nowhere else.
            whole = len(recording.labels) >= recording.labelled
            if recording.received == done and (whole or time.monotonic() > start + 5):
                break
        if signals.terminated:
            raise KeyboardInterrupt
        if segment.exit_code is not None:
            raise CommandFailed(segment.ended())
    else:
        raise CommandFailed(
            f"segment_node accounts for {recording.labelled} labelled and "
            f"{sum(recording.dropped.values())} dropped of {recording.received} frames"
        )
    if recording.sent < max(recording.received, len(recording.stamps)):
        raise CommandFailed(
            f"camera_node reports {recording.sent} frames sent, but {recording.received} were "
            "received: its last report is missing, or it was killed"
        )
