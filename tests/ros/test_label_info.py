# SPDX-License-Identifier: Apache-2.0
"""Class tables: what they hold, where they are latched, and that they follow every change.

vision_msgs has no wheel, so a message that is installed stands in for LabelInfo.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header, String

from ctxseg_ros.model.model_file import read_model_info
from ctxseg_ros.ros import label_info
from ctxseg_ros.ros.segmenter import SegmentNode

pytestmark = pytest.mark.slow

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CLASSES = [[i, f"class {i}"] for i in range(4)]
UNLABELED = [255, "UNLABELED"]


@dataclass
class VisionClass:
    """The fields of vision_msgs/VisionClass."""

    class_id: int
    class_name: str


class LabelInfo(String):
    """A message that there is, with the fields of vision_msgs/LabelInfo in its text."""

    def __init__(self, class_map: list[VisionClass], threshold: float) -> None:
        table = [[item.class_id, item.class_name] for item in class_map]
        super().__init__(data=json.dumps([table, threshold]))
        self.header = Header()


# rclpy looks at the names before it converts.
LabelInfo.__name__, LabelInfo.__module__ = String.__name__, String.__module__


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_info, "LabelInfo", LabelInfo)
    monkeypatch.setattr(label_info, "VisionClass", VisionClass, raising=False)


@pytest.fixture
def active(graph_with: Callable[..., Any]) -> Callable[..., Any]:
    """make(**parameters) -> the graph of an active node of this process."""

    def make(**parameters: Any) -> Any:
        graph = graph_with(device="cpu", **parameters)
        graph.add(SegmentNode())
        graph.wait_for_state("active")
        return graph

    return make


def newest(graph: Any, wait: Any, topic: str = "/segment/label_info") -> tuple[list[Any], float]:
    """The table and the threshold that a late subscriber gets."""
    messages = graph.collect(String, topic, LATCHED)
    wait(lambda: messages)
    table, threshold = json.loads(messages[-1].data)
    return table, threshold


def named_clusters(model: onnx.ModelProto) -> None:
    """Class 3 becomes 255 in the graph itself, as training.clusters.name_clusters makes it."""
    graph = model.graph
    for node in graph.node:
        if node.output[0] == "labels":
            node.output[0] = "numbers"
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 2, 255]), "table"))
    graph.node.extend(
        [
            helper.make_node("Cast", ["numbers"], ["places"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "places"], ["named"]),
            helper.make_node("Cast", ["named"], ["labels"], to=TensorProto.UINT8),
        ]
    )


def test_a_graph_that_gives_255_is_known(model_factory: Callable[..., Path]) -> None:
    assert not read_model_info(model_factory()).unlabelled
    assert not read_model_info(model_factory(task="attention")).unlabelled
    assert read_model_info(model_factory(edit=named_clusters)).unlabelled


def test_who_subscribes_late_gets_the_classes(
    active: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    graph = active(model=model_factory())
    assert newest(graph, wait) == (CLASSES, 0.0)


def test_it_follows_every_change_and_lists_255_where_that_can_occur(
    active: Any, model_factory: Callable[..., Path], wait: Any, tmp_path: Path
) -> None:
    graph = active(model=model_factory(), min_confidence=0.25)
    assert newest(graph, wait) == ([*CLASSES, UNLABELED], 0.25)
    assert graph.set("min_confidence", 0.5)[0]
    assert newest(graph, wait) == ([*CLASSES, UNLABELED], 0.5)
    assert graph.set("min_confidence", 0.0)[0]
    assert newest(graph, wait) == (CLASSES, 0.0)
    groups = tmp_path / "groups.yaml"
    groups.write_text("groups:\n- {name: all, colour: [1, 2, 3], classes: rest}\n")
    assert graph.set("label_groups", str(groups))[0]
    assert newest(graph, wait) == ([[0, "all"]], 0.0)
    groups.write_text(f"{groups.read_text()}unlabelled: [class 0]\n")
    assert graph.set("label_groups", str(groups))[0]
    assert newest(graph, wait) == ([[0, "all"], UNLABELED], 0.0)
    assert graph.set("label_groups", "")[0]
    assert graph.set("model", str(model_factory(classes=2)))[0]
    assert newest(graph, wait) == (CLASSES[:2], 0.0)
    assert graph.set("model", str(model_factory(edit=named_clusters)))[0]
    assert newest(graph, wait) == ([*CLASSES, UNLABELED], 0.0)
    assert graph.set("model", str(model_factory(task="attention")))[0]
    assert newest(graph, wait) == ([], 0.0)


def test_each_named_camera_has_one_beside_its_labels(
    active: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    graph = active(model=model_factory(), cameras="[front, left]")
    topics = [f"/segment/{name}label_info" for name in ("", "front/", "left/")]
    for topic in topics:
        assert newest(graph, wait, topic) == (CLASSES, 0.0)
    assert graph.set("model", str(model_factory(classes=2)))[0]
    for topic in topics:
        assert newest(graph, wait, topic) == (CLASSES[:2], 0.0)
    assert graph.transition("deactivate") and graph.transition("cleanup")
    assert [graph.node.count_publishers(topic) for topic in topics] == [1, 0, 0]


def test_real_label_info_is_latched(
    active: Any, model_factory: Callable[..., Path], wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = pytest.importorskip(
        "vision_msgs.msg",
        reason="vision_msgs is not installed: it comes with ROS 2, PyPI has no wheel of it; "
        "content and latching are tested with stand-ins",
    )
    monkeypatch.setattr(label_info, "LabelInfo", messages.LabelInfo)
    monkeypatch.setattr(label_info, "VisionClass", messages.VisionClass)
    graph = active(model=model_factory(), min_confidence=0.5)
    infos = graph.collect(messages.LabelInfo, "/segment/label_info", LATCHED)
    wait(lambda: infos)
    found = [[item.class_id, item.class_name] for item in infos[-1].class_map]
    assert (found, infos[-1].threshold) == ([*CLASSES, UNLABELED], 0.5)
