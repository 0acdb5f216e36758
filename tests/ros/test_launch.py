# SPDX-License-Identifier: Apache-2.0
"""The launch files, where ros2/launch is installed; and what they rely on, where it is not."""

import importlib.util
import os
import re
import sys
import types
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

from ctxseg_ros.ros import qos
from ctxseg_ros.ros.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
ARGUMENTS = {
    "model",
    "device",
    "input_sizes",
    "label_groups",
    "cameras",
    "image",
    "camera_info",
    "namespace",
    "params_file",
    "latency_budget_ms",
    "image_transport",
    "rviz",
    "rviz_config",
    "shm",
}
NO_LAUNCH = "is not installed: it comes with ROS 2, PyPI has no wheel of it"


def load(name: str) -> types.ModuleType:
    """A launch file as a module; skips where launch is not installed."""
    # The folder launch/ of this checkout can be imported as a package without content.
    pytest.importorskip("launch.actions", reason=f"ros2/launch {NO_LAUNCH}")
    pytest.importorskip("launch_ros.actions", reason=f"ros2/launch_ros {NO_LAUNCH}")
    spec = importlib.util.spec_from_file_location("launch_file", ROOT / "launch" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["launch_file"] = module
    spec.loader.exec_module(module)
    return module


def configured(module: types.ModuleType, **arguments: str) -> Any:
    """A launch context in which the file's arguments have these values or their defaults."""
    from launch import LaunchContext

    context = LaunchContext(argv=[])
    context.launch_configurations.update(arguments)
    for argument in module.ARGUMENTS:
        argument.execute(context)
    return context


Nodes = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def segment_nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """nodes(**arguments) -> what segment.launch.py gives to its Nodes, in their order."""
    module = load("segment.launch.py")
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "Node", lambda **fields: made.append(fields))

    def nodes(**arguments: str) -> list[dict[str, Any]]:
        made.clear()
        module.setup(configured(module, **arguments))
        return list(made)

    return nodes


def parameters(node: dict[str, Any]) -> dict[str, Any]:
    """The parameters that launch_ros hands to a node beside those of the file."""
    from launch import LaunchContext
    from launch_ros.utilities import evaluate_parameters, normalize_parameters

    file, given = evaluate_parameters(
        LaunchContext(argv=[]), normalize_parameters(node["parameters"])
    )
    assert file == CONFIG / "segment.yaml"
    return given


@pytest.mark.parametrize("name", ["segment.launch.py", "demo.launch.py", "two_cameras.launch.py"])
def test_every_argument_is_explained(name: str) -> None:
    module = load(name)
    for argument in module.ARGUMENTS:
        assert argument.description != "no description given", argument.name


def test_every_argument_is_there() -> None:
    module = load("segment.launch.py")
    assert {argument.name for argument in module.ARGUMENTS} == ARGUMENTS


def test_arguments_override_the_file_and_others_leave_it(segment_nodes: Nodes) -> None:
    assert parameters(segment_nodes()[0]) == {}
    (node,) = segment_nodes(
        model="x.onnx",
        latency_budget_ms="80",
        namespace="robot",
        label_groups="groups.yaml",
        input_sizes="352x480, 256x352",
    )
    assert parameters(node) == {
        "model": "x.onnx",
        "latency_budget_ms": 80.0,
        "label_groups": "groups.yaml",
        "input_sizes": ("352x480", "256x352"),
    }
    assert node["namespace"] == "robot"
    with pytest.raises(RuntimeError, match="latency_budget_ms must be a number, not 'fast'"):
        segment_nodes(latency_budget_ms="fast")


def test_the_transport_profile_is_set_unless_the_user_has_one(
    segment_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name)
    (node,) = segment_nodes()
    assert node["additional_env"] == dict.fromkeys(PROFILE_VARIABLES, str(CONFIG / "fastdds.xml"))
    assert segment_nodes(shm="false")[0]["additional_env"] == {}
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert segment_nodes()[0]["additional_env"] == {}


