# SPDX-License-Identifier: Apache-2.0
"""The node to compare with: a segmenter as popular Python packages for ROS 2 write it.

python -m benchmarks.plain_node MODEL SIZE DEVICE DEPTH [CAMERA...]

Each choice is theirs, and where they differ the faster one is taken:

- inference in the subscription's callback, under rclpy.spin: yolo_ros, ultralytics_ros, opendr;
- depth 1 (yolo_ros) or 10 (the number in most tutorials and in opendr), reliable like the camera;
- cv_bridge's conversions: imgmsg_to_cv2(message, "bgr8") is a view on the data and a copying
  cvtColor, the model wants RGB, another one; cv2_to_imgmsg hands `tobytes()` to `data`;
- cv2.resize as it is by default, labels back by nearest neighbour;
- Fast DDS as it comes, without a profile: this process, its camera and its subscriber;
- the input's header on the output, and a publisher of depth 10.

In its favour: the model file, the runtime and the size are the package's own, open and warm before
the first frame; it publishes labels alone, no confidence and no diagnostics; several cameras share
one process and one model, where those packages start a node with a model of its own for each.

It keeps the stamp of every frame that reached the callback and how long `runtime.run` took, and
gives that when asked.
"""

import sys
import threading
import time
from contextlib import suppress
from functools import partial

import cv2
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image

from benchmarks.processes import Parent
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import parse_size


class PlainNode(Node):
    """`image` in, `plain/labels` out; with cameras `CAMERA/image` and `plain/CAMERA/labels`."""

    def __init__(self, model: str, size: str, device: str, depth: int, cameras: list[str]) -> None:
        super().__init__("plain")
        self._runtime = open_runtime(store.load(model), parse_size(size), device)
        self.device, self.precision = self._runtime.device, self._runtime.precision
        self.frames: list[tuple[int, float]] = []  # stamp in ns, inference in ms
        for prefix in [f"{camera}/" for camera in cameras] or [""]:
            publisher = self.create_publisher(Image, f"plain/{prefix}labels", 10)
            on_image = partial(self._on_image, publisher)
            self.create_subscription(Image, f"{prefix}image", on_image, depth)

    def _on_image(self, publisher: Publisher, message: Image) -> None:
        shape = (message.height, message.width, 3)
        pixels = np.ndarray(shape, np.uint8, buffer=message.data)
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        height, width = self._runtime.size
        resized = cv2.resize(bgr, (width, height))
        rgb = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
        begin = time.perf_counter()
        labels = self._runtime.run(rgb).labels
        inference_ms = (time.perf_counter() - begin) * 1e3
        full = cv2.resize(labels, shape[1::-1], interpolation=cv2.INTER_NEAREST)
        answer = Image()
        answer.header = message.header
        answer.height, answer.width = full.shape
        answer.encoding = "mono8"
        answer.step = answer.width
        answer.data = full.tobytes()
        publisher.publish(answer)
        stamp = message.header.stamp
        self.frames.append((stamp.sec * 10**9 + stamp.nanosec, inference_ms))


def main(model: str, size: str, device: str, depth: str, *cameras: str) -> None:
    """Answer requests for the frames until the parent closes its end."""
    parent = Parent()
    rclpy.init()
    node = PlainNode(model, size, device, int(depth), list(cameras))
    parent.answer(ready=True)

    def answer() -> None:
        for _ in parent.requests():
            parent.answer(frames=node.frames, device=node.device, precision=node.precision)

    threading.Thread(target=answer, daemon=True).start()
    rclpy.spin(node)


if __name__ == "__main__":
    with suppress(ExternalShutdownException):  # SIGTERM is rclpy's, once it has started
        main(*sys.argv[1:])
