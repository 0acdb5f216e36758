# SPDX-License-Identifier: Apache-2.0
"""Every legal order of transitions, and the illegal ones refused."""

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxseg_ros.ros.segmenter import SegmentNode
from ctxseg_ros.system import machine

pytestmark = pytest.mark.slow

LEGAL = {
    "unconfigured": {"configure": "inactive", "unconfigured_shutdown": "finalized"},
    "inactive": {
        "activate": "active",
        "cleanup": "unconfigured",
        "inactive_shutdown": "finalized",
    },
    "active": {"deactivate": "inactive", "active_shutdown": "finalized"},
    "finalized": {},
}
TRANSITIONS = sorted({name for moves in LEGAL.values() for name in moves})
SEQUENCES = 200


@pytest.fixture
def managed(graph_with: Callable[..., Any], model_factory: Callable[..., Path]) -> Any:
    """A graph whose nodes wait for a manager."""
    return graph_with(model=model_factory(), device="cpu", autostart="false")


def test_200_random_sequences_of_transitions(managed: Any, image_message: Any) -> None:
    rng = random.Random(7)
    node = managed.add(SegmentNode())
    state, done = "unconfigured", 0
    for number in range(SEQUENCES):
        for _ in range(rng.randint(2, 6)):
            name = rng.choice(TRANSITIONS)
            if name.endswith("shutdown") and number < SEQUENCES - 1:
                continue  # final: the last sequence has them
            expected = LEGAL[state].get(name)
            assert managed.transition(name) == (expected is not None), (state, name)
            state = expected or state
            done += 1
        assert managed.state() == state
    assert done > 300
    assert node.state == state


@pytest.mark.parametrize("before", [[], ["configure"], ["configure", "activate"]])
def test_shutdown_is_final_from_every_state(managed: Any, before: list[str]) -> None:
    managed.add(SegmentNode())
    for name in before:
        assert managed.transition(name)
    assert managed.transition(f"{managed.state()}_shutdown")
    assert managed.state() == "finalized"
    for name in TRANSITIONS:
        assert not managed.transition(name)


def test_a_round_leaves_nothing_behind(managed: Any, wait: Any, image_message: Any) -> None:
    node = managed.add(SegmentNode())
    held: list[float] = []
    entities: list[tuple[int, ...]] = []
    for number in range(40):
        assert managed.transition("configure") and managed.transition("activate")
        assert managed.transition("deactivate") and managed.transition("cleanup")
        gc.collect()
        if number >= 10:
            held.append(machine.memory_mb())
            counted = (node.publishers, node.subscriptions, node.services, node.timers)
            entities.append(tuple(len(list(items)) for items in counted))
    assert set(entities) == {entities[0]}
    # A model's activations, its arena and a DDS endpoint are each more than that.
    assert np.median(held[-5:]) < np.median(held[:5]) + 5


def test_frames_flow_after_every_round(managed: Any, wait: Any, image_message: Any) -> None:
    from sensor_msgs.msg import Image

    managed.add(SegmentNode())
    publisher = managed.node.create_publisher(Image, "image", 10)
    labels = managed.collect(Image, "/segment/labels")
    for _ in range(3):
        assert managed.transition("configure") and managed.transition("activate")
        seen = len(labels)
        wait(lambda: len(labels) > seen or publisher.publish(image_message()))  # noqa: B023
        assert managed.transition("deactivate") and managed.transition("cleanup")


def test_a_configure_that_fails_half_way_leaves_no_publisher(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path]
) -> None:
    override = {"qos_overrides./segment/overlay.publisher.reliability": "nonsense"}
    graph = graph_with(model=model_factory(), device="cpu", autostart="false", **override)
    node = graph.add(SegmentNode())
    before = len(list(node.publishers))
    for _ in range(3):
        assert not graph.transition("configure")
        assert len(list(node.publishers)) == before
    message = graph.status().message  # the parameter is read-only
    assert "Start the node again" in message and "ros2 param set" not in message
