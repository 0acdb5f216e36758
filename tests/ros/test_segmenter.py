# SPDX-License-Identifier: Apache-2.0
"""The node inside this process, on a stage whose pace and faults the test sets."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from ctxseg_ros.image import render
from ctxseg_ros.inference.runtimes import RuntimeUnavailable
from ctxseg_ros.ros import camera_output as outputs
from ctxseg_ros.ros.camera_input import CameraStream
from ctxseg_ros.ros.segmenter import SegmentNode

pytestmark = pytest.mark.slow


@pytest.fixture
def stepped(scene: Callable[..., Any]) -> Callable[..., Any]:
    """make(**parameters) -> a scene whose runtime waits for the test before each frame."""

    def make(**parameters: Any) -> Any:
        made = scene(**parameters)
        made.stage.stepping = True
        made.images = made.publishers[""]
        return made

    return make


def stream(node: SegmentNode) -> CameraStream:
    return node.cameras[""][0]


def wanted(node: SegmentNode) -> set[str]:
    return node.cameras[""][1].wanted()


def received(scene: Any, count: int, wait: Any) -> None:
    wait(lambda: stream(scene.node).counts.totals()["received"] == count)


def test_only_the_newest_frame_is_labelled_and_the_others_are_counted(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped()
    labels = scene.graph.collect(Image, "/segment/labels")
    wait(lambda: "labels" in wanted(scene.node))
    scene.images.publish(image_message(stamp=1))
    wait(scene.stage.running.is_set)  # 1 is in work: 2 to 5 come meanwhile
    for number in range(2, 6):
        scene.images.publish(image_message(stamp=number))
        received(scene, number, wait)
    for _ in range(2):
        scene.stage.turns.release()
    wait(lambda: len(labels) == 2)
    assert [message.header.stamp.sec for message in labels] == [1, 5]
    counts = scene.graph.counts()
    assert (counts["frames_received"], counts["frames_labelled"]) == (5, 2)
    assert counts["dropped_queue"] == 3


def test_a_frame_older_than_max_age_is_dropped_before_inference(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped(max_age_ms=10000)
    scene.images.publish(image_message(stamp=1000))
    wait(lambda: scene.graph.counts()["dropped_stale"] == 1)
    assert not scene.stage.running.is_set()
    scene.images.publish(image_message())
    scene.stage.turns.release()
    wait(lambda: scene.graph.counts()["frames_labelled"] == 1)


def test_a_frame_without_a_stamp_is_timed_from_its_arrival(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped(max_age_ms=10000)
    message = image_message()
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    scene.images.publish(message)
    scene.stage.turns.release()
    wait(lambda: scene.graph.counts()["frames_labelled"] == 1)
    assert float(scene.graph.values()["transport_p50_ms"]) == 0


def test_deactivate_waits_for_the_frame_in_work_and_counts_the_one_behind(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped()
    labels = scene.graph.collect(Image, "/segment/labels")
    wait(lambda: "labels" in wanted(scene.node))
    scene.images.publish(image_message(stamp=1))
    wait(scene.stage.running.is_set)
    scene.images.publish(image_message(stamp=2))
    received(scene, 2, wait)
    release = threading.Timer(0.5, scene.stage.turns.release)
    release.start()
    assert scene.graph.transition("deactivate")
    release.join()
    scene.graph.wait_for_state("inactive")
    counts = scene.graph.counts()
    assert (counts["frames_labelled"], counts["dropped_queue"]) == (1, 1)
    wait(lambda: [message.header.stamp.sec for message in labels] == [1])
    assert scene.graph.transition("cleanup") and scene.stage.opened[0].closed


def test_colour_and_overlay_are_not_computed_while_nobody_looks(
    stepped: Any, wait: Any, image_message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fake = SimpleNamespace(
        Legend=render.Legend,
        colour_map=lambda *_: calls.append("colour") or np.zeros((32, 48, 3), np.uint8),
        overlay=lambda *_: calls.append("overlay") or np.zeros((32, 48, 3), np.uint8),
    )
    monkeypatch.setattr(outputs, "render", fake)
    scene = stepped()
    scene.images.publish(image_message())
    scene.stage.turns.release()
    wait(lambda: scene.graph.counts()["frames_labelled"] == 1)
    assert calls == []
    scene.graph.collect(Image, "/segment/overlay")
    wait(lambda: "overlay" in wanted(scene.node))
    scene.images.publish(image_message())
    scene.stage.turns.release()
    wait(lambda: scene.graph.counts()["frames_labelled"] == 2)
    wait(lambda: calls == ["overlay"])


def test_frames_lost_in_transport_are_known_by_their_numbers(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped()
    wait(lambda: stream(scene.node).publishers == 1)  # a new one begins the count anew
    for number in (3, 4, 7, 8, 1, 2):  # 5 and 6 are lost; then another publisher counts
        stream(scene.node).receive(image_message(), {"publication_sequence_number": number})
    wait(lambda: scene.graph.values()["lost_transport"] == "2")
    stream(scene.node).receive(image_message(), {"publication_sequence_number": None})
    wait(lambda: scene.graph.values()["lost_transport"] == "unknown")
    for _ in range(9):
        scene.stage.turns.release()


def test_what_the_camera_sends_to_an_inactive_node_is_not_lost(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped()
    for _ in range(9):
        scene.stage.turns.release()
    stream(scene.node).receive(image_message(), {"publication_sequence_number": 3})
    wait(lambda: stream(scene.node).counts.totals()["labelled"] == 1)
    scene.graph.transition("deactivate")
    scene.graph.transition("activate")
    for number in (40, 41, 43):
        stream(scene.node).receive(image_message(), {"publication_sequence_number": number})
    assert stream(scene.node).counts.totals()["lost_transport"] == 1


def test_an_activation_that_raises_is_said_and_can_be_tried_again(
    stepped: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = stepped()
    scene.graph.transition("deactivate")
    with monkeypatch.context() as broken:
        broken.setattr(CameraStream, "open", lambda _: 1 / 0)
        scene.graph.transition("activate")
        wait(lambda: "activation failed: ZeroDivisionError" in scene.graph.status().message)
    scene.graph.wait_for_state("unconfigured")
    assert scene.stage.opened[0].closed
    scene.graph.transition("configure")
    scene.graph.transition("activate")
    scene.graph.wait_for_state("active")


def test_the_budget_is_judged(stepped: Any, wait: Any, image_message: Any) -> None:
    scene = stepped(latency_budget_ms=1)
    scene.images.publish(image_message())
    wait(scene.stage.running.is_set)
    threading.Timer(0.1, scene.stage.turns.release).start()
    wait(lambda: scene.graph.status().level == DiagnosticStatus.WARN)
    assert "budget 1 ms" in scene.graph.status().message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeUnavailable("no openvino here: pip install openvino"), "pip install openvino"),
        (MemoryError("too large"), "MemoryError: too large"),
    ],
)
def test_a_runtime_that_does_not_open_is_said(
    graph_with: Callable[..., Any],
    model_factory: Callable[..., Path],
    stage: Any,
    wait: Any,
    error: Exception,
    said: str,
) -> None:
    stage.open_errors["cpu"] = error
    graph = graph_with(model=model_factory())
    graph.add(SegmentNode())
    wait(lambda: graph.status() and graph.status().level == DiagnosticStatus.ERROR)
    assert said in graph.status().message
    assert graph.state() == "unconfigured"


def test_without_autostart_it_waits_for_a_manager(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path]
) -> None:
    graph = graph_with(model=model_factory(), autostart="false", device="cpu")
    graph.add(SegmentNode())
    graph.wait_for_state("unconfigured")
    assert graph.state() == "unconfigured"
    assert graph.transition("configure") and graph.transition("activate")
    assert graph.state() == "active"


def test_input_sizes_pin_the_models_size(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path], wait: Any
) -> None:
    graph = graph_with(model=model_factory(), device="cpu", input_sizes='["64x80", "32x48"]')
    graph.add(SegmentNode())
    graph.wait_for_state("active")
    assert graph.values()["input_size"] == "64x80"


def test_a_service_is_answered_while_a_frame_is_in_work(
    stepped: Any, wait: Any, image_message: Any
) -> None:
    scene = stepped()
    scene.images.publish(image_message())
    wait(scene.stage.running.is_set)
    assert scene.graph.get("device") == "auto"
    assert scene.stage.running.is_set()
    scene.stage.turns.release()
