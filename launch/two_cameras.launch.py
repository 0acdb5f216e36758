# SPDX-License-Identifier: Apache-2.0
"""Two cameras, one model: ros2 launch ctxseg_ros two_cameras.launch.py front:=FILE left:=FILE.

The cameras publish front/image and left/image; the labels are on segment/front/labels and
segment/left/labels.

A launch file of your own uses segment.launch.py in the same way: it includes the file and gives its
arguments (`ros2 launch ctxseg_ros segment.launch.py --show-args` lists them) as launch_arguments.
In another package SEGMENT is

    PathJoinSubstitution([FindPackageShare("ctxseg_ros"), "launch", "segment.launch.py"])

and the include belongs in a GroupAction where its arguments must not reach what comes after it. The
cameras' processes need the variables of transport.choose() as well: whoever publishes owns the
memory.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ctxseg_ros.ros import launch_arguments as arguments
from ctxseg_ros.ros import transport

CAMERAS = ("front", "left")
SEGMENT = Path(__file__).with_name("segment.launch.py")
CONFIG = Path(__file__).parents[1] / "config"

# What the cameras here decide.
FIXED = ("cameras", "image_transport", "input_reliability", "input_encoding", "input_bits")
PASSED = [
    *arguments.parameter_arguments(
        FIXED,
        model="segmenter_tiny",
        device="auto",
        latency_budget_ms="200.0",
        input_sizes="auto",
    ),
    *arguments.process_arguments(rviz="true"),
]
ARGUMENTS = [
    *(
        DeclareLaunchArgument(
            camera,
            description=f"video file, folder of images, camera index, or URL: camera {camera}",
        )
        for camera in CAMERAS
    ),
    *PASSED,
]


def setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The cameras, and segment.launch.py."""
    values = context.launch_configurations
    arguments.warn_of_unknown(context, __file__, ARGUMENTS)
    profile = transport.choose().variables if arguments.switch(values, "shm") else {}
    cameras = [
        Node(
            package="ctxseg_ros",
            executable="camera_node",
            name="camera",
            # Relative, so that the namespace of an including launch file counts as well.
            namespace="/".join(filter(None, [values["namespace"], camera])),
            output="both",
            parameters=[
                {
                    # As text: a camera's index would become a number.
                    "source": ParameterValue(
                        arguments.absolute_source(values[camera]), value_type=str
                    ),
                    # Namespaces do not reach frame ids: one name would be one camera in space.
                    "frame_id": f"{camera}_camera",
                }
            ],
            ros_arguments=arguments.log_arguments(values),
            additional_env=profile,
        )
        for camera in CAMERAS
    ]
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SEGMENT)),
        launch_arguments=[
            ("cameras", ",".join(CAMERAS)),
            ("rviz_config", str(CONFIG / "two_cameras.rviz")),
            *((argument.name, values[argument.name]) for argument in PASSED),
        ],
    )
    return [*cameras, segment]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=setup)])
