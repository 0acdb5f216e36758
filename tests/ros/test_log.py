# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows of a node: every step, what goes wrong, and that it is well again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sensor_msgs.msg import Image

pytestmark = pytest.mark.slow


def lines(process: Any, words: str) -> list[str]:
    return [line for line in process.output.splitlines() if words in line]


def reports(graph: Any, wait: Any, number: int) -> None:
    """Wait for so many more reports."""
    seen = len(graph.statuses)
    wait(lambda: len(graph.statuses) >= seen + number)


def test_every_step_of_the_lifecycle_is_a_line(
    graph: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    process = graph.start("segment_node", model=model_factory(), device="cpu", autostart=False)
    wait(lambda: lines(process, "ros2 lifecycle set /segment configure"))
    for transition, words in (
        ("configure", "configured: tiny on cpu at 32x48"),
        ("activate", "active: reads /image; labels on /segment/labels, 4 classes"),
        ("deactivate", "inactive:"),
        ("cleanup", "unconfigured: the model"),
        ("unconfigured_shutdown", "finalized"),
    ):
        before = len(lines(process, words))
        assert graph.transition(transition)
        assert len(lines(process, words)) == before + 1
    assert not lines(process, "WARN") and not lines(process, "ERROR")


def test_the_names_are_those_after_remapping(
    graph: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    remappings = ["/a/eyes/front/labels:=/seen", "front/image:=/cam"]
    arguments = [word for item in remappings for word in ("-r", item)]
    arguments += ["-r", "__ns:=/a", "-r", "__node:=eyes"]
    process = graph.start(
        "segment_node", model=model_factory(), cameras="[front, left]", arguments=arguments
    )
    wait(lambda: lines(process, "active: reads /cam, /a/left/image; labels on /seen, "))
    (line,) = lines(process, "active: reads")
    assert "/a/eyes/left/labels, 4 classes" in line


def test_an_attention_model_has_no_classes(
    graph: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    model = model_factory(task="attention")
    process = graph.start("segment_node", model=model, device="cpu")
    wait(lambda: lines(process, "attention on /segment/attention"))
    assert "classes" not in process.output


def test_a_failed_configure_names_the_commands_with_the_nodes_name(graph: Any, wait: Any) -> None:
    arguments = ["-r", "__ns:=/a", "-r", "__node:=eyes"]
    process = graph.start("segment_node", model="nonsense", min_confidence=7, arguments=arguments)
    wait(lambda: lines(process, "cannot configure"))
    (line,) = lines(process, "cannot configure")
    for words in (
        "min_confidence must be a number from 0 to 1, not 7",
        "ros2 param set /a/eyes",
        "ros2 lifecycle set /a/eyes configure",
        "ros2 lifecycle set /a/eyes activate",
    ):
        assert words in line


def test_trouble_is_one_line_and_its_end_another(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    process = graph.start("segment_node", model=model_factory(), device="cpu")
    wait(lambda: lines(process, "nobody publishes /image"))
    reports(graph, wait, 3)
    images = graph.publisher(Image, "image")

    def send() -> None:
        images.publish(image_message())
        time.sleep(0.05)

    wait(lambda: lines(process, "all problems resolved: /image is labelled at") or send())
    reports(graph, wait, 3)
    assert len(lines(process, "nobody publishes /image")) == 1
    assert len(lines(process, "all problems resolved")) == 1


def test_one_camera_of_two_is_missing(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    process = graph.start(
        "segment_node", model=model_factory(), device="cpu", cameras="[front, left]"
    )
    images = graph.publisher(Image, "front/image")

    def send() -> None:
        images.publish(image_message())
        time.sleep(0.05)

    wait(lambda: lines(process, "nobody publishes /left/image") or send())
    assert not lines(process, "nobody publishes /front/image")


def test_a_budget_that_breaks_is_in_the_log(
    scene: Any, wait: Any, image_message: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    made = scene(costs_ms={(32, 48): 20.0}, latency_budget_ms=1.0)
    written = []

    def said() -> bool:
        written.append(capfd.readouterr().err)
        return "the smallest of input_sizes, needs" in "".join(written)

    def send() -> None:
        made.publishers[""].publish(image_message())
        time.sleep(0.02)

    wait(lambda: said() or send())
