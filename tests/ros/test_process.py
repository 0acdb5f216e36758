# SPDX-License-Identifier: Apache-2.0
"""A signal at any moment: exit code 0 and no traceback (the graph looks for one)."""

import os
import pty
import re
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

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def handler_installed(process: Any) -> bool:
    """Linux tells which signals a process catches; SIGTERM's handler is the node's own."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
    others = shared_memory(os.getpid())
    try:
        wait(lambda: "loading" in log.read_text())
        segments = shared_memory(process.pid) - others
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert segments and not {name for name in segments if Path("/dev/shm", name).exists()}
    finally:
        process.kill()
    assert "without waiting" in log.read_text() and "Traceback" not in log.read_text()


def shared_memory(pid: int) -> set[str]:
    """The names of Fast DDS's segments that a process has open."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/(fast(?:rtps|dds)_[0-9a-f]+)\s", maps))


@pytest.mark.parametrize("node", ["segment_node", "camera_node"])
def test_a_closed_terminal_ends_it_in_order(
    graph: Any, model_factory: Callable[..., Path], wait: Any, node: str, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((48, 64, 3), np.uint8))
    parameters = {
        "segment_node": [f"model:={model_factory()}", "device:=cpu"],
        "camera_node": [f"source:={tmp_path}"],
    }[node]
    pairs = [word for item in parameters for word in ("-p", item)]
    others = shared_memory(os.getpid())
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, f"ctxseg_ros.ros.{node}", "--ros-args", *pairs],
        cwd=ROOT,
        env=os.environ | {"ROS_DOMAIN_ID": str(graph.domain)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        os.close(theirs)
        wait(lambda: graph.status("labels" if node == "segment_node" else "frames"))
        segments = shared_memory(process.pid) - others
        assert segments
        os.close(ours)
        assert process.wait(30) == 0
        assert not {name for name in segments if Path("/dev/shm", name).exists()}
    finally:
        process.kill()


IN_A_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def test_nohup_keeps_it_alive(graph: Any, tmp_path: Path, wait: Any) -> None:
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((48, 64, 3), np.uint8))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit it, as from nohup
    try:
        process = graph.start("camera_node", source=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait(lambda: graph.values("frames").get("frames_sent", "0") != "0")
    process.send(signal.SIGHUP)
    sent = int(graph.values("frames")["frames_sent"])
    wait(lambda: int(graph.values("frames")["frames_sent"]) > sent + 5)
    assert process.end() == 0
