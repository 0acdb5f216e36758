# SPDX-License-Identifier: Apache-2.0
"""What a node's process is started with: parameters from files and the command line, and errors."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rclpy.context import Context
from rclpy.node import Node

from ctxseg_ros.ros import startup
from ctxseg_ros.ros.settings import SETTINGS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def params_file(folder: Path, text: str) -> list[str]:
    path = folder / "params.yaml"
    path.write_text(text)
    return ["--params-file", str(path)]


def run(*arguments: str | bytes, code: str = "", **environment: str) -> str:
    """What a segment_node that cannot start writes, which is one line of its own."""
    script = ["-c", code] if code else ["-m", "ctxseg_ros.ros.segment_node"]
    done = subprocess.run(
        [sys.executable, *script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "The node cannot start" in line]
    return line


# Parameters from files and the command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "cameras:=[]", "-p", "input_sizes:=[]", "-p", "label_groups:=[]"],
        ["-p", "cameras:=null", "-p", "input_sizes:=~", "-p", "latency_budget_ms:=null"],
        ["-p", 'cameras:=""', "-p", 'input_sizes:=[""]', "-p", "max_age_ms:=[]"],
        None,
    ],
)
def test_nothing_given_is_the_default(
    graph: Any, model_factory: Callable[..., Path], tmp_path: Path, arguments: list[str] | None
) -> None:
    empty = "segment:\n  ros__parameters:\n    device: cpu\n    cameras: []\n    input_sizes: []\n"
    arguments = arguments or params_file(tmp_path, empty)
    graph.start("segment_node", arguments=arguments, model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    for name in ("cameras", "input_sizes", "label_groups", "latency_budget_ms", "max_age_ms"):
        assert graph.get(name) == SETTINGS[name].default, name
    assert graph.values()["topic"] == "/image"
    assert graph.set("input_sizes", [])[0]
    assert graph.get("input_sizes") == [""]


def test_every_kind_as_people_write_it(
    graph: Any, model_factory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "\U0001f697"
    home.mkdir()
    model_factory(path=home / "7.onnx")
    monkeypatch.setenv("HOME", str(home))
    arguments = params_file(
        tmp_path,
        "/**:\n"
        "  ros__parameters:\n"
        "    model: ~/7.onnx\n"
        "    cameras: front\n"
        "    input_sizes: 64x96,32x48\n"
        "    latency_budget_ms: '500'\n"
        "    max_age_ms: 1e4\n"
        "    attention_head: '2'\n"
        "    autostart: 'True'\n",
    )
    graph.start("segment_node", arguments=[*arguments, "-p", "device:='cpu'"])
    graph.wait_for_state("active")
    assert graph.get("model") == f"{home}/7.onnx"
    assert graph.get("cameras") == ["front"]
    assert graph.get("input_sizes") == ["64x96", "32x48"]
    assert (graph.get("latency_budget_ms"), graph.get("max_age_ms")) == (500.0, 1e4)
    assert (graph.get("attention_head"), graph.get("autostart")) == (2, True)


def test_camera_node_takes_the_same(
    graph: Any, wait: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "\U0001f697"
    (home / "7").mkdir(parents=True)
    cv2.imwrite(str(home / "7" / "1.png"), np.zeros((32, 48, 3), np.uint8))
    monkeypatch.setenv("HOME", str(home))
    arguments = ["-p", "frame_id:=7", "-p", "loop:='off'", "-p", "rate_hz:='20'"]
    process = graph.start("camera_node", arguments=[*arguments, "-p", "source:=~/7"])
    assert process.process.wait(60) == 0
    assert "1 frames sent" in process.output
    process = graph.start("camera_node", arguments=["-p", "source:=97"])
    assert process.process.wait(60) == 1
    assert "camera 97" in process.output


@pytest.mark.parametrize(
    ("node", "arguments", "names"),
    [
        ("segment_node", ["-p", "latency_budget:=100"], ["latency_budget_ms"]),
        ("segment_node", ["-p", "modell:=x", "-p", "minConfidence:=1"], ["model", "min_confi"]),
        ("segment_node", ["-p", "class_names:=[a]"], ["class_names"]),
        ("segment_node", ["-p", "camera:model:=x"], ["camera", "/segment"]),
        ("segment_node", ["-r", "model:=x"], ["-p model:=x"]),
        ("segment_node", ["--", "model:=x"], ["-p model:=x"]),
        ("segment_node", ["-p", "qos_overrides./labels.publisher.depth:=2"], ["/labels", "topic"]),
        ("camera_node", ["-p", "rate:=5"], ["rate_hz"]),
        ("camera_node", ["--", "drive.mp4"], ["drive.mp4"]),
    ],
)
def test_what_does_nothing_is_named(
    graph: Any, wait: Any, model_factory: Callable[..., Path], tmp_path: Path, node: str,
    arguments: list[str], names: list[str],
) -> None:  # fmt: skip
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((32, 48, 3), np.uint8))
    parameters = {"camera_node": {"source": tmp_path}, "segment_node": {"model": model_factory()}}
    pairs = [word for k, v in parameters[node].items() for word in ("-p", f"{k}:={v}")]
    process = graph.start(node, arguments=[*pairs, *arguments, "--ros-args"])
    wait(lambda: any("[WARN]" in line and names[0] in line for line in process.output.split("\n")))
    if node == "segment_node":
        graph.wait_for_state("active")
    warned = "".join(line for line in process.output.split("\n") if "[WARN]" in line)
    assert all(name in warned for name in names)


def test_good_parameters_warn_of_nothing(graph: Any, model_factory: Callable[..., Path]) -> None:
    override = {"qos_overrides./segment/labels.publisher.depth": 2}
    arguments = [
        "-r",
        "image:=/cam/image",
        "-p",
        "use_sim_time:=false",
        "-p",
        "segment:device:=cpu",
    ]
    process = graph.start("segment_node", arguments=arguments, model=model_factory(), **override)
    graph.wait_for_state("active")
    assert "ignored" not in process.output and "no parameter" not in process.output


@pytest.mark.parametrize("section", ["segment_node", "segmenter", "/robot/segment", "camera"])
def test_a_params_file_for_another_node_is_named(
    graph: Any, wait: Any, tmp_path: Path, section: str
) -> None:
    text = f"{section}:\n  ros__parameters:\n    autostart: false\n    model: nonsense\n"
    process = graph.start("segment_node", arguments=params_file(tmp_path, text), autostart=False)
    wait(lambda: "[WARN]" in process.output)
    assert f"under {section} are ignored" in process.output and "/segment:" in process.output
    assert graph.get("model") == SETTINGS["model"].default


SECTIONS = ["segment", "/segment", "/**", "/*", "*", "**", "*/segment", "/**/segment", "/ns/**",
            "ns/segment", "/ns/a/segment", "other", "/other/**", "segment_node"]  # fmt: skip


@pytest.mark.parametrize("namespace", ["/", "/ns", "/ns/a"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_called_ignored_just_where_ros_ignores_it(
    section: str, namespace: str, tmp_path: Path
) -> None:
    text = f'"{section}":\n  ros__parameters:\n    a: 1\n'
    arguments = params_file(tmp_path, text)
    context = Context()
    context.init(["--ros-args", *arguments])
    try:
        node = Node("segment", namespace=namespace, context=context)
        applied = node.declare_parameter("a", 0).value == 1
        name = node.get_fully_qualified_name()
        said = startup.ignored(["--ros-args", *arguments], name, node.has_parameter)
        assert len(said) == (not applied)
        node.destroy_node()
    finally:
        context.shutdown()


def test_other_nodes_sections_beside_ones_own_are_left_alone(tmp_path: Path) -> None:
    nested = "ns:\n  segment:\n    ros__parameters: {a: 1}\nplanner:\n  ros__parameters: {b: 1}\n"
    arguments = ["--ros-args", *params_file(tmp_path, nested)]
    assert not startup.ignored(arguments, "/ns/segment", lambda _: False)
    (said,) = startup.ignored(arguments, "/other/segment", lambda _: False)
    assert "ns/segment and planner" in said
    params_file(tmp_path, "/**: {ros__parameters: {}}\nsegment_node: {ros__parameters: {a: 1}}\n")
    (said,) = startup.ignored(arguments, "/segment", lambda _: False)
    assert "under segment_node are" in said


@pytest.mark.parametrize("value", ["2026-13-45", "2026-02-30 12:00:00", "0x_", "!robot r2"])
def test_what_only_yaml_cannot_read_does_not_end_the_node(value: str, tmp_path: Path) -> None:
    """ROS takes these values for texts."""
    arguments = params_file(tmp_path, f"/**:\n  ros__parameters:\n    note: {value}\n")
    assert startup.ignored(["--ros-args", *arguments], "/segment", lambda _: False) == []


# Why a node does not start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--log-level", "verbose"], "debug, info, warn, error or fatal"),
        (["-r", "__node:=a-b"], "a-b"),
        (["-r", "image:=/cam-1/image"], "letters, digits, _ and /"),
        (["-r", "image:=/cam 1/image"], "letters, digits, _ and /"),
        (["-r", "image:="], "-r FROM:=TO"),
        (["-r", "image=/cam"], "-r FROM:=TO"),
        (["-r", "__ns:=robot-1"], "letters, digits, _ and /"),
        (["--params-file", "/does/not/exist.yaml"], "check the path"),
        (["model:=x"], "-p NAME:=VALUE"),
        (["-p", "model=x"], "-p NAME:=VALUE"),
        (["-p", "model:="], "an empty text"),
        (["-p", "input_sizes:=[1, 32x48]"], "quote every item"),
        (["-p", b"model:=caf\xe9.onnx"], "is not UTF-8"),
    ],
)
def test_arguments_that_ros_cannot_read_are_one_line(arguments: list[Any], said: str) -> None:
    line = run("--ros-args", *arguments)
    assert said in line and ".c:" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("segment:\n  ros__parameters:\n    model:\n", 'write ""'),
        ("segment:\n  ros__parameters:\n", "NAME: VALUE"),
        ("segment:\n  model: x\n", "NAME: VALUE"),
        ("model: x\n", "NAME: VALUE"),
        ("segment:\n  ros__parameters:\n    cameras: [front, 2]\n", "quote every item"),
        ("segment:\n\tros__parameters:\n", "tabs"),
        ("segment:\n  ros__parameters:\n    model: caf\udce9\n", "UTF-8"),
    ],
)
def test_params_files_that_ros_cannot_read_are_one_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, errors="surrogateescape")
    line = run("--ros-args", "--params-file", str(path))
    assert said in line and "params.yaml" in line and ".c:" not in line


@pytest.mark.parametrize("module", ["rclpy", "diagnostic_msgs", "lifecycle_msgs.srv"])
def test_without_ros_it_says_so(module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from ctxseg_ros.ros.segment_node import main; sys.exit(main())"
    )
    line = run(code=code, ROS_DISTRO="")
    assert "ROS 2 is not installed" in line or "ROS 2 is installed" in line
    assert "pip install diagnostic_msgs" not in line and "pip install rclpy" not in line


def distribution(ros: Path, name: str, python: str = PYTHON) -> None:
    (ros / name / "lib" / python / "site-packages" / "rclpy").mkdir(parents=True)
    (ros / name / "setup.bash").touch()


MISSING = ImportError("No module named 'diagnostic_msgs'", name="diagnostic_msgs")
UNBUILT = ImportError("librcl_action.so: cannot open shared object file: No such file")


@pytest.mark.parametrize("error", [MISSING, UNBUILT])
def test_the_cause_of_missing_ros_is_the_true_one(
    error: ImportError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    said = startup.missing_module(error, tmp_path)
    assert "not installed" in said and "ctxseg_ros[ros]" in said and "make demo" in said
    distribution(tmp_path, "old", "python3.5")
    said = startup.missing_module(error, tmp_path)
    assert "another Python" in said and "python3.5" in said and PYTHON in said
    distribution(tmp_path, "jazzy")
    said = startup.missing_module(error, tmp_path)
    assert f"source {tmp_path}/jazzy/setup.bash" in said and "old" not in said
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    said = startup.missing_module(MISSING, tmp_path)
    assert "sudo apt install ros-jazzy-diagnostic-msgs" in said


def test_other_modules_are_pips() -> None:
    said = startup.missing_module(ImportError("No module named 'cv2'", name="cv2"))
    assert "pip install opencv-python-headless" in said and "ROS 2" not in said