def test_camera_info_is_beside_the_image_unless_it_is_named(segment_nodes: Nodes) -> None:
    (node,) = segment_nodes(image="/cam/image_raw")
    assert node["remappings"] == [("image", "/cam/image_raw"), ("camera_info", "/cam/camera_info")]
    (node,) = segment_nodes(image="rect", camera_info="info")
    assert node["remappings"] == [("image", "rect"), ("camera_info", "info")]


# YAML reads the bare words on and null as something else than text.
@pytest.mark.parametrize("cameras", ["front", "front,left", " on, null "])
def test_cameras_reach_the_node_as_a_list_of_texts(segment_nodes: Nodes, cameras: str) -> None:
    (node,) = segment_nodes(cameras=cameras, image="rgb/image_raw")
    names = tuple(cameras.replace(" ", "").split(","))
    assert parameters(node) == {"cameras": names}
    assert node["remappings"] == [
        (f"{name}/{topic}", f"{name}/rgb/{target}")
        for name in names
        for topic, target in (("image", "image_raw"), ("camera_info", "camera_info"))
    ]


@pytest.mark.parametrize("cameras", ["2nd", "front,", "front left", "a-b", "/front", "a/b"])
def test_cameras_without_a_name_in_ros_are_refused(segment_nodes: Nodes, cameras: str) -> None:
    with pytest.raises(RuntimeError, match=r"no name in ROS.*cameras:=front,left"):
        segment_nodes(cameras=cameras)


def test_topics_of_several_cameras_cannot_be_absolute(segment_nodes: Nodes) -> None:
    fix = "image:=image_raw reads front/image_raw"
    with pytest.raises(RuntimeError, match=re.escape(fix)):
        segment_nodes(cameras="front,left", image="/cam/image_raw")
    with pytest.raises(RuntimeError, match="camera_info is /info"):
        segment_nodes(cameras="front,left", camera_info="/info")


def test_rviz_shows_the_only_or_the_first_camera(segment_nodes: Nodes) -> None:
    _, rviz = segment_nodes(rviz="true", namespace="robot", image="/cam/image_raw")
    assert rviz["package"] == "rviz2"
    assert rviz["namespace"] == "robot"
    assert rviz["arguments"] == ["-d", str(CONFIG / "ctxseg.rviz")]
    shown = dict(rviz["remappings"])
    assert shown["/image"] == "/cam/image_raw"
    assert shown["/segment/overlay"] == "segment/overlay"
    assert set(shown) == set(rviz_topics("ctxseg.rviz"))

    _, rviz = segment_nodes(rviz="true", cameras="front,left", image="image_raw")
    shown = dict(rviz["remappings"])
    assert shown["/image"] == shown["/front/image"] == "front/image_raw"
    assert shown["/segment/overlay"] == shown["/segment/front/overlay"] == "segment/front/overlay"
    assert set(shown) >= set(rviz_topics("ctxseg.rviz")) | set(rviz_topics("two_cameras.rviz"))


