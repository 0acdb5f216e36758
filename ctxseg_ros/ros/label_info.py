# SPDX-License-Identifier: Apache-2.0
"""vision_msgs/LabelInfo: the name of each id, latched beside the labels."""

from collections.abc import Iterable, Sequence

from rclpy.node import Node
from rclpy.publisher import Publisher

from ctxseg_ros.model.model_file import ClassInfo
from ctxseg_ros.model.prediction import UNLABELLED
from ctxseg_ros.ros import qos

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not installed, or older than LabelInfo
    LabelInfo = None

UNLABELED = "UNLABELED"
"""vision_msgs' name for 255, the largest id that a uint8 holds."""


class LabelInfos:
    """`~/label_info`, and `~/CAMERA/label_info` for each named camera while the node is configured.

    Nothing is published where vision_msgs is not installed.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._own = self._publisher("~/label_info")
        self._of_cameras: list[Publisher] = []

    def open(self, cameras: Iterable[str]) -> None:
        """Advertise the named cameras' topics; the only camera has no name, and `~/label_info`."""
        for name in filter(None, cameras):
            publisher = self._publisher(f"~/{name}/label_info")
            if publisher is not None:
                self._of_cameras.append(publisher)

    def close(self) -> None:
        """Take the cameras' topics away."""
        for publisher in self._of_cameras:
            self._node.destroy_publisher(publisher)
        self._of_cameras = []

    def publish(self, classes: Sequence[ClassInfo], threshold: float, unlabelled: bool) -> None:
        """Latch the table. `threshold`: 0-1, the confidence below which a pixel becomes 255.
        `unlabelled`: whether 255 may occur."""
        if self._own is None:
            return
        table = [(item.id, item.name) for item in classes]
        if unlabelled:
            table.append((UNLABELLED, UNLABELED))
        message = LabelInfo(
            class_map=[VisionClass(class_id=number, class_name=name) for number, name in table],
            threshold=threshold,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        for publisher in (self._own, *self._of_cameras):
            publisher.publish(message)

    def _publisher(self, topic: str) -> Publisher | None:
        if LabelInfo is None:
            return None
        return self._node.create_publisher(LabelInfo, topic, qos.LATCHED)
