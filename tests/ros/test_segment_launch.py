# SPDX-License-Identifier: Apache-2.0
"""The launch files with real processes: executed by ros2/launch, or by its stand-in."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 48, 64
ENDS_S = 60.0


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


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of three frames, for a camera to play."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        frame = np.full((HEIGHT, WIDTH, 3), 80 * number, np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    return folder


class Launch:
    """A launch file in a process of its own; SIGINT goes to it alone, as from another program."""

    def __init__(self, file: str, arguments: list[str], folder: Path, domain: int) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        packages = [str(installed(folder / "prefix")), os.environ.get("AMENT_PREFIX_PATH", "")]
        environment = os.environ | {
            "ROS_DOMAIN_ID": str(domain),
            "ROS_LOG_DIR": str(folder / "log"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "AMENT_PREFIX_PATH": os.pathsep.join(filter(None, packages)),
        }
        self._log = folder / "launch.log"
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, str(Path(__file__).with_name("run_launch.py"))),
                    *(str(ROOT / "launch" / file), "device:=cpu", "rviz:=false", *arguments),
                ],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(ENDS_S)

    def end(self) -> int:
        """Ask it to end; the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        return self.wait()


@pytest.fixture
def launch(
    graph: Any, model_factory: Callable[..., Path], tmp_path: Path
) -> Iterator[Callable[..., Launch]]:
    """launch(FILE, *NAME:=VALUE) -> the file, running on `graph` with a tiny model."""
    started: list[Launch] = []

    def start(file: str, *arguments: str) -> Launch:
        model = f"model:={model_factory()}"
        started.append(Launch(file, [model, *arguments], tmp_path, graph.domain))
        return started[-1]

    yield start
    for item in started:
        item.end()


@pytest.mark.parametrize(
    ("file", "arguments", "labels"),
    [
        ("demo.launch.py", ["source:=FRAMES"], {"/segment/labels": "camera"}),
        (
            "two_cameras.launch.py",
            ["front:=FRAMES", "left:=FRAMES", "namespace:=robot"],
            {
                "/robot/segment/front/labels": "front_camera",
                "/robot/segment/left/labels": "left_camera",
            },
        ),
    ],
)
def test_every_camera_gets_labels_and_all_processes_end_with_0(
    launch: Callable[..., Launch],
    graph: Any,
    wait: Any,
    frames: Path,
    file: str,
    arguments: list[str],
    labels: dict[str, str],
) -> None:
    received = {topic: graph.collect(Image, topic) for topic in labels}
    running = launch(file, *(word.replace("FRAMES", str(frames)) for word in arguments))
    wait(lambda: all(received.values()))
    for topic, frame_id in labels.items():
        message = received[topic][0]
        assert message.header.frame_id == frame_id
        assert message.encoding == "mono8"
        assert (message.height, message.width) == (HEIGHT, WIDTH)
    assert running.end() == 0
    assert "Traceback" not in running.output
    assert "process has died" not in running.output, running.output


def test_parameters_given_as_arguments_are_those_of_the_node(
    launch: Callable[..., Launch], graph: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "/**:\n  ros__parameters:\n    cameras: [front, left]\n    min_confidence: 0.25\n"
    )
    launch(
        "segment.launch.py",
        *("params_file:=mine.yaml", "image:=rgb/image_raw", "input_sizes:=64x96,32x48"),
        *("max_age_ms:=500", "autostart:=False", "log_level:=warn"),
    )
    assert graph.state() == "unconfigured"
    assert graph.get("input_sizes") == ["64x96", "32x48"]
    assert graph.get("max_age_ms") == 500.0
    assert graph.get("min_confidence") == 0.25
    assert graph.get("autostart") is False
    assert graph.transition("configure") and graph.transition("activate")
    graph.wait_for_state("active")
    assert graph.values("front")["topic"] == "/front/rgb/image_raw"
    assert graph.values("left")["topic"] == "/left/rgb/image_raw"


@pytest.mark.parametrize("source", ["gone.mp4", "FRAMES"])
def test_the_demo_ends_when_its_camera_fails_or_ends(
    launch: Callable[..., Launch], frames: Path, source: str
) -> None:
    source = source.replace("FRAMES", str(frames))
    running = launch("demo.launch.py", f"source:={source}", "loop:=false")
    assert running.wait() == 0
    assert ("does not exist" in running.output) == (source == "gone.mp4")


def test_an_unknown_argument_is_named_and_the_rest_starts(
    launch: Callable[..., Launch], graph: Any
) -> None:
    running = launch("segment.launch.py", "latency_buget_ms:=50")
    graph.wait_for_state("active")
    assert "latency_buget_ms" in running.output
    assert "did you mean latency_budget_ms" in running.output


def test_a_parameter_file_that_is_missing_ends_it(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    running = launch("segment.launch.py", "params_file:=none.yaml")
    assert running.wait() == 1
    assert str(tmp_path / "none.yaml") in running.output
    assert "segment_node" not in running.output  # nothing was started


def test_a_node_that_ends_is_started_again_if_asked_for(
    launch: Callable[..., Launch], graph: Any, wait: Any
) -> None:
    launch("segment.launch.py", "respawn:=true")
    graph.wait_for_state("active")
    (pid,) = node_processes(graph.domain)
    os.kill(pid, signal.SIGKILL)
    wait(lambda: [other for other in node_processes(graph.domain) if other != pid])
    seen = len(graph.statuses)
    wait(lambda: len(graph.statuses) > seen)
    graph.wait_for_state("active")


def node_processes(domain: int) -> list[int]:
    """The segment_nodes of a ROS domain on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile
        if (
            b"ctxseg_ros.ros.segment_node" in words
            and f"ROS_DOMAIN_ID={domain}".encode() in variables
        ):
            found.append(int(folder.name))
    return found
