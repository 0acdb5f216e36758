# SPDX-License-Identifier: Apache-2.0
"""A camera of the benchmarks: real frames, an exact rate, stamped when they are sent.

python -m benchmarks.camera TOPIC WIDTH HEIGHT SOURCE

It sends nothing until it is asked to: {"rate_hz", "seconds", "start_ns"}; the answer has the stamp
of every frame sent. The messages' pixels are prepared before, so that sending costs what rclpy and
DDS take and no more. Reliable, depth 10, rgb8: what most drivers offer.
"""

import array
import itertools
import sys
import time
from collections.abc import Iterator

import cv2
import rclpy
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from benchmarks.processes import Parent
from ctxseg_ros.image.source import FrameSource

FRAMES = 24  # that differ; four cameras of 1080p hold 600 MB


def prepare(source: str, width: int, height: int) -> list[array.array]:
    """The first frames of a video as rgb8 data of width x height."""
    frames = []
    for bgr in itertools.islice(FrameSource(source).frames(), FRAMES):
        rgb = cv2.cvtColor(cv2.resize(bgr, (width, height)), cv2.COLOR_BGR2RGB)
        frames.append(array.array("B", rgb.tobytes()))
    return frames


def slots(rate_hz: float, seconds: float, start_ns: int) -> Iterator[None]:
    """Gives control back when a frame is due, times counted by time.monotonic_ns().

    A slot that is over by half a period is left out: a camera sends no bursts.
    """
    period_ns = 1e9 / rate_hz
    slot, count = 0, round(seconds * rate_hz)
    while slot < count:
        wait_ns = start_ns + slot * period_ns - time.monotonic_ns()
        time.sleep(max(wait_ns, 0) * 1e-9)
        yield
        now = (time.monotonic_ns() - start_ns) / period_ns
        slot = max(slot + 1, round(now))


def play(
    publisher: Publisher,
    message: Image,
    frames: Iterator[array.array],
    rate_hz: float,
    seconds: float,
    start_ns: int,
) -> list[int]:
    """Send frames; gives their stamps in nanoseconds."""
    stamps = []
    for _ in slots(rate_hz, seconds, start_ns):
        message.data = next(frames)
        now = time.time_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
        publisher.publish(message)
        stamps.append(now)
    return stamps


def main(topic: str, width: str, height: str, source: str) -> None:
    """Answer requests until the parent closes its end."""
    parent = Parent()
    frames = itertools.cycle(prepare(source, int(width), int(height)))
    message = Image(width=int(width), height=int(height), encoding="rgb8", step=3 * int(width))
    message.header.frame_id = "camera"
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(f"camera_{topic.replace('/', '_')}")
    reliable = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, depth=10)
    publisher = node.create_publisher(Image, topic, reliable)
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    parent.answer(ready=True)
    for request in parent.requests():
        parent.answer(stamps=play(publisher, message, frames, **request))


if __name__ == "__main__":
    main(*sys.argv[1:])
