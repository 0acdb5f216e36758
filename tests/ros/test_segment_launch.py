# SPDX-License-Identifier: Apache-2.0
"""The launch files with real processes, through launch_testing, where ROS 2 has it installed.

pytest runs this file once more, as launch_testing's own program does: launch wants a main thread to
itself, and launch_testing's pytest plugin breaks with newer versions of pytest.
"""

import os
import shlex
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from lifecycle_msgs.srv import GetState
from sensor_msgs.msg import Image

ROOT = Path(__file__).resolve().parents[2]
WHY = "is not installed: it comes with ROS 2, PyPI has no wheel of it"
pytest.importorskip("launch_ros.actions", reason=f"ros2/launch_ros {WHY}")
launch_testing = pytest.importorskip("launch_testing", reason=f"ros2/launch_testing {WHY}")

HEIGHT, WIDTH = 48, 64
TIMEOUT_S = 60.0


def test_every_launch_file_labels_and_ends_cleanly(
    graph: Any, model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        frame = np.full((HEIGHT, WIDTH, 3), 80 * number, np.uint8)
        cv2.imwrite(str(frames / f"{number}.png"), frame)
    environment = os.environ | {
        "ROS_DOMAIN_ID": str(graph.domain),
        "ROS_LOG_DIR": str(tmp_path / "log"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "AMENT_PREFIX_PATH": os.pathsep.join(
            filter(None, [str(installed(tmp_path / "prefix")), os.environ.get("AMENT_PREFIX_PATH")])
        ),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch_testing.launch_test", __file__),
            *(f"model:={model_factory()}", f"frames:={frames}"),
        ],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("\nOK") == 4, done.stdout  # two launches, while it runs and afterwards


def installed(prefix: Path) -> Path:
    """An installation whose executables are those of this checkout, built or not."""
    marker = prefix / "share/ament_index/resource_index/packages/ctxseg_ros"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (prefix / "lib" / "ctxseg_ros").mkdir(parents=True)
    for name in ("segment_node", "camera_node"):
        script = prefix / "lib" / "ctxseg_ros" / name
        command = shlex.join([sys.executable, "-m", f"ctxseg_ros.ros.{name}"])
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    return prefix


# What follows is for launch_testing, which leaves out the tests above.

LAUNCHES = [
    ("demo.launch.py", {"source": "frames"}, "/segment", {"labels": "camera"}),
    (
        "two_cameras.launch.py",
        {"front": "frames", "left": "frames", "namespace": "robot"},
        "/robot/segment",
        {"front/labels": "front_camera", "left/labels": "left_camera"},
    ),
]


@launch_testing.parametrize("file, arguments, node_name, labels", LAUNCHES)
def generate_test_description(
    file: str, arguments: dict[str, str], node_name: str, labels: dict[str, str]
) -> Any:
    """One of the launch files, with the arguments `model` and `frames`."""
    from launch import LaunchDescription
    from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch.substitutions import LaunchConfiguration
    from launch_testing.actions import ReadyToTest

    given = {
        name: LaunchConfiguration(text) if text == "frames" else text
        for name, text in arguments.items()
    }
    included = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(ROOT / "launch" / file)),
        launch_arguments=[
            *given.items(),
            ("model", LaunchConfiguration("model")),
            ("device", "cpu"),
            ("rviz", "false"),
        ],
    )
    declared = [DeclareLaunchArgument("model"), DeclareLaunchArgument("frames")]
    return LaunchDescription([*declared, included, ReadyToTest()])


class WhileItRuns(unittest.TestCase):
    __test__ = False  # for launch_testing, not for pytest

    def setUp(self) -> None:
        rclpy.init()
        self.node = rclpy.create_node("looker")

    def tearDown(self) -> None:
        self.node.destroy_node()
        rclpy.shutdown()

    def spin_until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not happen in time")
            rclpy.spin_once(self.node, timeout_sec=0.1)

    def test_the_node_becomes_active(self, node_name: str) -> None:
        client = self.node.create_client(GetState, f"{node_name}/get_state")
        self.assertTrue(client.wait_for_service(TIMEOUT_S))
        states = [""]

        def active() -> bool:
            future = client.call_async(GetState.Request())
            rclpy.spin_until_future_complete(self.node, future, timeout_sec=TIMEOUT_S)
            states.append(future.result().current_state.label)
            return states[-1] == "active"

        self.spin_until(active)

    def test_every_camera_gets_labels(self, node_name: str, labels: dict[str, str]) -> None:
        came: dict[str, Image] = {}
        for topic, frame_id in labels.items():
            self.node.create_subscription(
                Image,
                f"{node_name}/{topic}",
                lambda message, frame_id=frame_id: came.setdefault(frame_id, message),
                1,
            )
        self.spin_until(lambda: len(came) == len(labels))
        for frame_id, message in came.items():
            self.assertEqual(message.header.frame_id, frame_id)
            self.assertEqual(message.encoding, "mono8")
            self.assertEqual((message.height, message.width), (HEIGHT, WIDTH))


@launch_testing.post_shutdown_test()
class OnceItHasEnded(unittest.TestCase):
    __test__ = False  # for launch_testing, not for pytest

    def test_every_process_ended_with_0(self, proc_info: Sequence[Any]) -> None:
        from launch_testing.asserts import assertExitCodes

        assertExitCodes(proc_info)
        self.assertGreaterEqual(len(list(proc_info)), 2)
