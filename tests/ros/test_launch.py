# SPDX-License-Identifier: Apache-2.0
"""The launch files, executed by ros2/launch or by its stand-in, without starting processes."""

import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.context import Context
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

from ctxseg_ros.ros import qos, transport
from ctxseg_ros.ros.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
FILES = ("segment.launch.py", "demo.launch.py", "two_cameras.launch.py")
NEEDED = {
    "segment.launch.py": {},
    "demo.launch.py": {"source": "0"},
    "two_cameras.launch.py": {"front": "0", "left": "b.mp4"},
}
"""The arguments that have no default."""
ROOMY = transport.SharedMemory("/dev/shm", 2**33, 2**33)


def module_of(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


module_of("run_launch", Path(__file__).with_name("run_launch.py")).use_stand_in_if_missing()

from launch import LaunchContext  # noqa: E402

from ctxseg_ros.ros import launch_arguments  # noqa: E402

pytestmark = pytest.mark.slow


class Launched:
    """One launch file, executed: its context, and the fields of the Nodes that it made."""

    def __init__(self, name: str, command_line: list[str], included: dict[str, str]) -> None:
        self.context = LaunchContext(argv=command_line)
        given = dict(word.split(":=", 1) for word in command_line)
        self.context.launch_configurations.update(NEEDED[name] | given | included)
        self.module = module_of("launch_file", ROOT / "launch" / name)
        self.nodes: list[dict[str, Any]] = []
        self.module.Node = lambda **fields: self.nodes.append(fields)  # type: ignore[attr-defined]
        for argument in self.module.ARGUMENTS:
            argument.execute(self.context)
        self.actions = self.module.setup(self.context)

    def node(self, executable: str) -> dict[str, Any]:
        (node,) = [node for node in self.nodes if node["executable"] == executable]
        return node

    def parameters(self, executable: str = "segment_node") -> dict[str, Any]:
        """What the node gets beside its parameter file."""
        given = self.node(executable)["parameters"][-1]
        return {
            name: value.evaluate(self.context) if hasattr(value, "evaluate") else value
            for name, value in given.items()
        }

    def remappings(self, executable: str = "segment_node") -> dict[str, str]:
        return dict(self.node(executable)["remappings"])

    def passed(self) -> dict[str, str]:
        """What an included segment.launch.py gets."""
        return dict(self.actions[-1].launch_arguments)


Launch = Callable[..., Launched]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """run(FILE, *NAME:=VALUE, **included) -> Launched; as `ros2 launch ctxseg_ros FILE ...`, or
    with the arguments that an including launch file gives."""
    for name in transport.PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport.SharedMemory, "look", lambda: ROOMY)

    def run(name: str, *command_line: str, **included: str) -> Launched:
        words = ["ros2", "launch", "ctxseg_ros", name, *command_line]
        monkeypatch.setattr(sys, "argv", ["ros2", "launch", "x", "y.py"] if included else words)
        return Launched(name, list(command_line), included)

    return run


