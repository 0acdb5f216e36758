# SPDX-License-Identifier: Apache-2.0
"""A video as a camera, its labels, and RViz: ros2 launch ctxseg_ros demo.launch.py source:=FILE."""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ctxseg_ros.ros import launch_arguments as arguments
from ctxseg_ros.ros import transport

SEGMENT = Path(__file__).with_name("segment.launch.py")

# What the camera here decides, or there is one of.
FIXED = ("cameras", "image_transport", "input_reliability", "input_encoding", "input_bits")
PASSED = [
    *arguments.parameter_arguments(
        FIXED,
        model="segmenter_tiny",
        device="auto",
        latency_budget_ms="100.0",
        input_sizes="auto",
    ),
    *arguments.process_arguments(rviz="true"),
]
ARGUMENTS = [
    DeclareLaunchArgument(
        "source", description="video file, folder of images, camera index, or URL"
    ),
    DeclareLaunchArgument(
        "rate_hz",
        default_value="0.0",
        description="frame rate in Hz; 0: the frame rate of the source",
    ),
    DeclareLaunchArgument(
        "loop",
        default_value="true",
        description="true or false: start again at the end of the source",
    ),
    *PASSED,
]


def setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The camera, and segment.launch.py."""
    values = context.launch_configurations
    arguments.warn_of_unknown(context, __file__, ARGUMENTS)
    camera = Node(
        package="ctxseg_ros",
        executable="camera_node",
        name="camera",
        namespace=values["namespace"],
        output="both",
        parameters=[
            {
                # As text: a camera's index would become a number.
                "source": ParameterValue(
                    arguments.absolute_source(values["source"]), value_type=str
                ),
                "rate_hz": ParameterValue(values["rate_hz"], value_type=str),
                "loop": arguments.switch(values, "loop"),
                # The segmenter loads its model first: a short file would be over by then.
                "wait_for_subscriber": True,
            }
        ],
        ros_arguments=arguments.log_arguments(values),
        additional_env=transport.choose().variables if arguments.switch(values, "shm") else {},
        on_exit=Shutdown(reason="the camera has ended"),
    )
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SEGMENT)),
        launch_arguments=[(argument.name, values[argument.name]) for argument in PASSED],
    )
    return [camera, segment]


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=setup)])
