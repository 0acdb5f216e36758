# SPDX-License-Identifier: Apache-2.0
"""A device that fails, a camera that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from ctxseg_ros.realtime import recovery

pytestmark = pytest.mark.slow


@pytest.fixture
def playing(wait: Any, image_message: Any) -> Callable[..., None]:
    """until(scene, condition): send frames until the condition holds."""

    def until(scene: Any, condition: Callable[[], bool]) -> None:
        def done() -> bool:
            scene.publishers[""].publish(image_message())
            time.sleep(0.05)
            return condition()

        wait(done)

    return until


@pytest.fixture
def labelled(playing: Any) -> Callable[..., None]:
    """label(scene, count): send frames until so many more are labelled."""

    def label(scene: Any, count: int) -> None:
        counts = scene.node.cameras[""][0].counts
        goal = counts.totals()["labelled"] + count
        playing(scene, lambda: counts.totals()["labelled"] >= goal)

    return label


def test_a_fault_is_counted_and_the_model_opened_again(
    scene: Any, wait: Any, image_message: Any, playing: Any
) -> None:
    made = scene()
    made.stage.errors["cpu"] = RuntimeError("the GPU is lost")
    made.publishers[""].publish(image_message())
    wait(lambda: made.graph.counts()["dropped_inference_error"] == 1)
    wait(lambda: "the GPU is lost" in made.graph.status().message)
    assert made.graph.status().level == DiagnosticStatus.ERROR
    wait(lambda: len(made.stage.opened) == 2)
    assert made.stage.opened[0].closed  # before the other one was opened
    made.stage.errors.clear()
    playing(made, lambda: made.graph.status().level == DiagnosticStatus.OK)
    assert [runtime.device for runtime in made.stage.opened] == ["cpu", "cpu"]


def test_a_device_that_keeps_failing_is_left_for_the_next_one_and_that_is_said(
    scene: Any, wait: Any, labelled: Any, playing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RETRIES_S", (0.0, 0.1))
    made = scene(device="openvino")
    made.stage.errors["openvino"] = RuntimeError("out of memory")
    labelled(made, 3)
    devices = [runtime.device for runtime in made.stage.opened]
    assert devices == ["openvino"] * 3 + ["cpu"]
    assert made.graph.counts()["dropped_inference_error"] == 3
    playing(made, lambda: made.graph.status().level == DiagnosticStatus.WARN)
    assert "it runs on cpu instead of openvino" in made.graph.status().message
    values = made.graph.values()
    assert values["device"] == "cpu" and "out of memory" in values["device_reason"]
    # Asked for again once it is mended, it is left alone no more.
    made.stage.errors.clear()
    assert made.graph.set("device", "openvino")[0]
    wait(lambda: made.graph.values()["device"] == "openvino")
    playing(made, lambda: made.graph.status().level == DiagnosticStatus.OK)


def test_what_does_not_open_again_is_tried_until_it_does(
    scene: Any, wait: Any, image_message: Any, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RETRIES_S", (0.0, 0.1))
    monkeypatch.setattr(recovery, "LAST_RESORT_S", 0.2)
    made = scene()
    for device in ("cpu", "openvino"):
        made.stage.errors[device] = RuntimeError("the GPU is lost")
        made.stage.open_errors[device] = RuntimeError("no device")
    made.publishers[""].publish(image_message())
    wait(lambda: made.graph.status().level == DiagnosticStatus.ERROR)
    wait(lambda: "does not open on" in made.graph.status().message)
    assert made.graph.state() == "active"
    made.stage.open_errors.clear()
    made.stage.errors.clear()
    labelled(made, 1)


def test_deactivate_does_not_wait_for_the_next_attempt(
    scene: Any, wait: Any, image_message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RETRIES_S", (600.0,))
    made = scene()
    made.stage.errors["cpu"] = RuntimeError("the GPU is lost")
    made.publishers[""].publish(image_message())
    wait(lambda: made.graph.counts()["dropped_inference_error"] == 1)
    assert made.graph.transition("deactivate") and made.graph.transition("cleanup")
    made.stage.errors.clear()
    assert made.graph.transition("configure") and made.graph.transition("activate")


def test_another_model_ends_the_attempts_with_the_old_one(
    scene: Any, wait: Any, image_message: Any, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RETRIES_S", (600.0,))
    made = scene()
    made.stage.errors["cpu"] = RuntimeError("the GPU is lost")
    made.publishers[""].publish(image_message())
    wait(lambda: made.graph.counts()["dropped_inference_error"] == 1)
    assert made.graph.set("device", "openvino")[0]
    labelled(made, 1)
    assert [runtime.device for runtime in made.stage.opened] == ["cpu", "openvino"]


CAMERA = """
import sys, time, rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
width, height, encoding, channels, reliability = sys.argv[1:]
rclpy.init()
node = Node("camera_" + encoding)
profile = QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability])
publisher = node.create_publisher(Image, "image", profile)
image = Image(width=int(width), height=int(height), encoding=encoding)
image.step = image.width * int(channels)
image.data = bytes(image.step * image.height)
while True:
    image.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(image)
    time.sleep(1 / 30)
