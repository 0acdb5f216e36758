# SPDX-License-Identifier: Apache-2.0
"""Labels cameras' frames: ros2 launch ctxseg_ros segment.launch.py model:=segmenter_tiny."""

import os
import re
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch_ros.actions import Node

CONFIG = Path(__file__).parents[1] / "config"
PROFILE = CONFIG / "fastdds.xml"
# Fast DDS 2 (Jazzy) reads the first, Fast DDS 3 (Kilted and later) the second.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
KEEP = "empty: as in params_file"
TEXTS = ("model", "device", "label_groups", "image_transport")
PICTURES = ("overlay", "color", "labels", "attention", "attention_mask")

ARGUMENTS = [
    DeclareLaunchArgument(
        "model", default_value="", description=f"name of a model or path of an .onnx ({KEEP})"
    ),
    DeclareLaunchArgument(
        "device",
        default_value="",
        choices=["", "auto", "tensorrt", "cuda", "openvino", "cpu"],
        description=f"where the model runs ({KEEP})",
    ),
    DeclareLaunchArgument(
        "input_sizes",
        default_value="",
        description="sizes HxW at which the model may run, largest first, such as "
        f"352x480,256x352 ({KEEP})",
    ),
    DeclareLaunchArgument(
        "label_groups",
        default_value="",
        description=f"path of a YAML that regroups the model's classes ({KEEP})",
    ),
    DeclareLaunchArgument(
        "cameras",
        default_value="",
        description="namespaces of the cameras that share the model, such as front,left "
        f"({KEEP}; none there: one camera without a namespace)",
    ),
    DeclareLaunchArgument(
        "image",
        default_value="image",
        description="the camera's image topic; with cameras, in each one's namespace",
    ),
    DeclareLaunchArgument(
        "camera_info", default_value="", description="its CameraInfo topic (empty: beside image)"
    ),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
    DeclareLaunchArgument(
        "params_file",
        default_value=str(CONFIG / "segment.yaml"),
        description="YAML with the node's parameters",
    ),
    DeclareLaunchArgument(
        "latency_budget_ms",
        default_value="",
        description=f"camera stamp to published labels, 0: only report it ({KEEP})",
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="",
        choices=["", "raw", "compressed"],
        description=f"raw, or compressed: JPEG or PNG on IMAGE/compressed ({KEEP})",
    ),
    DeclareLaunchArgument(
        "rviz",
        default_value="false",
        choices=["true", "false"],
        description="show the first camera and its labels in RViz, and /diagnostics in "
        "rqt_runtime_monitor where that is installed",
    ),
    DeclareLaunchArgument(
        "rviz_config",
        default_value=str(CONFIG / "ctxseg.rviz"),
        description="what RViz shows; its topics as they are without a namespace",
    ),
    DeclareLaunchArgument(
        "shm",
        default_value="true",
        choices=["true", "false"],
        description="Fast DDS with shared memory for whole frames (config/fastdds.xml); "
        "the camera's process needs the same profile",
    ),
]


def setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node, and RViz where it is wanted."""
    values = context.launch_configurations
    cameras = listed(values["cameras"])
    inputs = input_topics(cameras, values["image"], values["camera_info"])
    actions, profile = transport(values["shm"] == "true")
    common = {"namespace": values["namespace"], "additional_env": profile}
    actions.append(
        Node(
            package="ctxseg_ros",
            executable="segment_node",
            name="segment",
            output="screen",
            parameters=[values["params_file"], overrides(values)],
            remappings=list(inputs.items()),
            **common,
        )
    )
    if values["rviz"] == "true":
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                name="rviz",
                arguments=["-d", values["rviz_config"]],
                remappings=list(shown_topics(cameras, inputs).items()),
                **common,
            )
        )
        actions += diagnostics_monitor()
    return actions


def listed(text: str) -> list[str]:
    """The items of "a,b"."""
    return [item.strip() for item in text.split(",")] if text.strip() else []


def overrides(values: dict[str, str]) -> dict[str, Any]:
    """The parameters that arguments set. Not the empty ones: launch_ros takes no empty list."""
    found: dict[str, Any] = {name: values[name] for name in TEXTS if values[name]}
    for name in ("cameras", "input_sizes"):
        if items := listed(values[name]):
            found[name] = items
    if budget := values["latency_budget_ms"]:
        try:
            found["latency_budget_ms"] = float(budget)
        except ValueError:
            raise RuntimeError(f"latency_budget_ms must be a number, not {budget!r}") from None
    return found


def input_topics(cameras: list[str], image: str, camera_info: str) -> dict[str, str]:
    """The node's inputs, and the topics that they are read from."""
    for camera in cameras:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", camera):
            raise RuntimeError(
                f"cameras holds {camera!r}, which is no name in ROS: give letters, digits and _, "
                "no digit first, separated by commas, as in cameras:=front,left"
            )
    topics = {
        "image": image,
        "camera_info": camera_info or "/".join([*image.split("/")[:-1], "camera_info"]),
    }
    for name, topic in topics.items():
        if cameras and topic.startswith("/"):
            raise RuntimeError(
                f"{name} is {topic}, with cameras it must be the topic inside each camera's "
                f"namespace: {name}:={topic.rpartition('/')[2]} reads "
                f"{cameras[0]}/{topic.rpartition('/')[2]}"
            )
    places = [f"{camera}/" for camera in cameras] or [""]
    return {
        f"{place}{name}": f"{place}{topic}" for place in places for name, topic in topics.items()
    }


def shown_topics(cameras: list[str], inputs: dict[str, str]) -> dict[str, str]:
    """RViz's configuration names absolute topics; the node's are in its namespace.

    /image and /segment/overlay stand for those of the only camera or of the first one,
    /front/image and /segment/front/overlay for those of `front`.
    """
    places = {f"{camera}/": f"{camera}/" for camera in cameras}
    places[""] = next(iter(places), "")
    topics = {f"/{name}image": inputs[f"{place}image"] for name, place in places.items()}
    for name, place in places.items():
        topics |= {f"/segment/{name}{item}": f"segment/{place}{item}" for item in PICTURES}
    return topics


def diagnostics_monitor() -> list[LaunchDescriptionEntity]:
    """RViz has no display for /diagnostics, so another window, where it is installed."""
    try:
        get_package_prefix("rqt_runtime_monitor")
    except PackageNotFoundError:
        return []
    return [
        Node(
            package="rqt_runtime_monitor",
            executable="rqt_runtime_monitor",
            # Else a namespace that an including launch file pushes would move it.
            remappings=[("diagnostics", "/diagnostics")],
        )
    ]


def transport(shared_memory: bool) -> tuple[list[LaunchDescriptionEntity], dict[str, str]]:
    """What to say about the transport profile, and the variables that set it."""
    if not shared_memory:
        return [], {}
    if own := [name for name in PROFILE_VARIABLES if name in os.environ]:
        said = f"{own[0]}={os.environ[own[0]]} is set and stays: shm:=true changes nothing"
        return [LogInfo(msg=said)], {}
    return [], dict.fromkeys(PROFILE_VARIABLES, str(PROFILE))


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=setup)])
