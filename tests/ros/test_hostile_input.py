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

pytestmark = pytest.mark.slow

BATCHES = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.generate],  # one node sees all batches: nothing can be shrunk
    suppress_health_check=list(HealthCheck),
    database=None,
)
DEEP = QoSProfile(depth=1000)
FEW = FRAMES_DEPTH - 1
NEW_TIMELINE = 3  # good frames after which a node has forgotten a stamp in the future
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
    """Whole ones, those of which one field lies, and nonsense."""
    lie = draw(st.sampled_from(["", "", "", "encoding", "size", "step", "data", "everything"]))
    encoding = draw(NONSENSE if lie in ("encoding", "everything") else st.sampled_from(ENCODINGS))
    width, height = draw(SIDES), draw(SIDES)
    if not rows_of(encoding, width, height):
        width, height = 2 * width + 2, 2 * height + 2
    row, rows = rows_of(encoding, width, height) or (3 * width, height)
    step = row + draw(st.sampled_from([0, 1, 7]))
    if lie in ("step", "everything"):
        step = draw(st.sampled_from([0, row - 1, row + 1000]) | UNSIGNED)
    length = min(step * rows, LIMIT)
    if lie in ("data", "everything"):
        length = max(length + draw(st.sampled_from([-LIMIT, -row, -1, 1])), 0)
    if lie in ("size", "everything"):
        width, height = draw(st.permutations([draw(UNSIGNED), height]))
    return Image(
        header=Header(frame_id=draw(TEXTS)),
        width=width,
        height=height,
        encoding=encoding,
        is_bigendian=draw(st.integers(0, 255)),
        step=step,
        data=array.array("B", random.Random(length).randbytes(length)),
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
    named = st.sampled_from(
        [
            *("jpeg", "png", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth"),
            *("bayer_rggb8; png compressed ", "bayer_gbrg16; jpeg compressed mono8"),
            *("8UC3; png compressed ", "mono16; png compressed "),
        ]
    )
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
        wait(self._connected)
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
        for number, message in enumerate(messages, 1):
            self.send(message)
            if number % FEW == 0:
                self.send_good()
        self.send_good()

    def send_good(self, number: int = 1) -> None:
        """Send good frames, and wait for the last one's labels."""
        for _ in range(number - 1):
            self.send(stamped(self._good()))
        self.send_labelled(stamped(self._good()))

    def send_labelled(self, message: Any) -> None:
        """Send a frame and wait for its labels."""
        self.send(message)
        self._wait(lambda: self._labelled(message))

    def _connected(self) -> bool:
        self.send(stamped(self._good()))
        time.sleep(0.1)
        return bool(self._outputs["labels"])

    def _labelled(self, message: Any) -> bool:
        newest = self._outputs["labels"][-2 * FRAMES_DEPTH :]
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


STAMPS = st.one_of(
    st.sampled_from([(0, 0), (-1, 10**9), (2**31 - 1, 2**32 - 1), (-(2**31), 0), (1, 0)]),
    st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)),
)


def test_random_stamps(running: Any, images: Any, wait: Any, image_message: Any) -> None:
    serial = itertools.count()
    unstamped = 0
    with listening(running, labels=Image, confidence=Image) as outputs:
        traffic = Traffic(running, wait, images, image_message, raw_size, outputs)

        @BATCHES
        @given(st.lists(STAMPS, min_size=20, max_size=100), st.integers(1, 9))
        def batch(stamps: list[tuple[int, int]], side: int) -> None:
            nonlocal unstamped
            for start in range(0, len(stamps), FRAMES_DEPTH - NEW_TIMELINE):
                for sec, nanosec in stamps[start : start + FRAMES_DEPTH - NEW_TIMELINE]:
                    message = frame(side, side, "mono8")
                    message.header.stamp = Time(sec=sec, nanosec=nanosec)
                    message.header.frame_id = f"frame {next(serial)}"
                    unstamped += sec * 10**9 + nanosec == 0
                    traffic.send(message)
                # Behind a stamp in the future the first two are refused.
                traffic.send_good(NEW_TIMELINE)

        batch()
        counts = traffic.check()
    assert counts["unstamped"] == unstamped > 0
    assert counts["dropped_out_of_order"] > 0
    assert counts["dropped_malformed"] == counts["dropped_inference_error"] == 0
    figures = [float(text) for name, text in running.values().items() if "_p9" in name]
    assert figures and all(0 <= figure < math.inf for figure in figures)