@pytest.fixture
def segment(run: Launch) -> Launch:
    """segment(*NAME:=VALUE) -> segment.launch.py, Launched."""
    return lambda *words, **included: run("segment.launch.py", *words, **included)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the launch files warn of."""
    said: list[str] = []
    monkeypatch.setattr(launch_arguments, "warn", said.append)
    return said


def names(module: types.ModuleType) -> set[str]:
    return {argument.name for argument in module.ARGUMENTS}


# Arguments


@pytest.mark.parametrize("name", FILES)
def test_every_argument_is_explained(run: Launch, name: str) -> None:
    for argument in run(name).module.ARGUMENTS:
        assert argument.description != "no description given", argument.name


def test_the_nodes_parameters_are_the_launch_arguments(run: Launch) -> None:
    assert set(launch_arguments.PARAMETERS) == set(SETTINGS)
    offered = names(run("segment.launch.py").module)
    assert offered >= set(SETTINGS) | {"respawn", "log_level", "use_sim_time", "params_file"}
    for name in ("demo.launch.py", "two_cameras.launch.py"):
        launched = run(name)
        # These depend on the camera, which is part of the file.
        own = {"cameras", "image_transport"} | {item for item in SETTINGS if "input_" in item}
        assert names(launched.module) >= set(SETTINGS) - (own - {"input_sizes"}), name
        assert names(launched.module) >= {"respawn", "log_level", "namespace", "shm"}, name
        assert set(launched.passed()) <= offered


@pytest.mark.parametrize("name", ["device", "refinement", "image_transport", "input_reliability"])
def test_choices_are_those_of_the_node(name: str) -> None:
    choices = launch_arguments.CHOICES[name]
    assert [SETTINGS[name].check(word) for word in choices] == list(choices)
    assert f"one of {', '.join(choices)}" == SETTINGS[name].allowed


def test_the_arguments_need_neither_onnx_nor_opencv() -> None:
    """`ros2 launch` runs in the system's interpreter, which may have neither."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'cv2', 'openvino', 'rich']));"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "import run_launch; run_launch.use_stand_in_if_missing();"
        "import ctxseg_ros.ros.launch_arguments, ctxseg_ros.ros.transport"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


