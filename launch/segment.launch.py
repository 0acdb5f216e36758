# SPDX-License-Identifier: Apache-2.0
"""Labels a camera's frames: ros2 launch ctxseg_ros segment.launch.py model:=segmenter_tiny."""

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch_ros.actions import Node

CONFIG = Path(__file__).parents[1] / "config"
PROFILE = CONFIG / "fastdds.xml"
# Fast DDS 2 (Jazzy) reads the first, Fast DDS 3 (Kilted and later) the second.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
KEEP = "empty: as in params_file"
OVERRIDES = ("model", "device", "latency_budget_ms", "image_transport")

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
    DeclareLaunchArgument("image", default_value="image", description="the camera's image topic"),
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
        description="show camera, overlay and labels in RViz",
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
    image = values["image"]
    camera_info = values["camera_info"] or "/".join([*image.split("/")[:-1], "camera_info"])
    overrides = {name: values[name] for name in OVERRIDES if values[name]}
    if "latency_budget_ms" in overrides:
        try:
            overrides["latency_budget_ms"] = float(overrides["latency_budget_ms"])
        except ValueError:
            raise RuntimeError(
                f"latency_budget_ms must be a number, not {overrides['latency_budget_ms']!r}"
            ) from None
    actions, profile = transport(values["shm"] == "true")
    common = {"namespace": values["namespace"], "additional_env": profile}
    actions.append(
        Node(
            package="ctxseg_ros",
            executable="segment_node",
            name="segment",
            output="screen",
            parameters=[values["params_file"], overrides],
            remappings=[("image", image), ("camera_info", camera_info)],
            **common,
        )
    )
    if values["rviz"] == "true":
        outputs = ("overlay", "labels")
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                name="rviz",
                arguments=["-d", str(CONFIG / "ctxseg.rviz")],
                # The configuration names absolute topics; this node's are in its namespace.
                remappings=[
                    ("/image", image),
                    *((f"/segment/{name}", f"segment/{name}") for name in outputs),
                ],
                **common,
            )
        )
    return actions


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
