# SPDX-License-Identifier: Apache-2.0
"""Several cameras share one model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image

pytestmark = pytest.mark.slow


@pytest.fixture
def two(graph: Any, model_factory: Callable[..., Path]) -> Any:
    """A graph with an active segment_node for two cameras."""
    graph.start("segment_node", model=model_factory(), device="cpu", cameras="[front, left]")
    graph.wait_for_state("active")
    return graph


def test_each_camera_has_its_own_topics_and_headers(
    two: Any, wait: Any, image_message: Any
) -> None:
    sizes = {"front": (48, 32), "left": (100, 60)}
    labels = {name: two.collect(Image, f"/segment/{name}/labels") for name in sizes}
    infos = {name: two.collect(CameraInfo, f"/segment/{name}/camera_info") for name in sizes}
    images = {name: two.publisher(Image, f"{name}/image") for name in sizes}
    info_publishers = {name: two.publisher(CameraInfo, f"{name}/camera_info") for name in sizes}

    def send() -> None:
        for name, (width, height) in sizes.items():
            # Each time: it is read as best effort, and one message may be lost.
            info_publishers[name].publish(CameraInfo(width=width, height=height))
            message = image_message(width, height)
            message.header.frame_id = name
            images[name].publish(message)
        time.sleep(0.1)

    wait(lambda: (all(labels.values()) and all(infos.values())) or send())
    for name, size in sizes.items():
        assert {(item.width, item.height) for item in labels[name]} == {size}
        assert {item.header.frame_id for item in labels[name]} == {name}
        assert {item.header.frame_id for item in infos[name]} == {name}
        assert infos[name][-1].width == size[0]


def test_diagnostics_tell_the_cameras_apart(two: Any, wait: Any, image_message: Any) -> None:
    publisher = two.publisher(Image, "front/image")
    for _ in range(5):
        publisher.publish(image_message())
        time.sleep(0.1)
    wait(lambda: two.status("left") and two.status("left").level == DiagnosticStatus.STALE)
    assert "nobody publishes /left/image" in two.status("left").message
    wait(lambda: int(two.values("front")["frames_labelled"]) > 0)
    assert int(two.values("left")["frames_received"]) == 0
    # The node's own report is as bad as its worst camera, and sums up.
    wait(lambda: two.status().level == DiagnosticStatus.STALE)
    assert "/left/image" in two.status().message
    assert two.values()["frames_received"] == two.values("front")["frames_received"]


def test_a_fast_camera_does_not_starve_a_slow_one(
    scene: Any, wait: Any, image_message: Any
) -> None:
    made = scene(cameras="[fast, slow]")
    made.stage.costs_ms[(32, 48)] = 40.0
    start = time.monotonic()
    sent = {"fast": 0, "slow": 0}
    while time.monotonic() < start + 4:
        for name, every in (("fast", 1), ("slow", 10)):
            if sent["fast"] % every == 0:
                made.publishers[name].publish(image_message())
                sent[name] += 1
        time.sleep(0.01)
    made.graph.counts()
    labelled = {name: int(made.graph.values(name)["frames_labelled"]) for name in sent}
    # The slow one sends less than its half of the model's time: it loses little but by chance.
    assert labelled["slow"] >= 0.8 * sent["slow"]
    assert labelled["fast"] < 0.7 * sent["fast"]


def test_equal_cameras_share_equally(scene: Any, wait: Any, image_message: Any) -> None:
    names = ["a", "b", "c"]
    made = scene(cameras="[a, b, c]")
    made.stage.costs_ms[(32, 48)] = 20.0
    for _ in range(120):
        for name in names:
            made.publishers[name].publish(image_message())
        time.sleep(0.01)
    made.graph.counts()
    labelled = [int(made.graph.values(name)["frames_labelled"]) for name in names]
    assert max(labelled) - min(labelled) <= 5, labelled
    assert sum(labelled) == int(made.graph.values()["frames_labelled"])


def test_names_that_no_topic_can_have_are_refused(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path], wait: Any
) -> None:
    from ctxseg_ros.ros.segmenter import SegmentNode

    graph = graph_with(model=model_factory(), cameras="['front camera']")
    graph.add(SegmentNode())
    wait(lambda: graph.status() and graph.status().level == DiagnosticStatus.ERROR)
    assert "letters, digits and _" in graph.status().message
    assert graph.set("cameras", ["front"])[0]
    assert graph.transition("configure") and graph.transition("activate")
    wait(lambda: np.any([item.name.endswith(": front") for item in graph.statuses]))