def test_rviz_comes_with_the_diagnostics_monitor_where_there_is_one(
    segment_nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "share/ament_index/resource_index/packages/rqt_runtime_monitor"
    marker.parent.mkdir(parents=True)
    marker.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert [node["package"] for node in segment_nodes()] == ["ctxseg_ros"]
    monitor = segment_nodes(rviz="true")[-1]
    assert monitor["package"] == "rqt_runtime_monitor"
    assert dict(monitor["remappings"]) == {"diagnostics": "/diagnostics"}


def test_the_demo_has_a_camera_and_the_segmenter() -> None:
    module = load("demo.launch.py")
    actions = module.setup(configured(module, source="0"))
    assert [type(action).__name__ for action in actions] == ["Node", "IncludeLaunchDescription"]


def test_two_cameras_share_one_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("two_cameras.launch.py")
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "Node", lambda **fields: made.append(fields))
    context = configured(module, front="0", left="b.mp4", namespace="robot", rviz="false")
    include = module.setup(context)[-1]
    assert [node["namespace"] for node in made] == ["robot/front", "robot/left"]
    frames = {node["parameters"][0]["frame_id"] for node in made}
    assert len(frames) == 2
    source = made[0]["parameters"][0]["source"]
    assert source.evaluate(context) == "0"
    passed = dict(include.launch_arguments)
    assert passed["cameras"] == "front,left"
    assert passed["namespace"] == "robot"
    assert set(passed) <= ARGUMENTS
    assert Path(passed["rviz_config"]).is_file()
    module.setup(configured(module, front="a", left="b"))
    assert [node["namespace"] for node in made[2:]] == ["front", "left"]


def test_segment_yaml_holds_every_parameter_with_its_default() -> None:
    written = yaml.safe_load((CONFIG / "segment.yaml").read_text())["/**"]["ros__parameters"]
    assert written == {name: setting.default for name, setting in SETTINGS.items()}
    for name, setting in SETTINGS.items():
        assert setting.description, name


def test_the_transport_profile_holds_whole_frames() -> None:
    assert os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] == str(CONFIG / "fastdds.xml")
    root = xml.etree.ElementTree.parse(CONFIG / "fastdds.xml").getroot()
    name = "{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}"
    sizes = [int(item.text or 0) for item in root.iter(f"{name}segment_size")]
    assert sizes == [32 * 2**20]
    assert sizes[0] > 4 * 1920 * 1080 * 3
    assert [item.text for item in root.iter(f"{name}useBuiltinTransports")] == ["false"]


def rviz_displays(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((CONFIG / name).read_text())["Visualization Manager"]["Displays"]


def rviz_topics(name: str) -> list[str]:
    return [display["Topic"]["Value"] for display in rviz_displays(name)]


def policy(kind: Any, words: str) -> Any:
    return kind[words.upper().replace(" ", "_")]


def test_rviz_shows_everything_of_one_camera_and_the_overlays_of_two() -> None:
    outputs = ["overlay", "color", "labels", "attention", "attention_mask"]
    assert rviz_topics("ctxseg.rviz") == ["/image", *(f"/segment/{name}" for name in outputs)]
    assert rviz_topics("two_cameras.rviz") == [
        *("/front/image", "/segment/front/overlay", "/left/image", "/segment/left/overlay")
    ]


@pytest.mark.parametrize("name", ["ctxseg.rviz", "two_cameras.rviz"])
def test_rviz_asks_for_no_more_than_is_offered(name: str) -> None:
    for display in rviz_displays(name):
        topic = display["Topic"]
        asked = QoSProfile(
            depth=topic["Depth"],
            reliability=policy(ReliabilityPolicy, topic["Reliability Policy"]),
            durability=policy(DurabilityPolicy, topic["Durability Policy"]),
        )
        best_effort = qos.frames(ReliabilityPolicy.BEST_EFFORT)
        offered = qos.OUTPUT if topic["Value"].startswith("/segment/") else best_effort
        assert qos_check_compatible(offered, asked)[0] != QoSCompatibility.ERROR


@pytest.mark.parametrize("name", ["ctxseg.rviz", "two_cameras.rviz"])
def test_rviz_has_a_place_for_every_panel(name: str) -> None:
    geometry = yaml.safe_load((CONFIG / name).read_text())["Window Geometry"]
    layout = bytes.fromhex(geometry["QMainWindow State"])
    for panel in [display["Name"] for display in rviz_displays(name)]:
        assert panel in geometry
        # Qt's record of a dock: 0xfb, the length in bytes, the name.
        encoded = panel.encode("utf-16-be")
        assert b"\xfb" + len(encoded).to_bytes(4, "big") + encoded in layout
