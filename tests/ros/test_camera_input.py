# SPDX-License-Identifier: Apache-2.0
"""Stamps, clocks and publishers: what becomes of a camera's frames in a node of this process."""

import array
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from ctxseg_ros.ros import worker
from ctxseg_ros.ros.camera_input import CameraStream
from ctxseg_ros.ros.segmenter import SegmentNode

pytestmark = pytest.mark.slow

OK, WARN = DiagnosticStatus.OK, DiagnosticStatus.WARN


def stream(scene: Any) -> CameraStream:
    return scene.node.cameras[""][0]


def done(scene: Any) -> int:
    """Frames that were received and are labelled or dropped."""
    totals = stream(scene).counts.totals()
    return totals["labelled"] + totals["out_of_order"] + totals["stale"] + totals["queue"]


@pytest.fixture
def send(wait: Any, image_message: Any) -> Callable[..., None]:
    """send(scene, *stamps): frames with these stamps in ns, each once the one before is done."""

    def send(scene: Any, *stamps: int) -> None:
        for stamp in stamps:
            before = done(scene)
            message = image_message()
            message.header.stamp = time_of(stamp)
            scene.publishers[""].publish(message)
            wait(lambda: done(scene) == before + 1)  # noqa: B023

    return send


def collected(scene: Any, wait: Any) -> list[Image]:
    """The labels from now on."""
    labels = scene.graph.collect(Image, "/segment/labels", 500)
    wait(lambda: "labels" in scene.node.cameras[""][1].wanted())
    return labels


def reported(scene: Any) -> dict[str, str]:
    """The node's values, from a report after this call."""
    scene.graph.counts()
    return scene.graph.values()


