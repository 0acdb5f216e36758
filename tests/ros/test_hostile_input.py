# SPDX-License-Identifier: Apache-2.0
"""segment_node as a process, given anything: it lives, counts, and never publishes a wrong size."""

import array
import contextlib
import itertools
import math
import random
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import ListParameters, SetParameters, SetParametersAtomically
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from ctxseg_ros.ros.images import ENCODINGS
from ctxseg_ros.ros.qos import FRAMES_DEPTH
from ctxseg_ros.ros.segmenter import SegmentNode
from ctxseg_ros.ros.settings import SETTINGS

BATCHES = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.generate],  # one node sees all batches: nothing can be shrunk
    suppress_health_check=list(HealthCheck),
    database=None,
)
DEEP = QoSProfile(depth=1000)
FEW = FRAMES_DEPTH - 1
LIMIT = 100_000  # bytes of a random frame


# Messages


def rows_of(encoding: str, width: int, height: int) -> tuple[int, int] | None:
    """Bytes of a row without padding, and rows, as image_encodings.hpp defines them; None: the
    encoding is not known or cannot have this size."""
    if not width or not height:
        return None
    if encoding in ("nv12", "nv21"):
        return None if width % 2 or height % 2 else (width, height * 3 // 2)
    if encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv"):
        return None if width % 2 else (2 * width, height)
    found = re.fullmatch(r"(rgb|bgr|rgba|bgra|mono|bayer_(?:rggb|bggr|gbrg|grbg))(8|16)", encoding)
    if found is None or ("bayer" in encoding and min(width, height) < 3):
        return None
    channels = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}.get(found[1], 1)
    return width * channels * int(found[2]) // 8, height


def is_whole(message: Image) -> bool:
    found = rows_of(message.encoding, message.width, message.height)
    if found is None:
        return False
    row, rows = found
    return message.step >= row and len(message.data) >= message.step * rows


def frame(width: int, height: int, encoding: str) -> Image:
    """A frame of noise, stamped now."""
    found = rows_of(encoding, width, height)
    assert found is not None
    row, rows = found
    data = np.random.default_rng(width * height).bytes(row * rows)
    message = Image(width=width, height=height, encoding=encoding, step=row)
    message.data = array.array("B", data)
    return stamped(message)


def stamped(message: Any) -> Any:
    now = time.time_ns()
    message.header.stamp = Time(sec=now // 10**9, nanosec=now % 10**9)
    return message


# ROS cuts a text at its first NUL.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
) | st.sampled_from(["", "%s%n{}{0}", "../../x", "mono8;", "a" * 5000])
NONSENSE = TEXTS | st.sampled_from(["RGB8", "16UC1", "32FC1", "8UC1", "8UC3", "rgb8 ", "jpeg"])
SIDES = st.integers(1, 40)
UNSIGNED = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)


@st.composite
def raw_frames(draw: Any) -> Image:
    """Of three Images about one is whole."""
    encoding = draw(st.sampled_from(ENCODINGS) | st.sampled_from(ENCODINGS) | NONSENSE)
    width, height = draw(SIDES), draw(SIDES)
    row, rows = rows_of(encoding, width, height) or (3 * width, height)
    step = draw(st.sampled_from([row, row, row + 1, row + 7, row - 1]) | UNSIGNED)
    length = min(step * rows, LIMIT) + draw(st.sampled_from([0, 0, 0, 0, 1, 100, -1, -LIMIT]))
    if draw(st.integers(0, 4)) == 0:
        width, height = draw(st.permutations([draw(UNSIGNED), height]))
    data = random.Random(length).randbytes(max(length, 0))
    return Image(
        header=Header(frame_id=draw(TEXTS)),
        width=width,
        height=height,
        encoding=encoding,
        is_bigendian=draw(st.integers(0, 255)),
        step=step,
        data=array.array("B", data),
    )


