# SPDX-License-Identifier: Apache-2.0
"""The node changes its input size to hold the budget."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

pytestmark = pytest.mark.slow

LARGE, MIDDLE, SMALL = (96, 144), (64, 96), (32, 48)
NAMES = {LARGE: "96x144", MIDDLE: "64x96", SMALL: "32x48"}
PERIOD_S = 0.1


@pytest.fixture
def driven(scene: Callable[..., Any], image_message: Any) -> Iterator[Callable[..., Any]]:
    """make(costs, **parameters) -> a scene whose camera sends at 10 Hz until the test ends."""
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def play(publisher: Any) -> None:
        while not stopping.wait(PERIOD_S):
            publisher.publish(image_message())

    def make(costs: dict[tuple[int, int], float], **parameters: Any) -> Any:
        sizes = ", ".join(f"'{NAMES[size]}'" for size in costs)
        made = scene(input_sizes=f"[{sizes}]", **parameters, costs_ms=dict(costs))
        threads.append(threading.Thread(target=play, args=(made.publishers[""],)))
        threads[-1].start()
        return made

    yield make
    stopping.set()
    for thread in threads:
        thread.join()


def test_the_largest_size_that_holds_is_taken_and_left_when_it_breaks(
    driven: Any, wait: Any
) -> None:
    made = driven({LARGE: 180.0, MIDDLE: 60.0, SMALL: 15.0}, latency_budget_ms=150)
    graph, costs = made.graph, made.stage.costs_ms
    wait(lambda: int(graph.values()["frames_labelled"]) > 20)
    assert graph.values()["input_size"] == "64x96"  # the large one takes more than the budget
    assert [runtime.size for runtime in made.stage.opened] == [LARGE, MIDDLE, SMALL]
    labels = graph.collect(Image, "/segment/labels")
    # Another process takes the machine: the middle size breaks the budget, the small one holds it.
    costs |= {LARGE: 720.0, MIDDLE: 240.0, SMALL: 60.0}
    wait(lambda: graph.values()["input_size"] == "32x48")
    assert len(made.stage.opened) == 3  # nothing was loaded for it
    # Now not even the small one does.
    costs |= {LARGE: 3000.0, MIDDLE: 1000.0, SMALL: 250.0}
    wait(lambda: graph.values()["needed_budget_ms"])
    needed = int(graph.values()["needed_budget_ms"])
    assert 240 < needed < 1000
    assert graph.status().level == DiagnosticStatus.WARN
    said = graph.status().message
    assert "even 32x48, the smallest of input_sizes, needs" in said and "budget is 150 ms" in said
    stamps = [(item.header.stamp.sec, item.header.stamp.nanosec) for item in labels]
    assert stamps == sorted(stamps) and len(set(stamps)) == len(stamps)
    assert {(item.width, item.height) for item in labels} == {(48, 32)}
    # The machine is free again.
    costs |= {LARGE: 180.0, MIDDLE: 60.0, SMALL: 15.0}
    wait(lambda: graph.values()["input_size"] == "64x96", 120)
    counts = graph.counts()
    assert counts["dropped_inference_error"] == 0


def test_a_new_budget_is_held_at_once(driven: Any, wait: Any) -> None:
    made = driven({LARGE: 90.0, MIDDLE: 40.0, SMALL: 10.0}, latency_budget_ms=0)
    wait(lambda: int(made.graph.values()["frames_labelled"]) > 5)
    assert made.graph.values()["input_size"] == "96x144"  # no budget: the first
    assert made.graph.set("latency_budget_ms", 80.0)[0]
    wait(lambda: made.graph.values()["input_size"] == "64x96")
    assert made.graph.set("latency_budget_ms", 0)[0]
    wait(lambda: made.graph.values()["input_size"] == "96x144")


def test_the_latency_is_the_sum_of_its_stages(driven: Any, wait: Any) -> None:
    made = driven({SMALL: 30.0})
    wait(lambda: int(made.graph.values()["frames_labelled"]) > 30)
    window = made.node.latency.frames()
    for frame in window:
        parts = sum(ms for stage, ms in frame.items() if stage != "total")
        assert math.isclose(parts, frame["total"], abs_tol=1e-6)
        assert frame["inference"] >= 30
    values = made.graph.values()
    assert float(values["inference_p50_ms"]) >= 30


def test_a_camera_clock_that_is_behind_breaks_no_budget(
    scene: Any, wait: Any, image_message: Any
) -> None:
    made = scene(
        input_sizes="['64x96', '32x48']",
        latency_budget_ms=100,
        costs_ms={MIDDLE: 20.0, SMALL: 5.0},
    )
    for _ in range(40):
        message = image_message()
        message.header.stamp.sec -= 5
        made.publishers[""].publish(message)
        time.sleep(0.05)
    assert made.graph.counts()["frames_labelled"] >= 30
    values = made.graph.values()
    assert values["input_size"] == "64x96" and not values["needed_budget_ms"]
    assert float(values["clock_offset_ms"]) == pytest.approx(5000, abs=500)
    assert float(values["latency_p99_ms"]) < 1000
    assert "5 s behind this machine's clock" in made.graph.status().message
