# SPDX-License-Identifier: Apache-2.0
"""The launch files, where ros2/launch is installed; and what they rely on, where it is not."""

import importlib
import os
import sys
import types
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctxseg_ros.ros.segmenter import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
ARGUMENTS = {
    "model",
    "device",
    "image",
    "camera_info",
    "namespace",
    "params_file",
    "latency_budget_ms",
    "image_transport",
    "rviz",
    "shm",
}


def load(name: str) -> types.ModuleType:
    """A launch file as a module; skips where launch is not installed."""
    # The folder launch/ of this checkout can be imported as a package without content.
    pytest.importorskip("launch.actions", reason="ros2/launch is not installed")
    pytest.importorskip("launch_ros.actions", reason="ros2/launch_ros is not installed")
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


def test_every_argument_is_there_and_explained() -> None:
    module = load("segment.launch.py")
    described = {item.name: item.description for item in module.ARGUMENTS}
    assert set(described) == ARGUMENTS
    assert all(described.values())


def test_arguments_override_the_file_and_others_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name)
    module = load("segment.launch.py")
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "Node", lambda **fields: made.append(fields))

    def arguments(**given: str) -> dict[str, Any]:
        module.setup(configured(module, **given))
        return made[-1]

    node = arguments()
    assert node["parameters"] == [str(CONFIG / "segment.yaml"), {}]
    assert node["additional_env"] == dict.fromkeys(
        ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"),
        str(CONFIG / "fastdds.xml"),
    )
    node = arguments(
        model="x.onnx", latency_budget_ms="80", image="/cam/image_raw", namespace="robot"
    )
    assert node["parameters"][1] == {"model": "x.onnx", "latency_budget_ms": 80.0}
    assert node["namespace"] == "robot"
    assert node["remappings"] == [("image", "/cam/image_raw"), ("camera_info", "/cam/camera_info")]
    assert arguments(shm="false")["additional_env"] == {}
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert arguments()["additional_env"] == {}
    with pytest.raises(RuntimeError, match="latency_budget_ms must be a number, not 'fast'"):
        arguments(latency_budget_ms="fast")
    made.clear()
    arguments(rviz="true")
    assert made[-1]["package"] == "rviz2"


def test_the_demo_has_a_camera_and_the_segmenter() -> None:
    module = load("demo.launch.py")
    actions = module.setup(configured(module, source="0"))
    assert [type(action).__name__ for action in actions] == ["Node", "IncludeLaunchDescription"]


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


def test_rviz_shows_camera_overlay_and_labels() -> None:
    displays = yaml.safe_load((CONFIG / "ctxseg.rviz").read_text())["Visualization Manager"]
    topics = [display["Topic"]["Value"] for display in displays["Displays"]]
    assert topics == ["/image", "/segment/overlay", "/segment/labels"]
