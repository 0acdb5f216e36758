# SPDX-License-Identifier: Apache-2.0
"""A video as a camera, its labels, and RViz: ros2 launch ctxseg_ros demo.launch.py source:=FILE."""

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SEGMENT = Path(__file__).with_name("segment.launch.py")
PROFILE = Path(__file__).parents[1] / "config" / "fastdds.xml"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")

ARGUMENTS = [
    DeclareLaunchArgument("source", description="video file, folder of images, or camera index"),
    DeclareLaunchArgument(
        "rate_hz", default_value="0.0", description="frames a second; 0: the source's own rate"
    ),
    DeclareLaunchArgument(
        "loop",
        default_value="true",
        choices=["true", "false"],
        description="start again at the source's end",
    ),
    DeclareLaunchArgument(
        "model", default_value="segmenter_tiny", description="name of a model or path of an .onnx"
    ),
    DeclareLaunchArgument(
        "device",
        default_value="auto",
        choices=["auto", "tensorrt", "cuda", "openvino", "cpu"],
        description="where the model runs",
    ),
    DeclareLaunchArgument(
        "latency_budget_ms",
        default_value="100.0",
        description="camera stamp to published labels, 0: only report it",
    ),
    DeclareLaunchArgument(
        "rviz",
        default_value="true",
        choices=["true", "false"],
        description="show camera and labels in RViz, and /diagnostics in rqt_runtime_monitor where "
        "that is installed",
    ),
]


def setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The camera, and segment.launch.py."""
    values = context.launch_configurations
    try:
        rate_hz = float(values["rate_hz"])
    except ValueError:
        raise RuntimeError(f"rate_hz must be a number, not {values['rate_hz']!r}") from None
    own_profile = any(name in os.environ for name in PROFILE_VARIABLES)
    camera = Node(
        package="ctxseg_ros",
        executable="camera_node",
        name="camera",
        output="screen",
        parameters=[
            {
                # Else a camera's index would become a number.
                "source": ParameterValue(values["source"], value_type=str),
                "rate_hz": rate_hz,
                "loop": values["loop"] == "true",
            }
        ],
        additional_env={} if own_profile else dict.fromkeys(PROFILE_VARIABLES, str(PROFILE)),
    )
    passed = ("model", "device", "latency_budget_ms", "rviz")
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SEGMENT)),
        launch_arguments=[(name, values[name]) for name in passed],
    )
    return [camera, segment]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=setup)])
