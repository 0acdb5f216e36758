# SPDX-License-Identifier: Apache-2.0
"""Without a subscriber nothing is inferred; with one the next frame is labelled."""

from collections.abc import Callable
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image

pytestmark = pytest.mark.slow


def runs(scene: Any) -> int:
    return sum(runtime.runs for runtime in scene.stage.opened)


def idle(scene: Any, camera: str = "") -> int:
    return int(scene.node.cameras[camera][0].counts.totals()["idle"])


@pytest.fixture
def quiet(scene: Callable[..., Any]) -> Any:
    return scene(always_infer="false")


def test_nothing_is_inferred_for_nobody(quiet: Any, wait: Any, image_message: Any) -> None:
    before = runs(quiet)
    for count in range(1, 6):
        quiet.publishers[""].publish(image_message())
        wait(lambda: idle(quiet) == count)  # noqa: B023
    assert runs(quiet) == before
    counts = quiet.graph.counts()
    assert (counts["frames_idle"], counts["frames_labelled"]) == (5, 0)
    assert quiet.graph.values()["state"] == "idle"
    status = quiet.graph.status()
    assert status.level == DiagnosticStatus.OK and "subscriber" in status.message
    # CameraInfo alone takes no inference either.
    quiet.graph.collect(CameraInfo, "/segment/camera_info")
    wait(lambda: "camera_info" in quiet.node.cameras[""][1].wanted())
    quiet.publishers[""].publish(image_message())
    wait(lambda: idle(quiet) == 6)
    assert runs(quiet) == before


@pytest.mark.parametrize("topic", ["labels", "confidence", "color", "overlay"])
def test_the_first_frame_after_a_subscriber_appears_is_labelled(
    quiet: Any, wait: Any, image_message: Any, topic: str
) -> None:
    quiet.publishers[""].publish(image_message())
    wait(lambda: idle(quiet) == 1)
    pictures = quiet.graph.collect(Image, f"/segment/{topic}")
    wait(lambda: topic in quiet.node.cameras[""][1].wanted())
    quiet.publishers[""].publish(image_message())
    wait(lambda: len(pictures) == 1)
    counts = quiet.graph.counts()
    assert (counts["frames_idle"], counts["frames_labelled"]) == (1, 1)
    wait(lambda: quiet.graph.values()["state"] == "active")


def test_each_camera_is_idle_by_itself(
    scene: Callable[..., Any], wait: Any, image_message: Any
) -> None:
    made = scene(always_infer="false", cameras="[front, left]")
    labels = made.graph.collect(Image, "/segment/left/labels")
    wait(lambda: "labels" in made.node.cameras["left"][1].wanted())
    for publisher in made.publishers.values():
        publisher.publish(image_message())
    wait(lambda: len(labels) == 1 and idle(made, "front") == 1)
    assert idle(made, "left") == 0
    wait(lambda: made.graph.values().get("state") == "active")


def test_always_infer_keeps_the_figures_warm_and_may_be_switched(
    quiet: Any, wait: Any, image_message: Any
) -> None:
    before = runs(quiet)
    assert quiet.graph.set("always_infer", True)[0]
    quiet.publishers[""].publish(image_message())
    wait(lambda: runs(quiet) == before + 1)
    assert quiet.graph.counts()["frames_labelled"] == 1
    wait(lambda: quiet.graph.values()["state"] == "active")
    assert quiet.graph.set("always_infer", False)[0]
    quiet.publishers[""].publish(image_message())
    wait(lambda: idle(quiet) == 1)
    assert runs(quiet) == before + 1
