# SPDX-License-Identifier: Apache-2.0
"""One camera of the segmenter: its subscriptions, its clock, and what became of its frames."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ctxseg_ros.latency import LatencyWindow
from ctxseg_ros.ros import qos
from ctxseg_ros.ros.diagnostics import FrameCounts
from ctxseg_ros.ros.images import BadImage, frame_size
from ctxseg_ros.ros.parameters import Settings
from ctxseg_ros.stamps import ClockWatch, StampOrder

THROTTLE_S = 5.0  # between two log lines of one kind
LATENCY_WINDOW = 500  # frames behind the percentiles: 20 s at 25 Hz


@dataclass(frozen=True)
class Frame:
    """A checked message on its way to the worker. `size`: (height, width) of the camera's frame.

    Times are seconds of the monotonic clock, which neither simulated time nor a clock that is set
    can bend. `stamp` is the camera's, as far as its clock is to be trusted, else the arrival;
    `doubtful` while that is being found out.
    """

    message: Image | CompressedImage
    size: tuple[int, int]
    stamp: float
    received: float
    doubtful: bool


class CameraStream:
    """What one camera sends, from the subscription to the slot. For the executor's thread.

    `name`: the camera's namespace, empty for the only one. `deliver(frame)` takes a good frame
    and says whether another one was lost for it.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        settings: Settings,
        deliver: Callable[[Frame], bool],
    ) -> None:
        self.name = name
        self.counts = FrameCounts()
        self.latency = LatencyWindow(LATENCY_WINDOW)
        self.clock = ClockWatch(node.get_parameter("use_sim_time").value)
        self.camera_info: CameraInfo | None = None
        self.encoding = "none yet"
        self.blocked: str | None = None  # why no frame can arrive
        self.unmatched: list[str] = []  # whose subscription to the labels and so on cannot match
        self.last_error = ""
        # One of its own: rclpy throttles by logger and line, and cameras must not hide each other.
        self.log = node.get_logger().get_child(name) if name else node.get_logger()
        self.read_delay_ms = 0.0  # from arrival in the process to the callback
        self.gaps_known = True  # False: several publishers, or messages without numbers
        self._node = node
        self._settings = settings
        self._deliver = deliver
        self._order = StampOrder()
        self._frames: Subscription | None = None
        self._infos: Subscription | None = None
        self._publishers_seen: set[bytes] = set()
        self._last_sequence: int | None = None
        self._last_frame = time.monotonic()
        self._read_delays: list[float] = []
        prefix = f"{name}/" if name else ""
        self._info_topic = f"{prefix}camera_info"
        # As image_transport does it: the suffix goes behind the name after remapping.
        self.topic = node.resolve_topic_name(f"{prefix}image")
        self._compressed = settings["image_transport"] == "compressed"
        if self._compressed:
            self.topic += "/compressed"

    @property
    def publishers(self) -> int:
        """How many publishers the topic has."""
        return len(self._publishers_seen)

    @property
    def silence_s(self) -> float:
        """Seconds since the last frame, or since `open`."""
        return time.monotonic() - self._last_frame

    def open(self) -> None:
        """Subscribe. What the camera sent before was not lost."""
        self.latency = LatencyWindow(LATENCY_WINDOW)
        self._last_sequence = None
        self._last_frame = time.monotonic()
        self._subscribe(qos.wanted_reliability(self._settings["input_reliability"], ()))
        self._infos = self._node.create_subscription(
            CameraInfo, self._info_topic, self._on_camera_info, qos.CAMERA_INFO
        )
        self.follow_publishers()

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in (self._frames, self._infos):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._frames = self._infos = self.camera_info = self.blocked = None

    def follow_publishers(self) -> None:
        """Ask for what the publishers offer, and say so where nothing can match."""
        if self._frames is None:
            return
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        wanted = qos.wanted_reliability(
            self._settings["input_reliability"], [item.qos_profile for item in publishers]
        )
        if wanted != self._frames.qos_profile.reliability:
            self._node.destroy_subscription(self._frames)
            self._subscribe(wanted)
            self._node.get_logger().info(f"reading {self.topic} as {wanted.name.lower()}")
        seen = {bytes(item.endpoint_gid) for item in publishers}
        if seen != self._publishers_seen:
            self._publishers_seen = seen
            self._last_sequence = None
        kind = "CompressedImage" if self._compressed else "Image"
        self.blocked = qos.mismatch(
            self.topic, f"sensor_msgs/msg/{kind}", self._frames.qos_profile, publishers
        )

    def sample(self) -> None:
        """Once a second: what `counts` and `read_delay_ms` look back on."""
        self.counts.sample()
        delays, self._read_delays = self._read_delays, []
        self.read_delay_ms = median(delays) * 1e3 if delays else 0.0

    def drop(self, cause: str, error: str) -> None:
        """Count a frame that gets no labels, and say why. Any thread may call this."""
        self.counts.add(cause)
        self.last_error = error
        self.log.error(error, throttle_duration_sec=THROTTLE_S)

    def _subscribe(self, reliability: ReliabilityPolicy) -> None:
        self._frames = self._node.create_subscription(
            CompressedImage if self._compressed else Image,
            self.topic,
            self._on_frame,  # type: ignore[arg-type]  # rclpy's types leave out the second argument
            qos.frames(reliability),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=lambda _: self.follow_publishers()
            ),
        )

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.camera_info = message

    def _on_frame(self, message: Image | CompressedImage, info: dict[str, Any]) -> None:
        received = self._last_frame = time.monotonic()
        self.counts.add("received")
        self._count_gap(info.get("publication_sequence_number"))
        if arrived := info.get("received_timestamp"):
            self._read_delays.append(time.time() - arrived * 1e-9)
        self.encoding = message.encoding if isinstance(message, Image) else message.format
        try:
            size = frame_size(message)
        except BadImage as error:
            self.drop("malformed", f"{self.topic}: {error}")
            return
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        if not self._order.accepts(stamp_ns):
            self.counts.add("out_of_order")
            return
        age_s = 0.0
        if stamp_ns:
            if now_ns := self._node.get_clock().now().nanoseconds:  # 0: no /clock came yet
                age_s = self.clock.observe((now_ns - stamp_ns) * 1e-9)
        else:
            self.counts.add("unstamped")
        frame = Frame(message, size, received - age_s, received, self.clock.doubtful)
        if self._deliver(frame):
            self.counts.add("queue")

    def _count_gap(self, sequence: int | None) -> None:
        """A publisher numbers its messages; with several of them the numbers say nothing."""
        self.gaps_known = sequence is not None and len(self._publishers_seen) < 2
        if sequence is None or not self.gaps_known:
            return
        expected, self._last_sequence = self._last_sequence, sequence
        # Counted anew: a second publisher may have come since the last look.
        if (
            expected is not None
            and sequence > expected + 1
            and self._node.count_publishers(self.topic) < 2
        ):
            self.counts.add("lost_transport", sequence - expected - 1)