def test_frames_of_every_shape(running: Any, images: Any, wait: Any, image_message: Any) -> None:
    shapes = [(1, 1), (2, 2), (3, 3), (4000, 1), (1, 4000), (70000, 2), (2, 70000)]
    wanted = dict.fromkeys(("labels", "confidence", "color", "overlay"), Image)
    with listening(running, **wanted) as outputs:
        traffic = Traffic(running, wait, images, image_message, raw_size, outputs)
        for width, height in shapes:
            for encoding in ENCODINGS:
                if rows_of(encoding, width, height):
                    traffic.send_labelled(frame(width, height, encoding))
        wait(lambda: sizes(outputs["color"]) & sizes(outputs["overlay"]) >= set(shapes))
        counts = traffic.check()
    assert counts["frames_labelled"] == traffic.sent


def sizes(messages: list[Image]) -> set[tuple[int, int]]:
    return {(message.width, message.height) for message in messages}


@pytest.mark.parametrize("encoding", ["mono8", "nv12"])
def test_frames_of_8k(
    running: Any, images: Any, wait: Any, image_message: Any, encoding: str
) -> None:
    with listening(running, labels=Image, confidence=Image) as outputs:
        traffic = Traffic(running, wait, images, image_message, raw_size, outputs)
        traffic.send_labelled(frame(7680, 4320, encoding))
        wait(lambda: (7680, 4320) in sizes(outputs["confidence"]))
        assert traffic.check()["frames_labelled"] == 1


def test_8k_in_colour(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path], wait: Any
) -> None:
    # 100 MB are more than the shared memory of the transport holds.
    graph = graph_with(model=model_factory(), device="cpu")
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    message = frame(7680, 4320, "rgb8")
    with listening(graph, labels=Image) as outputs:
        stream, publishers = node.cameras[""]
        wait(lambda: "labels" in publishers.wanted())
        stream.receive(message, {})
        wait(lambda: outputs["labels"])
    assert outputs["labels"][0].header == message.header
    assert (outputs["labels"][0].width, outputs["labels"][0].height) == (7680, 4320)


def test_a_publisher_of_1000_hz(running: Any, images: Any, wait: Any, image_message: Any) -> None:
    message = frame(16, 16, "mono8")
    with listening(running, labels=Image) as outputs:
        traffic = Traffic(running, wait, images, image_message, raw_size, outputs)
        before = totals(running)
        traffic.send_good()  # from here on gaps are seen
        sent = itertools.count(1)
        number = next(sent)
        stop = threading.Event()

        def publish() -> None:
            nonlocal number
            while not stop.wait(0.001):
                images.publish(stamped(message))
                number = next(sent)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            wait(lambda: number > 500)
            assert running.get("overlay_alpha") == 0.5
            assert running.state() == "active"
            wait(lambda: number > 2000)
        finally:
            stop.set()
            thread.join()
        traffic.send_good()
        after = totals(running)
    found = {name: after[name] - before[name] for name in after}
    assert found["frames_received"] + found["lost_transport"] == number + 1
    assert found["frames_labelled"] > 0
    dropped = sum(count for name, count in found.items() if name.startswith("dropped_"))
    assert found["frames_received"] == found["frames_labelled"] + dropped
    assert found["dropped_queue"] == dropped