@st.composite
def camera_infos(draw: Any) -> CameraInfo:
    number = draw(st.floats())
    return CameraInfo(
        header=Header(frame_id=draw(TEXTS)),
        width=draw(SIDES | UNSIGNED),
        height=draw(SIDES | UNSIGNED),
        distortion_model=draw(TEXTS),
        d=draw(st.lists(st.floats(), max_size=8)),
        k=[number] * 9,
        p=[-number] * 12,
        binning_x=draw(UNSIGNED),
        roi=RegionOfInterest(width=draw(UNSIGNED), do_rectify=draw(st.booleans())),
    )


def encoded() -> list[bytes]:
    """Whole JPEGs and PNGs of several kinds."""
    noise = np.random.default_rng(1)
    files = []
    for width, height in ((48, 32), (33, 47), (1, 1), (640, 8)):
        colour = noise.integers(0, 256, (height, width, 3), np.uint8)
        deep = noise.integers(0, 2**16, (height, width), np.uint16)
        clear = noise.integers(0, 256, (height, width, 4), np.uint8)
        progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
        for kind, pixels, options in (
            (".jpg", colour, ()),
            (".jpg", colour, progressive),
            (".jpg", colour[:, :, 0], ()),
            (".png", colour, ()),
            (".png", clear, ()),
            (".png", deep, ()),
        ):
            files.append(cv2.imencode(kind, pixels, options)[1].tobytes())
    return files


FILES = encoded()
JPEG_FRAME = re.compile(rb"\xff[\xc0\xc2]\x00.\x08", re.DOTALL)  # then height and width