def time_of(stamp: int) -> Time:
    return Time(sec=stamp // 10**9, nanosec=stamp % 10**9)


def stamp_of(message: Image) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def wall(offset_s: float = 0.0) -> int:
    return time.time_ns() + int(offset_s * 1e9)


# Order


def test_a_late_frame_is_dropped_and_a_new_timeline_followed_from_its_third_frame(
    scene: Any, wait: Any, send: Any
) -> None:
    made = scene()
    labels = collected(made, wait)
    seconds = [100, 101, 99, 102, 102, 10, 11, 12, 13, 14, 5, 4, 3, 15, 1, 2, 3, 4]
    send(made, *(second * 10**9 for second in seconds))
    kept = [100, 101, 102, 102, 12, 13, 14, 15, 3, 4]
    wait(lambda: len(labels) == len(kept))
    assert [message.header.stamp.sec for message in labels] == kept
    counts = made.graph.counts()
    assert counts["dropped_out_of_order"] == len(seconds) - len(kept)
    assert counts["frames_labelled"] == len(kept)
    assert "earlier stamps than a frame before" in made.graph.status().message


def test_frames_without_a_stamp_are_counted_and_labelled(scene: Any, wait: Any, send: Any) -> None:
    made = scene(max_age_ms=1000)
    labels = collected(made, wait)
    send(made, 0, wall(), 0, 0, wall())
    wait(lambda: len(labels) == 5)
    assert [message.header.stamp.sec == 0 for message in labels] == [True, False, True, True, False]
    values = reported(made)
    assert (values["unstamped"], values["frames_labelled"]) == ("3", "5")
    assert values["clock_offset_ms"] == ""


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_labels_come_in_order_with_the_header_and_the_content_of_their_frame(
    graph_with: Callable[..., Any],
    model_factory: Callable[..., Path],
    wait: Any,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    classes = 250
    graph = graph_with(model=model_factory(classes=classes), device=device)
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    images = graph.publisher(Image, "image")
    labels = graph.collect(Image, "/segment/labels", 500)
    confidence = graph.collect(Image, "/segment/confidence", 500)
    wait(lambda: {"labels", "confidence"} <= node.cameras[""][1].wanted())
    slowly = random.Random(1)

    def read(*arguments: Any) -> Any:
        time.sleep(slowly.choice([0.0, 0.002, 0.03]))
        return read_rgb(*arguments)

    read_rgb = worker.read_rgb
    monkeypatch.setattr(worker, "read_rgb", read)
    first = wall()
    shades: dict[int, int] = {}  # by stamp
    for number in range(200):
        stamp = first + number * 1000
        shades[stamp] = number + 20
        # Now and then another size than the model's.
        height, width = ((32, 48), (32, 48), (33, 31))[number % 3]
        data = np.full(height * width * 3, shades[stamp], np.uint8)
        message = Image(height=height, width=width, encoding="rgb8", step=width * 3)
        message.header.stamp = time_of(stamp)
        message.header.frame_id = f"{height}x{width}"
        message.data = array.array("B", data.tobytes())
        images.publish(message)
        time.sleep(0.003)
    for outputs in (labels, confidence):
        # The newest frame is never dropped.
        wait(lambda: outputs and stamp_of(outputs[-1]) == stamp)  # noqa: B023
        stamps = [stamp_of(item) for item in outputs]
        assert stamps == sorted(set(stamps)) and 20 < len(stamps) < 200
        for item in outputs:
            assert item.header.frame_id == f"{item.height}x{item.width}"
    steps = np.linspace(0, 765, classes + 1)[1:-1]
    for item in labels:
        assert set(item.data) == {int(np.searchsorted(steps, 3 * shades[stamp_of(item)]))}
    for item in confidence:
        assert np.ptp(item.data) == 0 and abs(item.data[0] - shades[stamp_of(item)]) <= 1
    assert graph.counts()["dropped_queue"] > 0


# The clock


@pytest.mark.parametrize("max_age_ms", [0, 500])
@pytest.mark.parametrize(("offset_s", "side"), [(3.0, "ahead of"), (-3600.0, "behind")])
def test_a_clock_that_is_off_is_said_and_ages_count_from_the_arrival(
    scene: Any, send: Any, offset_s: float, side: str, max_age_ms: int
) -> None:
    made = scene(max_age_ms=max_age_ms)
    for _ in range(15):
        send(made, wall(offset_s))
    before = reported(made)
    assert float(before["clock_offset_ms"]) == pytest.approx(-offset_s * 1e3, abs=2000)
    assert made.graph.status().level == WARN
    assert f"{side} this machine's clock" in made.graph.status().message
    for _ in range(10):
        send(made, wall(offset_s))
    values = reported(made)
    assert values["dropped_stale"] == before["dropped_stale"]
    assert int(values["frames_labelled"]) == int(before["frames_labelled"]) + 10
    for name in ("latency", "transport", "queue", "inference", "publish"):
        for point in ("p50", "p95", "p99"):
            assert 0 <= float(values[f"{name}_{point}_ms"]) < 5000


def test_a_clock_that_was_set_right_is_trusted_again(scene: Any, wait: Any, send: Any) -> None:
    made = scene()
    for _ in range(6):
        send(made, wall(0.5))
    assert stream(made).clock.offset_s is not None
    time.sleep(0.6)  # else they were older than the ones before
    for _ in range(6):
        send(made, wall())
    values = reported(made)
    assert values["clock_offset_ms"] == ""
    assert "clock" not in made.graph.status().message


def test_one_wrong_stamp_is_no_wrong_clock(scene: Any, wait: Any, send: Any) -> None:
    made = scene(max_age_ms=10000)
    send(made, *(wall() for _ in range(6)), 1, *(wall() for _ in range(6)))
    values = reported(made)
    assert values["clock_offset_ms"] == ""
    assert (values["dropped_out_of_order"], values["frames_labelled"]) == ("1", "12")


class SimulatedTime:
    """Publishes /clock: `rate` seconds a second (0: paused), `hz` times a second."""

    def __init__(self, node: Any, rate: float, hz: float) -> None:
        self._publisher = node.create_publisher(Clock, "/clock", 10)
        self._rate, self._hz = rate, hz
        self._start = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def now(self) -> int:
        return 1000 * 10**9 + int((time.monotonic() - self._start) * self._rate * 1e9)

    def _run(self) -> None:
        while not self._stopping.wait(1 / self._hz):
            self._publisher.publish(Clock(clock=time_of(self.now())))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def simulated() -> Iterator[Callable[..., SimulatedTime]]:
    """make(node, rate, hz) -> simulated time that runs until the test ends."""
    made: list[SimulatedTime] = []

    def make(*arguments: Any) -> SimulatedTime:
        made.append(SimulatedTime(*arguments))
        return made[-1]

    yield make
    for item in made:
        item.stop()


@pytest.mark.parametrize(
    ("rate", "hz"),
    # 10 Hz is Gazebo Classic's /clock, 40 Hz that of `ros2 bag play --clock`.
    [(0, 100), (1, 1000), (10, 1000), (1, 10), (10, 40)],
)
def test_simulated_time_is_followed_at_any_pace(
    scene: Any, wait: Any, send: Any, simulated: Any, rate: float, hz: float
) -> None:
    made = scene(use_sim_time="true", max_age_ms=5000)
    made.stage.costs_ms[(32, 48)] = 20.0
    clock = simulated(made.graph.node, rate, hz)
    wait(lambda: made.node.get_clock().now().nanoseconds >= 1000 * 10**9)
    for _ in range(40):
        send(made, clock.now())
        time.sleep(0.01)
        assert stream(made).clock.offset_s is None
    values = reported(made)
    assert values["frames_labelled"] == "40"
    assert values["clock_offset_ms"] == ""
    assert 15 < float(values["inference_p50_ms"]) < 150  # of real time
    assert 0 <= float(values["latency_p99_ms"]) < math.inf
    assert made.graph.status().level == OK


def test_simulated_time_that_is_missing_or_starts_late_does_no_harm(
    scene: Any, wait: Any, send: Any, simulated: Any
) -> None:
    made = scene(use_sim_time="true", max_age_ms=500)
    send(made, *(number * 10**9 for number in range(1, 13)))
    assert reported(made)["frames_labelled"] == "12"
    clock = simulated(made.graph.node, 1, 100)
    wait(lambda: made.node.get_clock().now().nanoseconds >= 1000 * 10**9)
    for _ in range(6):
        send(made, clock.now())
    values = reported(made)
    assert (values["frames_labelled"], values["clock_offset_ms"]) == ("18", "")


def test_stamps_of_real_time_under_simulated_time_are_a_clock_that_is_off(
    scene: Any, wait: Any, send: Any, simulated: Any
) -> None:
    made = scene(use_sim_time="true")
    simulated(made.graph.node, 1, 100)
    wait(lambda: made.node.get_clock().now().nanoseconds >= 1000 * 10**9)
    for _ in range(8):
        send(made, wall())
    assert float(reported(made)["clock_offset_ms"]) < -1e9
    assert made.graph.status().level == WARN
    assert "use_sim_time" in made.graph.status().message


# CameraInfo


def test_camera_info_of_another_size_is_counted_and_not_published(
    scene: Any, wait: Any, send: Any
) -> None:
    made = scene()
    infos = made.graph.publisher(CameraInfo, "camera_info")
    copies = made.graph.collect(CameraInfo, "/segment/camera_info")
    wait(lambda: "camera_info" in made.node.cameras[""][1].wanted())

    def announce(width: int, height: int) -> None:
        infos.publish(CameraInfo(width=width, height=height))
        wait(lambda: (found := stream(made).camera_info) and found.width == width)

    announce(48, 32)
    send(made, wall(), wall())
    announce(32, 48)
    send(made, wall(), wall(), wall())
    values = reported(made)
    assert (values["camera_info_mismatched"], values["frames_labelled"]) == ("3", "5")
    assert "differ in size" in made.graph.status().message
    assert made.graph.status().level == WARN
    announce(48, 32)
    send(made, wall())
    wait(lambda: len(copies) == 3)
    assert {(copy.width, copy.height) for copy in copies} == {(48, 32)}


# Publishers


def test_several_publishers_make_the_losses_unknown_and_one_known_again(
    scene: Any, wait: Any, send: Any
) -> None:
    made = scene()
    send(made, wall(), wall())
    assert reported(made)["lost_transport"] == "0"
    second = made.graph.publisher(Image, "image")
    wait(lambda: stream(made).publishers == 2)
    send(made, wall())
    assert reported(made)["lost_transport"] == "unknown"
    made.graph.node.destroy_publisher(second)
    wait(lambda: stream(made).publishers == 1)
    send(made, wall(), wall())
    assert reported(made)["lost_transport"] == "0"


def test_reliability_follows_the_publishers_and_every_one_is_heard(
    graph_with: Callable[..., Any],
    model_factory: Callable[..., Path],
    stage: Any,
    wait: Any,
    image_message: Any,
) -> None:
    graph = graph_with(model=model_factory())
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    labels = graph.collect(Image, "/segment/labels")

    def publisher(policy: ReliabilityPolicy) -> Any:
        return graph.node.create_publisher(Image, "image", QoSProfile(depth=5, reliability=policy))

    def read_as(policy: ReliabilityPolicy) -> bool:
        return node.cameras[""][0].reliability == policy

    def heard(images: Any) -> None:
        def labelled() -> bool:
            message = image_message()
            images.publish(message)
            time.sleep(0.1)
            return message.header.stamp in [item.header.stamp for item in labels]

        wait(labelled)

    reliable = publisher(ReliabilityPolicy.RELIABLE)
    heard(reliable)
    assert read_as(ReliabilityPolicy.RELIABLE)
    for _ in range(2):
        best_effort = publisher(ReliabilityPolicy.BEST_EFFORT)
        wait(lambda: read_as(ReliabilityPolicy.BEST_EFFORT))
        heard(best_effort)
        heard(reliable)
        graph.node.destroy_publisher(best_effort)
        wait(lambda: read_as(ReliabilityPolicy.RELIABLE))
        heard(reliable)
    wait(lambda: graph.status().level == OK)
    graph.counts()


def test_frames_that_stop_are_said_and_come_back(scene: Any, wait: Any, send: Any) -> None:
    made = scene()
    send(made, wall())
    wait(lambda: "no frame on /image for" in made.graph.status().message)
    assert made.graph.status().level == DiagnosticStatus.STALE
    assert "though the topic has 1 publisher" in made.graph.status().message
    made.graph.node.destroy_publisher(made.publishers[""])
    wait(lambda: "nobody publishes /image" in made.graph.status().message)
    made.publishers[""] = made.graph.publisher(Image, "image")
    send(made, wall())
    wait(lambda: made.graph.status().level == OK)


def test_publishers_that_were_never_heard_are_told_from_a_camera_that_stopped(
    graph_with: Callable[..., Any],
    model_factory: Callable[..., Path],
    stage: Any,
    wait: Any,
    image_message: Any,
) -> None:
    graph = graph_with(model=model_factory())
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    (heard, _) = node.cameras[""]
    # Not spun: a publisher that goes while an executor waits for its events would end it.
    camera = Node("camera")
    try:
        for _ in range(2):
            images = camera.create_publisher(Image, "image", 10)
            wait(lambda: heard.publishers == 1)
            assert heard.unheard and heard.same_host
            before = heard.counts.totals()["received"]
            wait(images.get_subscription_count)
            images.publish(image_message())
            wait(lambda: heard.counts.totals()["received"] > before)  # noqa: B023
            assert not heard.unheard
            camera.destroy_publisher(images)
            wait(lambda: heard.publishers == 0)
            assert not heard.unheard  # there is nobody
    finally:
        camera.destroy_node()


@pytest.mark.parametrize(
    ("transport", "published", "kind", "advice"),
    [
        ("raw", "image/compressed", CompressedImage, "image_transport:=compressed"),
        ("compressed", "image", Image, "image_transport:=raw"),
        ("raw", "image/theora", String, "image_transport republish theora raw"),
    ],
)
def test_images_that_come_another_way_are_said(
    graph_with: Callable[..., Any],
    model_factory: Callable[..., Path],
    stage: Any,
    wait: Any,
    transport: str,
    published: str,
    kind: Any,
    advice: str,
) -> None:
    graph = graph_with(model=model_factory(), image_transport=transport)
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    graph.node.create_publisher(kind, published, 1)
    wait(lambda: advice in graph.status().message)
    assert graph.status().level == DiagnosticStatus.ERROR
    assert f"/{published}" in graph.status().message
    # Nothing is to be said once the camera sends what is read as well.
    suffix, right = ("", Image) if transport == "raw" else ("/compressed", CompressedImage)
    graph.publisher(right, f"image{suffix}")
    wait(lambda: node.cameras[""][0].publishers == 1)
    wait(lambda: advice not in graph.status().message)


# Pixels


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """log() -> every line that was logged since the test began."""
    lines: list[str] = []

    def read() -> list[str]:
        lines.extend(capfd.readouterr().err.splitlines())
        return lines

    return read


def test_the_first_frame_is_logged_once_each_time_the_node_is_activated(
    scene: Any, wait: Any, send: Any, log: Callable[[], list[str]]
) -> None:
    made = scene()

    def first() -> list[str]:
        return [line for line in log() if "first frame" in line]

    for time_around in (1, 2):
        for _ in range(3):
            send(made, wall())
        wait(lambda: len(first()) == time_around)  # noqa: B023
        for part in ("/image", "48x32", "rgb8"):
            assert part in first()[-1]
        assert made.graph.transition("deactivate") and made.graph.transition("activate")
        wait(made.publishers[""].get_subscription_count)


def mono16(value: int, stamp: int) -> Image:
    values = np.full((32, 48), value, "<u2")
    message = Image(height=32, width=48, encoding="mono16", step=96)
    message.data = array.array("B", values.tobytes())
    message.header.stamp = time_of(stamp)
    return message


@pytest.mark.parametrize(("value", "bits"), [(1000, 10), (3021, 12), (16000, 14), (16384, None)])
def test_a_camera_of_fewer_than_16_bits_is_said_once(
    scene: Any, wait: Any, log: Callable[[], list[str]], value: int, bits: int | None
) -> None:
    made = scene()
    for _ in range(12):
        before = done(made)
        made.publishers[""].publish(mono16(value, wall()))
        wait(lambda: done(made) == before + 1)  # noqa: B023
    # A line that comes after it, so that there is something to wait for.
    made.node.get_logger().info("the end")
    wait(lambda: any("the end" in line for line in log()))
    found = [line for line in log() if "nearly black" in line]
    assert len(found) == (bits is not None)
    if bits is not None:
        assert str(value) in found[0] and f"set input_bits to {bits}" in found[0]


def test_parameters_tell_what_frames_do_not(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path], wait: Any
) -> None:
    """The model's confidence is the shade of what it sees."""
    graph = graph_with(model=model_factory(classes=250), device="cpu")
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    images = graph.publisher(Image, "image")
    shades = graph.collect(Image, "/segment/confidence")
    wait(lambda: "confidence" in node.cameras[""][1].wanted())

    def shade(message: Image) -> int:
        seen = len(shades)
        images.publish(message)
        wait(lambda: len(shades) > seen)
        return int(shades[-1].data[0])

    assert shade(mono16(3000, wall())) == pytest.approx(12, abs=1)
    assert graph.set("input_bits", 12)[0]
    assert shade(mono16(3000, wall())) == pytest.approx(187, abs=1)

    unnamed = mono16(3000, wall())
    unnamed.encoding = "16UC1"
    images.publish(unnamed)
    wait(lambda: "set input_encoding" in graph.status().message)
    assert graph.counts()["dropped_malformed"] == 1
    accepted, reason = graph.set("input_encoding", "8UC3")
    assert not accepted and "mono16" in reason
    assert graph.set("input_encoding", "mono16")[0]
    unnamed.header.stamp = time_of(wall())
    assert shade(unnamed) == pytest.approx(187, abs=1)
