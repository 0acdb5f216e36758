# SPDX-License-Identifier: Apache-2.0
"""The README's node section says what the code does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ctxseg_ros.ros.camera_output import IMAGES
from ctxseg_ros.ros.images import ENCODINGS
from ctxseg_ros.ros.report import CAMERA_VALUES, COUNTS, LATENCIES, NODE_VALUES
from ctxseg_ros.ros.settings import SETTINGS

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def tables() -> dict[str, dict[str, list[str]]]:
    """{first heading: {name in backticks: the row's cells}} of the node's section."""
    text = README.read_text()
    section = text[text.index("### The node `segment_node`") :]
    section = section[: section.index("\n## ")]
    found: dict[str, dict[str, list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE):
        head, _, *lines = block.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[head.strip("|").split("|")[0].strip()] = {
            re.findall("`([^`]+)`", cells[0])[0]: cells for cells in rows
        }
    return found


def test_parameters(tables: dict[str, dict[str, list[str]]]) -> None:
    assert list(tables["parameter"]) == [*SETTINGS, "class_names"]
    for name, setting in SETTINGS.items():
        _, default, text = tables["parameter"][name]
        assert text
        if setting.default not in ("", [""]):
            assert default.split(" (")[0].strip("`").lower() == str(setting.default).lower(), name
        assert ("fixed while configured" in text) == setting.fixed, name
        assert ("read only" in text) == setting.read_only, name


def test_outputs(tables: dict[str, dict[str, list[str]]]) -> None:
    topics = tables["topic"]
    for name, text in IMAGES.items():
        assert topics[f"~/{name}"][1:] == ["Image", text]
    for encoding in ENCODINGS:
        assert encoding in topics["image"][2].replace(";", " ").split()


def test_topics_are_those_of_the_node(
    tables: dict[str, dict[str, list[str]]], scene: Callable[..., Any]
) -> None:
    node = scene().node
    own = {
        name.replace("/segment/", "~/")
        for name, _ in node.get_publisher_names_and_types_by_node("segment", "/")
    } - {"/parameter_events", "/rosout", "~/transition_event"}
    inputs = {name for name, cells in tables["topic"].items() if "(in)" in cells[0]}
    assert own == set(tables["topic"]) - inputs - {"~/label_info"}
    assert inputs == {"image", "image/compressed", "camera_info"}


def test_diagnostics(tables: dict[str, dict[str, list[str]]], scene: Callable[..., Any]) -> None:
    table = {name: cells[1] for name, cells in tables["value"].items()}
    documented = NODE_VALUES | COUNTS | CAMERA_VALUES
    latencies = {f"{name}_p50_ms": text for name, text in LATENCIES.items()}
    assert table == documented | latencies
    made = scene()
    published = set(made.graph.values())
    points = {f"{name}_{point}_ms" for name in LATENCIES for point in ("p50", "p95", "p99")}
    assert published == set(documented) | points


def test_diagnostics_of_named_cameras(scene: Callable[..., Any], wait: Any) -> None:
    made = scene(cameras="[front, left]")
    points = {f"{name}_{point}_ms" for name in LATENCIES for point in ("p50", "p95", "p99")}
    wait(lambda: made.graph.values("front") and made.graph.values("left"))
    assert set(made.graph.values("front")) == set(COUNTS) | set(CAMERA_VALUES) | points
    assert set(made.graph.values()) == set(NODE_VALUES) | set(COUNTS) | points


def test_diagnostics_of_camera_node(
    tables: dict[str, dict[str, list[str]]], graph: Any, tmp_path: Path, wait: Any
) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((6, 10, 3), np.uint8))
    graph.start("camera_node", source=tmp_path)
    wait(lambda: graph.values("frames"))
    assert list(graph.values("frames")) == list(tables["value of the camera"])