"""


def test_output_resumes_when_a_killed_camera_comes_back_with_another_size_and_encoding(
    graph: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    labels = graph.collect(Image, "/segment/labels")
    environment = os.environ | {"ROS_DOMAIN_ID": str(graph.domain)}
    cameras = [
        (48, 32, "rgb8", 3, "RELIABLE"),
        (120, 90, "yuv422_yuy2", 2, "BEST_EFFORT"),
        (200, 77, "mono8", 1, "RELIABLE"),
    ]
    for camera in cameras:
        command = [sys.executable, "-c", CAMERA, *(str(word) for word in camera)]
        process = subprocess.Popen(command, env=environment)
        try:
            size = camera[:2]
            wait(lambda: labels and (labels[-1].width, labels[-1].height) == size)  # noqa: B023
            assert labels[-1].header.stamp.sec > 0
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    assert graph.state() == "active"
    # Each frame before the last kill was labelled, or is counted with its cause.
    graph.counts()


def test_after_a_fallback_other_parameters_leave_the_failed_device_alone(
    scene: Any,
    wait: Any,
    playing: Any,
    labelled: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "RETRIES_S", (0.0,))
    made = scene(device="openvino")
    made.stage.errors["openvino"] = RuntimeError("lost")
    made.stage.open_errors["openvino"] = RuntimeError("gone")
    labelled(made, 1)
    groups = tmp_path / "groups.yaml"
    groups.write_text("groups:\n- {name: all, colour: [9, 8, 7], classes: rest}\n")
    assert made.graph.set("label_groups", str(groups)) == (True, "")
    assert made.graph.set("input_sizes", ["64x96"]) == (True, "")
    labelled(made, 1)
    assert made.stage.opened[-1].device == "cpu" and made.stage.opened[-1].size == (64, 96)
    playing(made, lambda: "instead of openvino" in made.graph.status().message)
    good, reason = made.graph.set("device", "openvino")
    assert not good and "gone" in reason
    labelled(made, 1)


def test_what_is_opened_again_is_what_was_open(
    scene: Any, wait: Any, image_message: Any, labelled: Any, tmp_path: Path
) -> None:
    groups = tmp_path / "groups.yaml"
    text = "groups:\n- {name: %s, colour: [9, 8, 7], classes: rest}\n"
    groups.write_text(text % "one")
    made = scene(label_groups=str(groups))
    groups.write_text(text % "two")
    made.stage.errors["cpu"] = RuntimeError("lost")
    made.publishers[""].publish(image_message())
    wait(lambda: len(made.stage.opened) == 2)
    made.stage.errors.clear()
    labelled(made, 1)
    wait(lambda: made.graph.values()["classes"] == "0 one #090807")
    assert made.graph.get("class_names") == ["one"]


def test_a_session_that_cannot_even_be_closed_does_not_end_the_worker(
    scene: Any, playing: Any, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RETRIES_S", (0.0, 0.1))
    made = scene()
    failing = made.stage.opened[0]

    def close() -> None:
        raise RuntimeError("the session cannot be destroyed")

    monkeypatch.setattr(failing, "close", close)
    made.stage.errors["cpu"] = RuntimeError("lost")
    playing(made, lambda: "cannot be destroyed" in made.graph.status().message)
    monkeypatch.undo()
    made.stage.errors.clear()


def test_a_device_that_hangs_is_said(
    scene: Any, playing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctxseg_ros.ros.diagnostics.HUNG_S", 1.0)
    made = scene()
    made.stage.stepping = True
    playing(made, lambda: "the device appears to hang" in made.graph.status().message)
    assert made.graph.status().level == DiagnosticStatus.ERROR
    made.stage.stepping = False
    made.stage.turns.release(10)
    playing(made, lambda: made.graph.status().level == DiagnosticStatus.OK)
