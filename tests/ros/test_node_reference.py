# SPDX-License-Identifier: Apache-2.0
"""The reference page has the topics and the diagnostics that running nodes have.

``tests/test_docs.py`` compares the page with the tables in the code, these tests with the nodes.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ctxseg_ros.ros.report import CAMERA_VALUES, COUNTS, LATENCIES, NODE_VALUES

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "node_reference.md"
POINTS = {f"{name}_{point}_ms" for name in LATENCIES for point in ("p50", "p95", "p99")}


def names(table: str) -> list[str]:
    """The names in the first column of a table of the page."""
    block = PAGE.read_text().partition(f"<!-- BEGIN {table} -->")[2].partition("<!-- END")[0]
    return re.findall(r"^\| `([^`]+)`", block, re.MULTILINE)


def test_topics(scene: Callable[..., Any]) -> None:
    made = scene()
    published = {
        name.replace("/segment/", "~/")
        for name, _ in made.node.get_publisher_names_and_types_by_node("segment", "/")
    } - {"/parameter_events", "/rosout", "~/transition_event"}
    assert published | {"~/label_info"} == set(names("outputs"))
    subscribed = {
        name.removeprefix("/")
        for name, _ in made.node.get_subscriber_names_and_types_by_node("segment", "/")
    } - {"parameter_events"}
    assert subscribed | {"image/compressed"} == set(names("inputs"))


def test_diagnostics(scene: Callable[..., Any]) -> None:
    published = set(scene().graph.values())
    assert published == set(names("diagnostics")) | POINTS
    assert names("latencies") == list(LATENCIES)


def test_diagnostics_of_named_cameras(scene: Callable[..., Any], wait: Any) -> None:
    made = scene(cameras="[front, left]")
    wait(lambda: made.graph.values("front") and made.graph.values("left"))
    assert set(made.graph.values("front")) == set(COUNTS) | set(CAMERA_VALUES) | POINTS
    assert set(made.graph.values()) == set(NODE_VALUES) | set(COUNTS) | POINTS


def test_diagnostics_of_camera_node(graph: Any, tmp_path: Path, wait: Any) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((6, 10, 3), np.uint8))
    graph.start("camera_node", source=tmp_path)
    wait(lambda: graph.values("frames"))
    assert list(graph.values("frames")) == names("camera diagnostics")