def with_size(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header."""
    if data[:4] == b"\x89PNG":
        header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    found = JPEG_FRAME.search(data)
    assert found is not None
    return data[: found.end()] + struct.pack(">HH", height, width) + data[found.end() + 4 :]


@st.composite
def compressed_frames(draw: Any) -> CompressedImage:
    """Whole ones, damaged ones, and nonsense."""
    data = draw(st.sampled_from(FILES))
    at = draw(st.integers(0, len(data)))
    damage = draw(st.sampled_from(["none", "cut", "flip", "hole", "size", "tail", "noise"]))
    if damage == "cut":
        data = data[:at]
    elif damage == "flip":
        flipped = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            flipped[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        data = bytes(flipped)
    elif damage == "hole":
        data = data[:at] + data[at + draw(st.integers(1, 500)) :]
    elif damage == "size":
        data = with_size(data, draw(st.integers(0, 2000)), draw(st.integers(0, 2000)))
    elif damage == "tail":
        data += draw(st.binary(max_size=50)) + draw(st.sampled_from([b"", data, data[:at]]))
    elif damage == "noise":
        data = data[: draw(st.sampled_from([0, 2, 8]))] + draw(st.binary(max_size=200))
    named = st.sampled_from(["jpeg", "png", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth"])
    return CompressedImage(
        header=Header(frame_id=draw(TEXTS)),
        format=draw(named | NONSENSE),
        data=array.array("B", data),
    )


# What goes in and what comes out


@contextlib.contextmanager
def listening(graph: Any, **outputs: type) -> Iterator[dict[str, list[Any]]]:
    """The messages on these outputs, while the block lasts."""
    messages: dict[str, list[Any]] = {name: [] for name in outputs}
    subscriptions = [
        graph.node.create_subscription(kind, f"/segment/{name}", messages[name].append, 100)
        for name, kind in outputs.items()
    ]
    try:
        yield messages
    finally:
        for subscription in subscriptions:
            graph.node.destroy_subscription(subscription)


class Traffic:
    """One publisher of frames, what it sent, and what the node published of it.

    `read(message)` gives the size (width, height) that a frame has, None where it has none.
    """

    def __init__(
        self,
        graph: Any,
        wait: Any,
        publisher: Any,
        good: Callable[[], Any],
        read: Callable[[Any], tuple[int, int] | None],
        outputs: dict[str, list[Any]],
    ) -> None:
        self._graph = graph
        self._wait = wait
        self._publisher = publisher
        self._good = good
        self._read = read
        self._outputs = outputs
        self._sizes: dict[tuple[int, int, str], set[tuple[int, int] | None]] = {}
        self.sent = self.unreadable = 0
        self.send_good_until_labelled()  # the outputs are connected
        self._before = totals(graph)
        self.sent = 0

    def send(self, message: Any) -> None:
        size = self._read(message)
        self._sizes.setdefault(key(message), set()).add(size)
        self._publisher.publish(message)
        self.sent += 1
        self.unreadable += size is None

    def send_all(self, messages: Iterable[Any]) -> None:
        """Send these, and behind every few a good frame, which must be labelled at once.

        The reader's queue holds them all: none is lost.
        """
        for number, message in enumerate(messages):
            if number % FEW == 0:
                self.send_good()
            self.send(message)
        self.send_good()

    def send_good(self, timeout_s: float = 60.0) -> None:
        """Send a good frame, once, and wait for its labels."""
        message = stamped(self._good())
        self.send(message)
        self._wait(lambda: self._labelled(message), timeout_s)

    def send_good_until_labelled(self) -> int:
        """How many good frames it took."""
        for number in range(1, 20):
            with contextlib.suppress(AssertionError):
                self.send_good(timeout_s=2.0)
                return number
        raise AssertionError("no good frame is labelled")

    def _labelled(self, message: Any) -> bool:
        newest = self._outputs["labels"][-3 * FEW :]
        return any(key(item) == key(message) for item in newest)

    def check(self) -> dict[str, int]:
        """Every frame is counted once and every output has its frame's size; gives the counts."""
        after = totals(self._graph)
        found = {name: after[name] - self._before[name] for name in after}
        assert (found["frames_received"], found["lost_transport"]) == (self.sent, 0)
        for messages in self._outputs.values():
            for message in messages:
                assert (message.width, message.height) in self._sizes[key(message)]
                if isinstance(message, Image):
                    row, rows = rows_of(message.encoding, message.width, message.height)
                    assert (message.step, len(message.data)) == (row, row * rows)
        return found


def key(message: Any) -> tuple[int, int, str]:
    stamp = message.header.stamp
    return stamp.sec, stamp.nanosec, message.header.frame_id


COUNTED = re.compile("frames_|dropped_|lost_transport|unstamped|camera_info_mismatched")


def totals(graph: Any) -> dict[str, int]:
    """Every counter, once all frames are done."""
    graph.counts()
    return {name: int(value) for name, value in graph.values().items() if COUNTED.match(name)}


def raw_size(message: Image) -> tuple[int, int] | None:
    return (message.width, message.height) if is_whole(message) else None


# Images


@pytest.fixture(scope="module")
def running(shared_graph: Any, model_factory: Callable[..., Path]) -> Any:
    """A graph with an active segment_node, device cpu, at its default name."""
    shared_graph.start("segment_node", model=model_factory(), device="cpu")
    shared_graph.wait_for_state("active")
    return shared_graph


@pytest.fixture(scope="module")
def images(running: Any) -> Any:
    return running.publisher(Image, "image", DEEP)


def test_thousands_of_random_images_and_camera_infos(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    infos = running.publisher(CameraInfo, "camera_info")
    wanted = dict.fromkeys(("labels", "confidence", "color", "overlay"), Image)
    with listening(running, **wanted, camera_info=CameraInfo) as outputs:
        traffic = Traffic(running, wait, images, image_message, raw_size, outputs)

        @BATCHES
        @given(
            st.lists(raw_frames(), min_size=20), st.lists(camera_infos(), min_size=1, max_size=4)
        )
        def batch(frames: list[Image], descriptions: list[CameraInfo]) -> None:
            for info in descriptions:
                infos.publish(info)
                traffic.send_all(stamped(message) for message in frames)
            infos.publish(CameraInfo(width=48, height=32))
            traffic.send_good()

        batch()
        counts = traffic.check()
        assert outputs["camera_info"]
    assert counts["frames_labelled"] > 0
    assert counts["dropped_malformed"] == traffic.unreadable > 0
    assert counts["dropped_inference_error"] == counts["dropped_out_of_order"] == 0
    assert running.state() == "active"
