# SPDX-License-Identifier: Apache-2.0
"""Labels cameras' frames: ros2 launch ctxseg_ros segment.launch.py model:=segmenter_tiny."""

import os
import re
from pathlib import Path

import launch.logging
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from ctxseg_ros.ros import launch_arguments as arguments
from ctxseg_ros.ros import transport

CONFIG = Path(__file__).parents[1] / "config"
PICTURES = ("overlay", "color", "labels", "attention", "attention_mask")

ARGUMENTS = [
    *arguments.parameter_arguments(),
    DeclareLaunchArgument(
        "image",
        default_value="image",
        description="the camera's image topic; with cameras, relative to each camera's namespace",
    ),
    DeclareLaunchArgument(
        "camera_info",
        default_value="",
        description="the camera's CameraInfo topic (empty: camera_info beside the image topic)",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=str(CONFIG / "segment.yaml"),
        description="YAML file with the node's parameters",
    ),
    *arguments.process_arguments(),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="",
        description="true or false: use the time of /clock (empty: as in params_file)",
    ),
    DeclareLaunchArgument(
        "rviz_config",
        default_value=str(CONFIG / "ctxseg.rviz"),
        description="RViz configuration; its topics are written as without a namespace",
    ),
]


def setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node, and RViz if asked for."""
    values = context.launch_configurations
    arguments.warn_of_unknown(context, __file__, ARGUMENTS)
    params_file = arguments.existing_file(values, "params_file")
    namespace = arguments.full_namespace(values)
    node_name = f"{namespace.rstrip('/')}/segment"
    in_file = arguments.file_parameters(params_file, node_name)
    cameras = arguments.listed(values["cameras"] or in_file.get("cameras"))
    arguments.check_cameras(cameras)
    inputs = input_topics(cameras, values["image"], values["camera_info"])
    parameters = {**arguments.given_parameters(values)}
    if values["use_sim_time"]:
        parameters["use_sim_time"] = arguments.switch(values, "use_sim_time")
    common = {"namespace": values["namespace"], "output": "both", "additional_env": {}}
    if arguments.switch(values, "shm"):
        profile = transport.choose()
        common["additional_env"] = profile.variables
        if profile.message:
            arguments.warn(profile.message)
    actions = [
        Node(
            package="ctxseg_ros",
            executable="segment_node",
            name="segment",
            parameters=[params_file, parameters],
            remappings=list(inputs.items()),
            ros_arguments=arguments.log_arguments(values),
            **arguments.respawning(values),
            **common,
        )
    ]
    if not arguments.switch(values, "rviz"):
        return actions
    config = arguments.existing_file(values, "rviz_config")
    compressed = (values["image_transport"] or in_file.get("image_transport")) == "compressed"
    shown = shown_topics(cameras, inputs)
    distribution = os.environ.get("ROS_DISTRO", "jazzy")
    if installed("rviz2"):
        if compressed:
            config = compressed_config(config)
            if not installed("compressed_image_transport"):
                arguments.warn(
                    "RViz cannot show compressed cameras: "
                    f"sudo apt install ros-{distribution}-compressed-image-transport"
                )
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                name="rviz",
                arguments=["-d", config],
                remappings=list(shown.items()),
                **common,
            )
        )
    else:
        arguments.warn(
            f"rviz2 is not installed: sudo apt install ros-{distribution}-rviz2. Without it, look "
            f"at the topic {namespace.rstrip('/')}/{shown['/segment/overlay']}"
        )
    if installed("rqt_runtime_monitor"):  # RViz has no display for /diagnostics
        actions.append(
            Node(
                package="rqt_runtime_monitor",
                executable="rqt_runtime_monitor",
                # Else a namespace that an including launch file pushes would move it.
                remappings=[("diagnostics", "/diagnostics")],
            )
        )
    return actions


def input_topics(cameras: list[str], image: str, camera_info: str) -> dict[str, str]:
    """The node's inputs, and the topics that they are read from."""
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
    topics = {}
    for name, place in places.items():
        image = inputs[f"{place}image"]
        topics |= {f"/{name}image": image, f"/{name}image/compressed": f"{image}/compressed"}
        topics |= {f"/segment/{name}{item}": f"segment/{place}{item}" for item in PICTURES}
    return topics


def compressed_config(path: str) -> str:
    """A copy of RViz's configuration, in the launch log's folder, whose cameras are compressed.

    RViz takes the transport from the topic's last word.
    """
    text = re.sub(
        r"^(\s*Value: \S*/image)$", r"\1/compressed", Path(path).read_text(), flags=re.MULTILINE
    )
    copy = Path(launch.logging.launch_config.log_dir, Path(path).name)
    copy.write_text(text)
    return str(copy)


def installed(package: str) -> bool:
    """Whether ROS finds the package."""
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def generate_launch_description() -> LaunchDescription:
    """Called by ros2 launch."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=setup)])