def test_a_publisher_of_0_hz(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu")
    wait(lambda: graph.status() and graph.status().level == DiagnosticStatus.STALE)
    assert "nobody publishes /image: start the camera" in graph.status().message
    images = graph.publisher(Image, "image")
    wait(lambda: "though the topic has 1 publisher" in graph.status().message)
    assert "--ipc=host" in graph.status().message  # none of its frames has ever arrived
    assert graph.status().level == DiagnosticStatus.STALE
    images.publish(image_message())
    wait(lambda: graph.status().level == DiagnosticStatus.OK)


# Compressed images


def decoded_size(message: CompressedImage) -> tuple[int, int] | None:
    """What OpenCV makes of the data. The node refuses more: what is cut off, and depth."""
    data = np.frombuffer(message.data, np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if pixels is None else (pixels.shape[1], pixels.shape[0])


@pytest.fixture
def compressed(graph: Any, model_factory: Callable[..., Path], wait: Any) -> Iterator[Traffic]:
    """Traffic to a node that reads CompressedImages."""
    graph.start("segment_node", model=model_factory(), device="cpu", image_transport="compressed")
    publisher = graph.publisher(CompressedImage, "image/compressed", DEEP)
    with listening(graph, labels=Image, confidence=Image, overlay=Image) as outputs:
        good = CompressedImage(format="jpeg", data=FILES[0])
        yield Traffic(graph, wait, publisher, lambda: good, decoded_size, outputs)


def test_files_that_are_cut_off_are_never_labelled_and_nonsense_does_no_harm(
    compressed: Traffic,
) -> None:
    cuts = [data[:at] for data in FILES for at in {0, 1, 8, 20, len(data) // 2, len(data) - 1}]
    compressed.send_all(stamped(CompressedImage(format="jpeg", data=data)) for data in cuts)
    assert compressed.check()["dropped_malformed"] == len(cuts)

    @BATCHES
    @given(st.lists(compressed_frames(), min_size=30, max_size=90))
    def batch(frames: list[CompressedImage]) -> None:
        compressed.send_all(stamped(message) for message in frames)

    batch()
    counts = compressed.check()
    assert counts["frames_labelled"] > 0
    assert counts["dropped_malformed"] > len(cuts)
    assert counts["dropped_inference_error"] == counts["dropped_out_of_order"] == 0


# Parameters

WRONG = {
    ParameterType.PARAMETER_NOT_SET: {},
    ParameterType.PARAMETER_BOOL: {"bool_value": True},
    ParameterType.PARAMETER_INTEGER: {"integer_value": 1},
    ParameterType.PARAMETER_DOUBLE: {"double_value": 0.5},
    ParameterType.PARAMETER_STRING: {"string_value": "many"},
    ParameterType.PARAMETER_BYTE_ARRAY: {"byte_array_value": [b"\x01"]},
    ParameterType.PARAMETER_BOOL_ARRAY: {"bool_array_value": [True]},
    ParameterType.PARAMETER_INTEGER_ARRAY: {"integer_array_value": [1, 2]},
    ParameterType.PARAMETER_DOUBLE_ARRAY: {"double_array_value": [0.5]},
    ParameterType.PARAMETER_STRING_ARRAY: {"string_array_value": ["many words"]},
}
RIGHT = {
    float: {ParameterType.PARAMETER_INTEGER, ParameterType.PARAMETER_DOUBLE},
    int: {ParameterType.PARAMETER_INTEGER},
    bool: {ParameterType.PARAMETER_BOOL},
    str: {ParameterType.PARAMETER_STRING, ParameterType.PARAMETER_INTEGER},
    list: {ParameterType.PARAMETER_STRING_ARRAY, ParameterType.PARAMETER_STRING},
}
WORDS = {
    "input_sizes": [["0x0"], ["wide"], ["32"], ["-16x16"], ["32x48x3"], ["100000x16"], ["32X48"]],
    "cameras": [["a b"], ["a/b"], ["1a"], ["\u00e4"], ["a", "a"], [".."]],
    "device": ["", "CPU", "cpu ", "gpu"],
    "image_transport": ["", "RAW", "theora"],
    "input_reliability": ["", "Auto", "best effort"],
    "input_encoding": ["", "8UC3", "RGB8", "bayer"],
}
"""Texts that a parameter of the right type must refuse."""


def value_of(value: Any) -> ParameterValue:
    """A number, a text, or texts as a parameter's value."""
    if isinstance(value, int):
        return ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
    if isinstance(value, float):
        return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    if isinstance(value, str):
        return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
    return ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=value)


def wrong_types(name: str) -> list[ParameterValue]:
    right = RIGHT[type(SETTINGS[name].default)]
    return [ParameterValue(type=kind, **WRONG[kind]) for kind in WRONG if kind not in right]


def out_of_range(name: str) -> list[ParameterValue]:
    """Beyond each end, just and far; nothing for settings without ends."""
    if SETTINGS[name].limits is None:
        return []
    low, high = SETTINGS[name].limits
    values: list[float] = [math.floor(low) - 1, math.ceil(high) + 1, -(2**63), 2**63 - 1]
    if isinstance(low, float):
        values += [math.nextafter(low, -math.inf), high + 1e-3, math.inf, -math.inf, math.nan]
    return [value_of(value) for value in values]


def set_each(graph: Any, *pairs: tuple[str, ParameterValue]) -> list[Any]:
    """The results of setting these, one after the other."""
    request = SetParameters.Request(parameters=[Parameter(name=n, value=v) for n, v in pairs])
    return list(graph.call(SetParameters, "/segment/set_parameters", request).results)


def assert_refused(graph: Any, name: str) -> None:
    """Every bad value of a parameter, with what is allowed."""
    setting = SETTINGS[name]
    before = graph.get(name)
    values = wrong_types(name) + [value_of(value) for value in WORDS.get(name, [])]
    for result in set_each(graph, *((name, value) for value in values)):
        assert not result.successful and name in result.reason
        assert setting.allowed in result.reason or (
            setting.read_only and "read-only" in result.reason
        )
    for result in set_each(graph, *((name, value) for value in out_of_range(name))):
        assert not result.successful and name in result.reason
        assert all(f"{end:g}" in result.reason for end in setting.limits)
    assert graph.get(name) == before


@pytest.mark.parametrize("name", SETTINGS)
def test_every_bad_value_is_refused_with_what_is_allowed(running: Any, name: str) -> None:
    assert_refused(running, name)


def test_names_that_nobody_declared_are_refused(running: Any) -> None:
    names = ["", "nonsense", "overlay_alpha.x", "OVERLAY_ALPHA", "\u00e4", "%s", "a" * 5000]
    values = [ParameterValue(), value_of(1), value_of("x")]
    pairs = [(name, value) for name in names for value in values]
    for (name, _), result in zip(pairs, set_each(running, *pairs), strict=True):
        assert not result.successful and repr(name) in result.reason
    answer = running.call(ListParameters, "/segment/list_parameters", ListParameters.Request())
    assert not set(names) & set(answer.result.names)


def test_types_that_there_are_not_are_refused(running: Any) -> None:
    names = [*SETTINGS, "use_sim_time", "class_names", "nonsense"]
    pairs = [(name, ParameterValue(type=kind)) for name in names for kind in (99, 255)]
    for result in set_each(running, *pairs):
        assert not result.successful and result.reason
    assert running.state() == "active"


def test_parameters_beside_the_settings_are_refused_as_well(running: Any) -> None:
    wrong = [ParameterValue(), value_of(1), value_of("true"), value_of(["true"])]
    for result in set_each(running, *(("use_sim_time", value) for value in wrong)):
        assert not result.successful and result.reason
    for result in set_each(running, *(("class_names", value) for value in wrong)):
        assert not result.successful and "what the model says" in result.reason
    assert running.get("use_sim_time") is False
    assert running.get("class_names") == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_confidence", value_of(7.0)),
        ("min_confidence", value_of("high")),
        ("overlay_alpha", value_of(9.0)),  # once more, and badly
        ("model", value_of("another")),
        ("cameras", value_of(["front"])),  # fixed while the node is configured
        ("autostart", ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True)),
        ("nonsense", value_of(1)),
        ("use_sim_time", value_of(1)),
        ("latency_budget_ms", ParameterValue(type=99)),
    ],
)
def test_one_bad_value_among_good_ones_changes_nothing(
    running: Any, name: str, value: ParameterValue
) -> None:
    good = {"overlay_alpha": 0.9, "max_age_ms": 700.0, "device": "auto"}
    before = {key: running.get(key) for key in good}
    assert all(before[key] != good[key] for key in good)
    bad = Parameter(name=name, value=value)
    for place in range(len(good) + 1):
        parameters = [Parameter(name=key, value=value_of(item)) for key, item in good.items()]
        parameters.insert(place, bad)
        request = SetParametersAtomically.Request(parameters=parameters)
        service = "/segment/set_parameters_atomically"
        result = running.call(SetParametersAtomically, service, request).result
        assert not result.successful and result.reason
    assert {key: running.get(key) for key in good} == before
    running.counts()  # a new report
    assert running.values()["device"] == "cpu"