VALUES = {
    "model": "segmenter_tiny",
    "input_sizes": "352x480, 256x352",
    "latency_budget_ms": "80",
    "min_confidence": "0.5",
    "label_groups": "groups.yaml",
    "attention_head": "3",
    "cameras": "front,left",
    "autostart": "False",
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_an_argument_reaches_the_node_as_its_parameter_takes_it(segment: Launch, name: str) -> None:
    assert segment().parameters() == {}
    setting = SETTINGS[name]
    text = VALUES.get(name) or str(setting.default)
    parameters = segment(f"{name}:={text}").parameters()
    assert set(parameters) == {name}
    setting.value(name, parameters[name])  # raises where the node would refuse it


@given(st.sampled_from(["on", "null", "12", "1e3", "~", "yes", "0x1", "007", "a: b", "[a"]))
def test_text_stays_text(text: str) -> None:
    (value,) = launch_arguments.given_parameters({"model": text}).values()
    assert value.evaluate(LaunchContext(argv=[])) == text


def test_paths_are_shown_in_full(
    segment: Launch, run: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    parameters = segment("model:=sub/x.onnx", "label_groups:=~/groups.yaml").parameters()
    assert parameters["model"] == str(tmp_path / "sub/x.onnx")
    assert parameters["label_groups"] == str(tmp_path / "home/groups.yaml")
    assert segment("model:=unet").parameters()["model"] == "unet"
    for source, shown in {
        "a.mp4": str(tmp_path / "a.mp4"),
        "0": "0",
        "rtsp://host/stream": "rtsp://host/stream",
        "/dev/video0": "/dev/video0",
    }.items():
        assert (
            run("demo.launch.py", f"source:={source}").parameters("camera_node")["source"] == shown
        )


# What is true or false


WORDS = {
    **dict.fromkeys(["true", "True", "TRUE", "1", "yes", "on"], True),
    **dict.fromkeys(["false", "False", "FALSE", "0", "no", "off"], False),
}


@pytest.mark.parametrize(("word", "value"), WORDS.items())
def test_booleans_are_taken_as_people_write_them(run: Launch, word: str, value: bool) -> None:
    demo = run("demo.launch.py", f"loop:={word}", f"shm:={word}")
    assert demo.parameters("camera_node")["loop"] is value
    assert bool(demo.node("camera_node")["additional_env"]) is value
    segment = run("segment.launch.py", f"respawn:={word}", f"use_sim_time:={word}")
    assert segment.node("segment_node")["respawn"] is value
    assert segment.parameters() == {"use_sim_time": value}
    assert SETTINGS["autostart"].check(word) is value


@pytest.mark.parametrize("name", ["rviz", "shm", "respawn", "use_sim_time"])
def test_what_is_neither_true_nor_false_is_an_error(segment: Launch, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name} must be true or false, not 'maybe'"):
        segment(f"{name}:=maybe")


def test_log_level_and_respawn(segment: Launch) -> None:
    assert segment().node("segment_node")["ros_arguments"] == []
    node = segment("log_level:=DEBUG", "respawn:=true").node("segment_node")
    assert node["ros_arguments"] == ["--log-level", "DEBUG"]
    assert node["respawn"] and node["respawn_delay"] > 0
    with pytest.raises(RuntimeError, match="log_level must be one of debug, info"):
        segment("log_level:=loud")


# Misspelt names


def misspelt(name: str, edit: str, place: int) -> str:
    place %= len(name)
    return {
        "doubled": name[:place] + name[place] + name[place:],
        "left out": name[:place] + name[place + 1 :],
        "swapped": name[:place] + name[place : place + 2][::-1] + name[place + 2 :],
        "capital": name.capitalize(),
        "dashes": name.replace("_", "-"),
    }[edit]


@pytest.mark.parametrize("file", FILES)
def test_a_misspelt_argument_is_named_with_the_nearest(
    run: Launch, warnings: list[str], file: str
) -> None:
    offered = names(run(file).module)

    @settings(deadline=None, max_examples=30)
    @given(
        st.sampled_from(sorted(offered)),
        st.sampled_from(["doubled", "left out", "swapped", "capital", "dashes"]),
        st.integers(0, 20),
    )
    def check(name: str, edit: str, place: int) -> None:
        wrong = misspelt(name, edit, place)
        warnings.clear()
        if wrong not in offered and wrong:
            run(file, f"{wrong}:=x")
            (said,) = warnings
            assert f"{file} has no argument {wrong}," in said
            assert "did you mean" in said

    check()
    warnings.clear()
    run(file, "colour:=red")
    assert len(warnings) == 1 and "no argument colour" in warnings[0]


def test_what_is_known_is_not_named(segment: Launch, warnings: list[str]) -> None:
    segment("model:=unet", "launch-prefix:=nice", "sigterm_timeout:=9")
    # Of a launch file that includes this one: it knows its own arguments.
    segment(camera="front", modell="x")
    assert warnings == []


# The parameter file


def test_a_parameter_file_that_is_missing_is_an_error(
    segment: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("model: x\n")
    for name, said in {
        "none.yaml": "does not exist",
        "folder": "is not a file",
        "broken.yaml": "cannot be read",
        "empty.yaml": "ros__parameters",
    }.items():
        with pytest.raises(RuntimeError, match=re.escape(str(tmp_path / name)) + ".*" + said):
            segment(f"params_file:={name}")
    with pytest.raises(RuntimeError, match="params_file is empty"):
        segment("params_file:=")


@pytest.mark.parametrize("cameras", [5, True, 1.5, [1, 2], [True, "front"], {"front": 1}])
def test_cameras_of_the_parameter_file_that_are_no_names_go_to_the_node_or_are_refused(
    segment: Launch, tmp_path: Path, cameras: Any
) -> None:
    """What is no name is never a traceback: the launch file or the node says what is allowed."""
    file = params(tmp_path / "p.yaml", {"cameras": cameras}, "/**")
    try:
        remappings = segment(file).remappings()
    except RuntimeError as error:
        assert "cannot be a name in ROS" in str(error)
    else:
        assert {name.partition("/")[0] for name in remappings} <= {"true", "front"}


LISTS = ["front,left", "[front, left]", "['front','left']", '["front", "left"]', " [ front,left ] "]


@pytest.mark.parametrize("text", LISTS)
def test_lists_are_taken_as_yaml_and_people_write_them(segment: Launch, text: str) -> None:
    launched = segment(f"cameras:={text}")
    assert {"front/image", "left/image"} < set(launched.remappings())
    assert SETTINGS["cameras"].check(launched.parameters()["cameras"]) == ["front", "left"]
    sizes = text.replace("front", "352x480").replace("left", "256x352")
    given = segment(f"input_sizes:={sizes}").parameters()["input_sizes"]
    assert SETTINGS["input_sizes"].check(given) == [(352, 480), (256, 352)]


@pytest.mark.parametrize("text", ["null", "~", "[]", '[""]'])
def test_no_cameras_over_those_of_the_parameter_file(
    segment: Launch, tmp_path: Path, text: str
) -> None:
    file = params(tmp_path / "p.yaml", {"cameras": ["front"]}, "/**")
    launched = segment(file, f"cameras:={text}", "image:=/cam/image")
    assert launched.remappings() == {"image": "/cam/image", "camera_info": "/cam/camera_info"}
    assert SETTINGS["cameras"].value("cameras", launched.parameters()["cameras"]) == []


def test_what_only_pythons_yaml_refuses_is_read_as_ros_reads_it(
    segment: Launch, tmp_path: Path
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("/**:\n  ros__parameters:\n    built: 2026-02-30\n    cameras: [front]\n")
    assert "front/image" in segment(f"params_file:={file}").remappings()


SECTIONS = {
    "/**": True,
    "segment": True,
    "/segment": True,
    "/*": True,
    "/**/segment": True,
    "/robot/segment": False,
    "segment_node": False,
    "other": False,
}


def params(path: Path, parameters: dict[str, Any], *keys: str) -> str:
    content: Any = {"ros__parameters": parameters}
    for key in reversed(keys):
        content = {key: content}
    path.write_text(yaml.safe_dump(content))
    return f"params_file:={path}"


@pytest.mark.parametrize(("key", "counts"), SECTIONS.items())
def test_cameras_of_the_parameter_file_count_for_image(
    segment: Launch, warnings: list[str], tmp_path: Path, key: str, counts: bool
) -> None:
    file = params(tmp_path / "p.yaml", {"cameras": ["front", "left"]}, key)
    remappings = segment(file, "image:=rgb/image_raw").remappings()
    if counts:
        assert remappings == {
            f"{name}/{topic}": f"{name}/rgb/{target}"
            for name in ("front", "left")
            for topic, target in (("image", "image_raw"), ("camera_info", "camera_info"))
        }
        assert warnings == []
    else:
        assert remappings == {"image": "rgb/image_raw", "camera_info": "rgb/camera_info"}
        assert len(warnings) == 1 and key in warnings[0] and "/segment" in warnings[0]


@pytest.mark.parametrize("keys", [("robot", "segment"), ("/robot/segment",), ("/*/segment",)])
def test_the_parameter_file_is_read_for_the_nodes_own_namespace(
    segment: Launch, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    file = params(tmp_path / "p.yaml", {"cameras": "front"}, *keys)
    assert "front/image" in segment(file, "namespace:=robot").remappings()
    assert (
        "front/image"
        in segment(
            params_file=file.partition("=")[2], ros_namespace="robot", namespace=""
        ).remappings()
    )
    with pytest.raises(RuntimeError, match="front/image_raw"):
        segment(file, "namespace:=/robot", "image:=/cam/image_raw")


def cameras_in_ros(file: str, namespace: str) -> list[str]:
    """The parameter `cameras` of a node `segment` that ROS starts with this file."""
    context = Context()
    rclpy.init(args=["--ros-args", "--params-file", file], context=context)
    node = rclpy.create_node("segment", namespace=namespace, context=context)
    try:
        return list(node.declare_parameter("cameras", [""]).value)
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


@pytest.mark.parametrize(
    "keys",
    [
        ("/**",),
        ("segment",),
        ("/segment",),
        ("/robot/segment",),
        ("robot/segment",),
        ("robot", "segment"),
        ("/*",),
        ("/*/segment",),
        ("/**/segment",),
        ("/**", "segment"),
        ("/robot/*",),
        ("/robot/**",),
        ("/other/segment",),
        ("segment_node",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("namespace", ["/", "/robot", "/a/robot"])
def test_the_parameter_file_is_read_as_ros_reads_it(
    tmp_path: Path, keys: tuple[str, ...], namespace: str
) -> None:
    file = params(tmp_path / "p.yaml", {"cameras": ["front"]}, *keys).partition("=")[2]
    found = launch_arguments.file_parameters(file, f"{namespace.rstrip('/')}/segment")
    assert ({"cameras": [""]} | found)["cameras"] == cameras_in_ros(file, namespace)


@pytest.mark.parametrize("other", ["/**", "/*", "segment", "/**/segment"])
@pytest.mark.parametrize("first", [True, False])
def test_of_two_keys_the_one_counts_that_ros_takes(tmp_path: Path, other: str, first: bool) -> None:
    file = tmp_path / "p.yaml"
    keys = ["/segment", other] if first else [other, "/segment"]
    sections = {key: {"ros__parameters": {"cameras": [f"of_{i}"]}} for i, key in enumerate(keys)}
    file.write_text(yaml.safe_dump(sections, sort_keys=False))
    found = launch_arguments.file_parameters(str(file), "/segment")
    assert found["cameras"] == cameras_in_ros(str(file), "/")


def test_cameras_of_the_command_line_come_first(segment: Launch, tmp_path: Path) -> None:
    file = params(tmp_path / "p.yaml", {"cameras": ["front"]}, "/**")
    assert "rear/image" in segment(file, "cameras:=rear").remappings()


# Topics


def test_camera_info_is_beside_the_image_unless_it_is_named(segment: Launch) -> None:
    assert segment("image:=/cam/image_raw").remappings() == {
        "image": "/cam/image_raw",
        "camera_info": "/cam/camera_info",
    }
    assert segment("image:=rect", "camera_info:=info").remappings() == {
        "image": "rect",
        "camera_info": "info",
    }


# YAML reads the bare words on and null as something else than text.
@pytest.mark.parametrize("cameras", ["front", "front,left", " on, null "])
def test_cameras_reach_the_node_as_names(segment: Launch, cameras: str) -> None:
    launched = segment(f"cameras:={cameras}", "image:=rgb/image_raw")
    expected = cameras.replace(" ", "").split(",")
    assert SETTINGS["cameras"].check(launched.parameters()["cameras"]) == expected
    assert launched.remappings() == {
        f"{name}/{topic}": f"{name}/rgb/{target}"
        for name in expected
        for topic, target in (("image", "image_raw"), ("camera_info", "camera_info"))
    }


@pytest.mark.parametrize("cameras", ["2nd", "front,", "front left", "a-b", "/front", "a/b"])
def test_cameras_without_a_name_in_ros_are_refused(segment: Launch, cameras: str) -> None:
    with pytest.raises(RuntimeError, match=r"name in ROS.*cameras:=front,left"):
        segment(f"cameras:={cameras}")


def test_topics_of_several_cameras_cannot_be_absolute(segment: Launch) -> None:
    fix = "image:=image_raw reads front/image_raw"
    with pytest.raises(RuntimeError, match=re.escape(fix)):
        segment("cameras:=front,left", "image:=/cam/image_raw")
    with pytest.raises(RuntimeError, match="camera_info is /info"):
        segment("cameras:=front,left", "camera_info:=/info")


# Transport and logs


def test_every_process_gets_the_profile_that_fits(
    run: Launch, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def profiles(name: str, *words: str) -> set[str]:
        nodes = run(name, "rviz:=false", *words).nodes
        assert nodes
        return {path for node in nodes for path in node["additional_env"].values()} or {""}

    small = transport.SharedMemory("/dev/shm", 64 * 2**20, 64 * 2**20)
    for name in FILES:
        assert profiles(name) == {str(CONFIG / "fastdds.xml")}
        assert profiles(name, "shm:=false") == {""}
    assert warnings == []
    monkeypatch.setattr(transport.SharedMemory, "look", lambda: small)
    for name in FILES:
        assert profiles(name) == {str(CONFIG / "fastdds_small.xml")}
    # segment.launch.py says so; the others include it.
    assert len(warnings) == 1 and "--shm-size" in warnings[0]
    monkeypatch.setenv(transport.PROFILE_VARIABLES[0], str(CONFIG / "fastdds_small.xml"))
    assert profiles("segment.launch.py") == {""}


@pytest.mark.parametrize("name", FILES)
def test_the_log_folder_gets_what_the_terminal_gets(run: Launch, name: str) -> None:
    assert {node["output"] for node in run(name).nodes} == {"both"}


# RViz


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """install(PACKAGE) -> ROS finds the package; nothing else is installed."""
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    folder = tmp_path / "share/ament_index/resource_index/packages"
    folder.mkdir(parents=True)
    return lambda package: (folder / package).touch()


def test_without_rviz_the_rest_starts_and_the_topic_is_named(
    segment: Launch, warnings: list[str], install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    assert [node["package"] for node in segment("rviz:=true").nodes] == ["ctxseg_ros"]
    (said,) = warnings
    assert "apt install ros-kilted-rviz2" in said and "/segment/overlay" in said.split()
    warnings.clear()
    segment("rviz:=true", "namespace:=robot", "cameras:=front,left")
    assert "/robot/segment/front/overlay" in warnings[0].split()
    warnings.clear()
    segment()
    assert warnings == []


def test_rviz_shows_the_only_or_the_first_camera(segment: Launch, install: Any) -> None:
    install("rviz2")
    launched = segment("rviz:=true", "namespace:=robot", "image:=/cam/image_raw")
    rviz = launched.node("rviz2")
    assert rviz["namespace"] == "robot"
    assert rviz["arguments"] == ["-d", str(CONFIG / "ctxseg.rviz")]
    shown = launched.remappings("rviz2")
    assert shown["/image"] == "/cam/image_raw"
    assert shown["/segment/overlay"] == "segment/overlay"
    assert set(shown) >= set(rviz_topics(CONFIG / "ctxseg.rviz"))

    launched = segment("rviz:=true", "cameras:=front,left", "image:=image_raw")
    shown = launched.remappings("rviz2")
    assert shown["/image"] == shown["/front/image"] == "front/image_raw"
    assert shown["/segment/overlay"] == shown["/segment/front/overlay"] == "segment/front/overlay"
    for name in ("ctxseg.rviz", "two_cameras.rviz"):
        assert set(shown) >= set(rviz_topics(CONFIG / name))


@pytest.mark.parametrize("name", ["ctxseg.rviz", "two_cameras.rviz"])
@pytest.mark.parametrize("where", ["argument", "file"])
def test_rviz_shows_compressed_cameras(
    segment: Launch, warnings: list[str], install: Any, tmp_path: Path, name: str, where: str
) -> None:
    install("rviz2")
    word = "image_transport:=compressed"
    if where == "file":
        word = params(tmp_path / "p.yaml", {"image_transport": "compressed"}, "/**")
    launched = segment(
        "rviz:=true", f"rviz_config:={CONFIG / name}", "cameras:=front,left", "image:=cam", word
    )
    (config,) = launched.node("rviz2")["arguments"][1:]
    raw = rviz_topics(CONFIG / name)
    expected = [f"{topic}/compressed" if topic.endswith("/image") else topic for topic in raw]
    assert rviz_topics(Path(config)) == expected != raw
    shown = launched.remappings("rviz2")
    assert shown["/front/image/compressed"] == "front/cam/compressed"
    assert "compressed-image-transport" in warnings[0]  # RViz's own plugin for it
    install("compressed_image_transport")
    warnings.clear()
    segment("rviz:=true", word)
    assert warnings == []
    assert set(expected) <= set(shown)


def test_rviz_comes_with_the_diagnostics_monitor_where_there_is_one(
    segment: Launch, install: Any
) -> None:
    install("rqt_runtime_monitor")
    assert [node["package"] for node in segment().nodes] == ["ctxseg_ros"]
    monitor = segment("rviz:=true").node("rqt_runtime_monitor")
    assert dict(monitor["remappings"]) == {"diagnostics": "/diagnostics"}


# The files that include segment.launch.py


def test_the_demo_ends_with_its_camera(run: Launch) -> None:
    from launch.actions import Shutdown

    launched = run("demo.launch.py")
    assert isinstance(launched.node("camera_node")["on_exit"], Shutdown)


def test_the_demo_offers_what_make_demo_uses(run: Launch) -> None:
    assert run("demo.launch.py").passed()["input_sizes"] == "auto"
    passed = run("demo.launch.py", "input_sizes:=64x96", "min_confidence:=0.5").passed()
    assert (passed["input_sizes"], passed["min_confidence"]) == ("64x96", "0.5")


def test_two_cameras_share_one_segmenter(run: Launch) -> None:
    launched = run("two_cameras.launch.py", "namespace:=robot", "rviz:=false")
    assert [node["namespace"] for node in launched.nodes] == ["robot/front", "robot/left"]
    given = [node["parameters"][0] for node in launched.nodes]
    assert len({item["frame_id"] for item in given}) == 2
    assert given[0]["source"].evaluate(launched.context) == "0"
    passed = launched.passed()
    assert passed["cameras"] == "front,left"
    assert passed["namespace"] == "robot"
    assert Path(passed["rviz_config"]).is_file()
    launched = run("two_cameras.launch.py")
    assert [node["namespace"] for node in launched.nodes] == ["front", "left"]


@pytest.mark.parametrize("name", ["demo.launch.py", "two_cameras.launch.py"])
def test_a_missing_source_is_an_error(run: Launch, name: str) -> None:
    argument = run(name).module.ARGUMENTS[0]
    assert argument.name in NEEDED[name] and argument.default_value is None
    with pytest.raises(RuntimeError, match=argument.name):
        argument.execute(LaunchContext(argv=[]))


# pytest on a ROS machine


@pytest.mark.parametrize("plugin", ["launch_ros", "launch_testing", "launch_pytest"])
def test_pytest_starts_where_launchs_plugins_are_installed(plugin: str, tmp_path: Path) -> None:
    """They load by themselves, and their hooks are unknown to newer versions of pytest."""
    (tmp_path / "plugin_of_launch.py").write_text("def pytest_launch_collect_makemodule(): pass\n")
    information = tmp_path / "plugin_of_launch-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: plugin_of_launch\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[pytest11]\n{plugin} = plugin_of_launch\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/realtime/test_stamps.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# Files of config/


def test_segment_yaml_holds_every_parameter_with_its_default() -> None:
    written = yaml.safe_load((CONFIG / "segment.yaml").read_text())["/**"]["ros__parameters"]
    assert written == {name: setting.default for name, setting in SETTINGS.items()}
    for name, setting in SETTINGS.items():
        assert setting.description, name


def rviz_displays(path: Path) -> list[dict[str, Any]]:
    return yaml.safe_load(path.read_text())["Visualization Manager"]["Displays"]


def rviz_topics(path: Path) -> list[str]:
    return [display["Topic"]["Value"] for display in rviz_displays(path)]


def policy(kind: Any, words: str) -> Any:
    return kind[words.upper().replace(" ", "_")]


def test_rviz_shows_everything_of_one_camera_and_the_overlays_of_two() -> None:
    outputs = ["overlay", "color", "labels", "attention", "attention_mask"]
    assert rviz_topics(CONFIG / "ctxseg.rviz") == [
        "/image",
        *(f"/segment/{name}" for name in outputs),
    ]
    assert rviz_topics(CONFIG / "two_cameras.rviz") == [
        *("/front/image", "/segment/front/overlay", "/left/image", "/segment/left/overlay")
    ]


@pytest.mark.parametrize("name", ["ctxseg.rviz", "two_cameras.rviz"])
def test_rviz_asks_for_no_more_than_is_offered(name: str) -> None:
    for display in rviz_displays(CONFIG / name):
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
    for panel in [display["Name"] for display in rviz_displays(CONFIG / name)]:
        assert panel in geometry
        # Qt's record of a dock: 0xfb, the length in bytes, the name.
        encoded = panel.encode("utf-16-be")
        assert b"\xfb" + len(encoded).to_bytes(4, "big") + encoded in layout
