# SPDX-License-Identifier: Apache-2.0
"""camera_node: every frame once and in order, or again and again; and the transport behind it."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from tests.image.test_source import JPEGS, Web

pytestmark = pytest.mark.slow

BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images whose pixels are their numbers."""
    path = tmp_path_factory.mktemp("frames")
    for number in range(8):
        cv2.imwrite(str(path / f"{number}.png"), np.full((6, 10, 3), number, np.uint8))
    return path


@pytest.fixture(scope="module")
def large_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 1080p at 30 Hz."""
    path = tmp_path_factory.mktemp("video") / "large.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (1920, 1080))
    for number in range(60):
        writer.write(np.full((1080, 1920, 3), number * 4, np.uint8))
    writer.release()
    return path


def test_once_every_frame_comes_in_order_and_the_node_ends(
    graph: Any, folder: Path, wait: Any
) -> None:
    images = graph.collect(Image, "image")
    infos = graph.collect(CameraInfo, "camera_info")
    process = graph.start(
        "camera_node", source=folder, loop=False, wait_for_subscriber=True, frame_id="front"
    )
    assert process.process.wait(60) == 0
    wait(lambda: len(images) == len(infos) == 8)
    assert [message.data[0] for message in images] == list(range(8))
    for image, info in zip(images, infos, strict=True):
        assert image.header == info.header and image.header.frame_id == "front"
        assert (image.width, image.height, image.encoding, image.step) == (10, 6, "bgr8", 30)
        assert (info.width, info.height, info.distortion_model) == (10, 6, "plumb_bob")
        assert not any(info.k)  # not calibrated
    stamps = [message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 for message in images]
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] > 0.6  # ten a second, the pace of a folder
    assert "8 frames sent" in process.output
    wait(lambda: graph.values("frames").get("frames_sent") == "8")


def test_loop_and_rate_and_best_effort(graph: Any, folder: Path, wait: Any) -> None:
    reliable = graph.collect(Image, "image")
    images = graph.collect(Image, "image", BEST_EFFORT)
    process = graph.start("camera_node", source=folder, rate_hz=100, reliability="best_effort")
    wait(lambda: len(images) > 20)  # more than the folder holds
    assert not reliable
    assert process.end(signal.SIGTERM) == 0
    assert "frames sent" in process.output


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "no source given"),
        ({"source": "/does/not/exist.mp4"}, "does not exist: check the path"),
        ({"source": "'97'"}, "camera 97 cannot be opened"),
        ({"source": "x.mp4", "rate_hz": -1}, "a number from 0 to 1000"),
    ],
)
def test_a_source_that_cannot_be_read_ends_it_with_1(
    graph: Any, parameters: dict[str, Any], said: str
) -> None:
    process = graph.start("camera_node", **parameters)
    assert process.process.wait(60) == 1
    assert said in process.output


def test_a_damaged_image_on_the_way_is_left_out_counted_and_named(
    graph: Any, tmp_path: Path, wait: Any
) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((6, 10, 3), number, np.uint8))
    (tmp_path / "1.png").write_bytes(b"damaged")
    images = graph.collect(Image, "image")
    process = graph.start("camera_node", source=tmp_path, loop=False, wait_for_subscriber=True)
    assert process.process.wait(60) == 0
    wait(lambda: [message.data[0] for message in images] == [0, 2])
    wait(lambda: graph.values("frames").get("frames_unreadable") == "1")
    assert graph.status("frames").level == DiagnosticStatus.WARN
    assert "1.png" in graph.status("frames").message and "1.png" in process.output


def test_a_video_that_was_cut_short_is_played_and_told(
    graph: Any, tmp_path: Path, wait: Any
) -> None:
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 50, (96, 64))
    for _ in range(20):
        writer.write(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    process = graph.start("camera_node", source=path, loop=False, wait_for_subscriber=True)
    images = graph.collect(Image, "image")
    assert process.process.wait(60) == 0
    wait(lambda: int(graph.values("frames").get("frames_missing", 0)) > 0)
    values = graph.values("frames")
    counts = [int(values[f"frames_{name}"]) for name in ("sent", "unreadable", "missing")]
    assert sum(counts) == 20 and len(images) == counts[0]
    assert graph.status("frames").level == DiagnosticStatus.WARN
    assert str(path) in graph.status("frames").message


def test_bits_of_a_sensor_and_a_home_folder(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "🚗"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.full((6, 10), 4095, np.uint16))
    images = graph.collect(Image, "image")
    process = graph.start("camera_node", source="~/🚗", source_bits=12)
    wait(lambda: images and images[-1].data[0] == 255)
    assert process.end(signal.SIGTERM) == 0


def test_a_stream_that_drops_goes_on_and_the_outages_are_counted(
    graph: Any, tmp_path: Path, wait: Any
) -> None:
    server = Web(tmp_path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        images = graph.collect(Image, "image")
        process = graph.start("camera_node", source=server.url("stream"), loop=False)
        wait(lambda: len(images) > len(JPEGS))
        wait(lambda: int(graph.values("frames").get("outages", 0)) > 0)
        server.refused = 10**6
        wait(lambda: graph.status("frames").level == DiagnosticStatus.ERROR)
        assert "stream" in graph.status("frames").message
        outages, sent = (int(graph.values("frames")[name]) for name in ("outages", "frames_sent"))
        server.refused = 0
        wait(lambda: int(graph.values("frames")["frames_sent"]) > sent)
        wait(lambda: int(graph.values("frames")["outages"]) > outages)
        assert process.end(signal.SIGTERM) == 0
        assert "reconnect" in process.output and "is back" in process.output
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_1080p_frame_is_lost_with_the_profile(
    graph: Any, large_video: Path, model_factory: Callable[..., Path], wait: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    camera = graph.start("camera_node", source=large_video, loop=False, wait_for_subscriber=True)
    assert camera.process.wait(60) == 0
    wait(lambda: graph.counts()["frames_received"] == 60)
    assert graph.values()["lost_transport"] == "0"
    assert graph.values()["topic"] == "/image" and graph.values()["input_encoding"] == "bgr8"


def test_losses_without_the_profile_are_counted_and_said(
    graph: Any, large_video: Path, model_factory: Callable[..., Path], wait: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    graph.start(
        "camera_node",
        transport=False,
        source=large_video,
        reliability="best_effort",
        wait_for_subscriber=True,
    )
    wait(lambda: int(graph.values()["lost_transport"]) > 0)
    wait(lambda: "config/fastdds.xml" in graph.status().message)