BAD_STARTS = {
    "model": 3.5,
    "device": "gpu",
    "input_sizes": "[wide]",
    "latency_budget_ms": -1,
    "max_age_ms": "soon",
    "min_confidence": 1.01,
    "label_groups": "[a, b]",
    "refinement": "sharp",
    "merge_level": 1.5,
    "attention_mass": 0.0,
    "attention_head": 64,
    "overlay_alpha": True,
    "cameras": "['front camera']",
    "image_transport": "pigeon",
    "input_reliability": "[1, 2]",
    "input_encoding": "8UC3",
    "input_bits": 17,
    "always_infer": "now and then",
}


def test_bad_start_values_are_all_said_and_can_be_mended(
    graph: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    assert set(BAD_STARTS) | {"autostart"} == set(SETTINGS)
    graph.start("segment_node", **BAD_STARTS)
    wait(lambda: graph.status() and graph.status().level == DiagnosticStatus.ERROR)
    for name in BAD_STARTS:
        limits = SETTINGS[name].limits
        ends = [] if limits is None else [f"{end:g}" for end in limits]
        said = graph.status().message
        assert name in said
        assert SETTINGS[name].allowed in said or all(end in said for end in ends)
    assert graph.state() == "unconfigured"
    good = {name: SETTINGS[name].default for name in BAD_STARTS}
    good |= {"model": str(model_factory()), "device": "cpu"}
    for name in list(good)[1:]:
        assert graph.set(name, good[name]) == (True, "")
    assert not graph.transition("configure")
    wait(lambda: "overlay_alpha" not in graph.status().message)
    assert "model must be text, not 3.5" in graph.status().message
    assert graph.set("model", good["model"])[0]
    assert graph.transition("configure") and graph.transition("activate")
    graph.wait_for_state("active")
    assert graph.status().level != DiagnosticStatus.ERROR


def test_a_bad_start_value_of_what_cannot_be_set_is_said(graph: Any, wait: Any) -> None:
    graph.start("segment_node", autostart=3, class_names=3)  # the second one is the node's own
    wait(lambda: graph.status() and graph.status().level == DiagnosticStatus.ERROR)
    assert "autostart must be true or false, not 3" in graph.status().message
    assert "class_names" not in graph.status().message
    assert graph.state() == "unconfigured"
