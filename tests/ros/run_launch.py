# SPDX-License-Identifier: Apache-2.0
"""Runs a launch file as `ros2 launch FILE NAME:=VALUE ...` does: python run_launch.py FILE ..."""

import importlib.util
import signal
import sys
from pathlib import Path


def use_stand_in_if_missing() -> bool:
    """Make `launch` and `launch_ros` importable: ROS's own, or tests/ros/stand_in. True: ROS's."""
    # find_spec("launch") finds this checkout's folder launch/ as well, which has no __init__.py.
    spec = importlib.util.find_spec("launch")
    installed = spec is not None and spec.origin is not None
    if not installed:
        sys.path.append(str(Path(__file__).with_name("stand_in")))
        sys.modules.pop("launch", None)
    return installed


def main() -> int:
    # The background jobs of a script ignore it, and so would ros2/launch.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    use_stand_in_if_missing()
    from launch import LaunchDescription, LaunchService
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    file, *words = sys.argv[1:]
    service = LaunchService(argv=words, noninteractive=True)
    include = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(file),
        launch_arguments=[tuple(word.split(":=", 1)) for word in words],
    )
    service.include_launch_description(LaunchDescription([include]))
    return int(service.run())


if __name__ == "__main__":
    sys.exit(main())
