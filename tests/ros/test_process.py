# SPDX-License-Identifier: Apache-2.0
"""A signal at any moment: exit code 0 and no traceback (the graph looks for one)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import Image

ROOT = Path(__file__).resolve().parents[2]


def handler_installed(process: Any) -> bool:
    """Linux tells which signals a process catches; SIGTERM's handler is the node's own."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay_s", [0.0, 0.3, 0.6, 1.0, 1.5])  # imports, configure, activate
def test_while_it_starts(
    graph: Any, model_factory: Callable[..., Path], wait: Any, number: int, delay_s: float
) -> None:
    process = graph.start("segment_node", model=model_factory())
    wait(lambda: handler_installed(process))
    time.sleep(delay_s)
    assert process.end(number) == 0
    assert "Traceback" not in process.output


@pytest.mark.parametrize("node", ["segment_node", "camera_node"])
def test_while_frames_flow_and_twice(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any, node: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    segment = graph.start("segment_node", model=model_factory(), device="cpu")
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((480, 640, 3), np.uint8))
    camera = graph.start("camera_node", source=tmp_path, rate_hz=200)
    labels = graph.collect(Image, "/segment/labels")
    wait(lambda: len(labels) > 10)
    process = segment if node == "segment_node" else camera
    process.send(signal.SIGINT)
    assert process.end() == 0


def test_a_model_that_loads_for_long_is_left_behind(tmp_path: Path, graph: Any, wait: Any) -> None:
    # The node's own code, with a runtime that takes a minute to open.
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        "from ctxseg_ros.ros import segmenter, segment_node\n"
        "def load(*_):\n"
        "    print('loading', flush=True)\n"
        "    time.sleep(60)\n"
        "segmenter.store.load = load\n"
        "sys.exit(segment_node.main())\n"
    )
    environment = os.environ | {"ROS_DOMAIN_ID": str(graph.domain), "PYTHONPATH": str(ROOT)}
    log = tmp_path / "slow.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(script)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait(lambda: "loading" in log.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert "without waiting" in log.read_text() and "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "arguments", [["-r", "__node:=a-b"], ["--params-file", "/does/not/exist.yaml"]]
)
def test_arguments_that_ros_cannot_read_are_one_line(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ctxseg_ros.ros.segment_node", "--ros-args", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "The node cannot start" in done.stderr and "Traceback" not in done.stderr
