# SPDX-License-Identifier: Apache-2.0
"""One camera of the segmenter: its subscriptions, its clock, and what became of its frames."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ctxseg_ros.realtime.latency import LatencyWindow
from ctxseg_ros.realtime.stamps import ClockWatch, StampOrder
from ctxseg_ros.ros import qos
from ctxseg_ros.ros.diagnostics import FrameCounts
from ctxseg_ros.ros.images import BadImage, Reading, frame_size, largest_value, sensor_bits
from ctxseg_ros.ros.parameters import Settings

THROTTLE_S = 5.0  # between two log lines of one kind
LATENCY_WINDOW = 500  # frames behind the percentiles: 20 s at 25 Hz
AUTO = "auto"  # input_encoding: what the frames say themselves
_DARK_FRAMES = 5  # after so many 16-bit frames with empty upper bits, that is said


@dataclass(frozen=True)
class Frame:
    """A checked message on its way to the worker. `size`: (height, width) of the camera's frame.

    Times are seconds of the monotonic clock, which neither simulated time nor a clock that is set
    can bend. `stamp` is the camera's, as far as its clock is to be trusted, else the arrival;
    `doubtful` while that is being found out. `reading`: what the parameters say of the pixels.
    """

    message: Image | CompressedImage
    size: tuple[int, int]
    stamp: float
    received: float
    doubtful: bool
    reading: Reading


def subscription_name(node: Node, image: str, compressed: bool) -> str:
    """The name to subscribe to a camera's frames with, so that remapping rules apply once.

    `image` is relative to the node's namespace. Of compressed frames a rule for
    `IMAGE/compressed` comes first; without one the suffix goes behind what `IMAGE` is remapped to,
    as image_proc does it. Raises ValueError where that has a rule as well.
    """
    if not compressed:
        return image
    own = f"{image}/compressed"
    if node.resolve_topic_name(own) != node.resolve_topic_name(own, only_expand=True):
        return own
    name = f"{node.resolve_topic_name(image)}/compressed"
    if node.resolve_topic_name(name) != name:
        raise ValueError(
            f"two remapping rules lead from {image} to {node.resolve_topic_name(name)}, one after "
            f"the other: remap {own} itself"
        )
    return name


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
        self.same_host = False  # Fast DDS: frames of a publisher come through shared memory
        self._node = node
        self._settings = settings
        self._deliver = deliver
        self._order = StampOrder()
        self._frames: Subscription | None = None
        self._infos: Subscription | None = None
        self._publishers_seen: set[bytes] = set()
        self._last_sequence: int | None = None
        self._last_frame = self._publishers_since = time.monotonic()
        self._read_delays: list[float] = []
        self._heard = False  # a frame of the publishers that there are now
        self._first = True  # no frame yet since `open`
        self._dark_frames = self._largest = 0
        self._depth_known = False
        prefix = f"{name}/" if name else ""
        self._info_topic = f"{prefix}camera_info"
        self._compressed = settings["image_transport"] == "compressed"
        self._name = subscription_name(node, f"{prefix}image", self._compressed)
        self.topic = node.resolve_topic_name(self._name)
        if self.topic == node.resolve_topic_name(self._info_topic):
            raise ValueError(
                f"{self.topic} would carry both images and camera_info: remap only one of "
                f"{prefix}image and {self._info_topic} to it"
            )

    @property
    def publishers(self) -> int:
        """How many publishers the topic has."""
        return len(self._publishers_seen)

    @property
    def publishers_s(self) -> float:
        """Seconds since publishers came or went."""
        return time.monotonic() - self._publishers_since

    @property
    def unheard(self) -> bool:
        """Whether there are publishers and no frame of them has ever arrived.

        They may be idle. With `same_host` it may be shared memory that the two processes do not
        share: containers, users.
        """
        return bool(self._publishers_seen) and not self._heard

    @property
    def reliability(self) -> ReliabilityPolicy | None:
        """What is asked of the publishers; None while not subscribed."""
        return None if self._frames is None else self._frames.qos_profile.reliability

    @property
    def silence_s(self) -> float:
        """Seconds since the last frame, or since `open`."""
        return time.monotonic() - self._last_frame

    def open(self) -> None:
        """Subscribe. What the camera sent before was not lost."""
        self.latency = LatencyWindow(LATENCY_WINDOW)
        self._last_sequence = None
        self._last_frame = time.monotonic()
        self._heard, self._first = False, True
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
        # rclpy remaps this name as it remaps a subscription's.
        publishers = self._node.get_publishers_info_by_topic(self._name)
        wanted = qos.wanted_reliability(
            self._settings["input_reliability"], [item.qos_profile for item in publishers]
        )
        if wanted != self._frames.qos_profile.reliability:
            self._node.destroy_subscription(self._frames)
            self._subscribe(wanted)
            self._node.get_logger().info(f"reading {self.topic} as {wanted.name.lower()}")
        seen = {bytes(item.endpoint_gid) for item in publishers}
        if seen != self._publishers_seen:
            if self._publishers_seen and not seen & self._publishers_seen:
                self._heard = False
            self._publishers_seen = seen
            self._publishers_since = time.monotonic()
            self._last_sequence = None
            self.same_host = self._is_on_this_host(seen)
        if publishers:
            self.blocked = qos.mismatch(
                self.topic, self._message_type, self._frames.qos_profile, publishers
            )
        else:
            self.blocked = self._other_transport()

    @property
    def _message_type(self) -> str:
        return qos.COMPRESSED_IMAGE if self._compressed else qos.IMAGE

    def _is_on_this_host(self, publishers: set[bytes]) -> bool:
        """Whether Fast DDS takes one of the publishers for a neighbour: it knows hosts by the
        first four bytes of an endpoint's identifier."""
        if not get_rmw_implementation_identifier().startswith("rmw_fastrtps"):
            return False
        own = {
            bytes(item.endpoint_gid)[:4]
            for item in self._node.get_subscriptions_info_by_topic(self._name)
            if item.node_name == self._node.get_name()
        }
        return any(gid[:4] in own for gid in publishers)

    def _other_transport(self) -> str | None:
        """What to do where nobody publishes the topic, but the same images in another way."""
        image = self.topic.removesuffix(qos.COMPRESSED)
        published = {
            name: kinds
            for name, kinds in self._node.get_topic_names_and_types()
            if name.startswith(image) and self._node.count_publishers(name)
        }
        return qos.other_transport(self.topic, self._compressed, published)

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
            self._name,
            self.receive,  # type: ignore[arg-type]  # rclpy's types leave out the second argument
            qos.frames(reliability),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=lambda _: self.follow_publishers()
            ),
        )
        self.topic = self._frames.topic_name

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.camera_info = message

    def receive(self, message: Image | CompressedImage, info: dict[str, Any]) -> None:
        """The subscription's callback: check, count and deliver a frame.

        `info`: what rclpy tells of the message, such as its number and when it arrived.
        """
        received = self._last_frame = time.monotonic()
        self._heard = True
        self.counts.add("received")
        self._count_gap(info.get("publication_sequence_number"))
        if arrived := info.get("received_timestamp"):
            self._read_delays.append(time.time() - arrived * 1e-9)
        self.encoding = message.encoding if isinstance(message, Image) else message.format
        reading = self._reading()
        try:
            size = frame_size(message, reading)
        except BadImage as error:
            self.drop("malformed", f"{self.topic}: {error}")
            return
        if self._first:
            self._first = False
            self.log.info(f"first frame of {self.topic}: {size[1]}x{size[0]}, {self.encoding}")
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
        doubtful = self.clock.doubtful
        frame = Frame(message, size, received - age_s, received, doubtful, reading)
        if self._deliver(frame):
            self.counts.add("queue")

    def _reading(self) -> Reading:
        encoding = self._settings["input_encoding"]
        return Reading("" if encoding == AUTO else encoding, self._settings["input_bits"])

    def check_depth(self, frame: Frame, pixels: NDArray[np.uint8]) -> None:
        """Warn once where 16-bit frames use their lower bits only. For the worker's thread.

        `pixels`: what was read of the frame, of any size.
        """
        if self._depth_known or frame.reading.bits < 16:
            return
        # 14 bits of 16 give 64 at most; a smaller frame may have lost its brightest pixels.
        largest = None if pixels.max() > 64 else largest_value(frame.message, frame.reading)
        self._largest = max(self._largest, largest or 0)
        bits = sensor_bits(self._largest)
        self._dark_frames += 1
        if largest is None or bits is None:
            self._depth_known = True
        elif self._dark_frames == _DARK_FRAMES:
            self._depth_known = True
            self.log.warning(
                f"{self.topic} is nearly black: no 16-bit value of its first {_DARK_FRAMES} frames "
                f"is above {self._largest}. If the camera has {bits} bits, set input_bits to {bits}"
            )

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
