# SPDX-License-Identifier: Apache-2.0
"""Two cameras, one model: ros2 launch ctxseg_ros two_cameras.launch.py front:=FILE left:=FILE.

The cameras publish front/image and left/image; the labels are on segment/front/labels and
segment/left/labels.

A launch file of your own uses segment.launch.py in the same way: it includes the file and gives its
arguments (`ros2 launch ctxseg_ros segment.launch.py --show-args` lists them) as launch_arguments.
In another package SEGMENT is

    PathJoinSubstitution([FindPackageShare("ctxseg_ros"), "launch", "segment.launch.py"])

and the include belongs in a GroupAction where its arguments must not reach what comes after it. The
cameras' processes need the variables of `profile` as well: whoever publishes owns the memory.
"""

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

CAMERAS = ("front", "left")
SEGMENT = Path(__file__).with_name("segment.launch.py")
CONFIG = Path(__file__).parents[1] / "config"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")

ARGUMENTS = [
    *(
        DeclareLaunchArgument(
            camera, description=f"video file, folder of images, or camera index: camera {camera}"
        )
        for camera in CAMERAS
    ),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of every node"),
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
        default_value="200.0",
        description="camera stamp to published labels, 0: only report it",
    ),
    DeclareLaunchArgument(
        "rviz",
        default_value="true",
        choices=["true", "false"],
        description="show both cameras and their overlays in RViz, and /diagnostics in "
        "rqt_runtime_monitor where that is installed",
    ),
]


def setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The cameras, and segment.launch.py."""
    values = context.launch_configurations
    own_profile = any(name in os.environ for name in PROFILE_VARIABLES)
    profile = dict.fromkeys(PROFILE_VARIABLES, str(CONFIG / "fastdds.xml"))
    cameras = [
        Node(
            package="ctxseg_ros",
            executable="camera_node",
            name="camera",
            # Relative, so that the namespace of an including launch file counts as well.
            namespace="/".join(filter(None, [values["namespace"], camera])),
            output="screen",
            parameters=[
                {
                    # Else a camera's index would become a number.
                    "source": ParameterValue(values[camera], value_type=str),
                    # Namespaces do not reach frame ids: one name would be one camera in space.
                    "frame_id": f"{camera}_camera",
                }
            ],
            additional_env={} if own_profile else profile,
        )
        for camera in CAMERAS
    ]
    passed = ("namespace", "model", "device", "latency_budget_ms", "rviz")
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SEGMENT)),
        launch_arguments=[
            ("cameras", ",".join(CAMERAS)),
            ("rviz_config", str(CONFIG / "two_cameras.rviz")),
            *((name, values[name]) for name in passed),
        ],
    )
    return [*cameras, segment]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=setup)])
