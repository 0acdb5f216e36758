# SPDX-License-Identifier: Apache-2.0
"""What the demo keeps of a run, and the node that records it."""

import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from ctxseg_ros.ros import qos
from ctxseg_ros.ros.diagnostics import CAUSES
from ctxseg_ros.ros.images import read_rgb

RELIABLE = ReliabilityPolicy.RELIABLE

Stamp = tuple[int, int]
"""Seconds and nanoseconds of a message."""


@dataclass
class Recording:
    """What a run left behind."""

    stamps: list[Stamp] = field(default_factory=list)
    """Of the frames sent, in their order. The first few can be missing: they were sent before the
    recorder was discovered."""
    labels: dict[Stamp, tuple[tuple[int, int], bytes]] = field(default_factory=dict)
    """Labels or attention, uint8 [H, W]: shape and pixels, packed by zlib."""
    pictures: dict[Stamp, NDArray[np.uint8]] = field(default_factory=dict)
    """Frames as JPEG, of a live source only."""
    label_times: list[float] = field(default_factory=list)
    """Seconds of the monotonic clock when labels arrived."""
    status: dict[str, DiagnosticStatus] = field(default_factory=dict)
    """The newest diagnostics: "frames" is the camera's, "labels" the segmenter's."""
    status_times: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    """Why the run ended before its time, if it did."""

    def values(self, part: str) -> dict[str, str]:
        """The values of the newest diagnostics of a part; empty before the first."""
        status = self.status.get(part, DiagnosticStatus())
        return {item.key: item.value for item in status.values}

    @property
    def sent(self) -> int:
        """Frames that the camera reports to have sent; 0 before its first report."""
        return int(self.values("frames").get("frames_sent", 0))

    @property
    def received(self) -> int:
        """Frames that the segmenter reports to have received; 0 before its first report."""
        return int(self.values("labels").get("frames_received", 0))

    @property
    def labelled(self) -> int:
        """Frames that the segmenter reports to have labelled; 0 before its first report."""
        return int(self.values("labels").get("frames_labelled", 0))

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that the segmenter reports to have dropped, by CAUSES."""
        values = self.values("labels")
        return {cause: int(values.get(f"dropped_{cause}", 0)) for cause in CAUSES}

    def sent_stamps(self) -> list[Stamp | None]:
        """The stamp of every frame sent, in order, None where it was not recorded."""
        unrecorded = self.sent - len(self.stamps)
        first = self.stamps[0] if self.stamps else (2**62, 0)
        early = sorted(stamp for stamp in self.labels if stamp < first)
        if len(early) == unrecorded:  # each of them was labelled, and labels have the frame's stamp
            return [*early, *self.stamps]
        return [*[None] * unrecorded, *self.stamps]

    def labels_of(self, stamp: Stamp | None) -> NDArray[np.uint8] | None:
        """Labels or attention of a frame, uint8 [H, W]; None if it got none."""
        if stamp is None or stamp not in self.labels:
            return None
        shape, packed = self.labels[stamp]
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)


class Recorder(Node):
    """Subscribes to what the demo keeps."""

    def __init__(self, namespace: str, topic: str, live: bool) -> None:
        """`topic`: the output of segment_node to record; `live`: record the frames too."""
        super().__init__("recorder", namespace=namespace)
        self.recording = Recording()
        deep = QoSProfile(reliability=RELIABLE, depth=100)
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, deep)
        self.create_subscription(Image, f"segment/{topic}", self._on_labels, deep)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)
        self._image_wanted = live  # it cannot be read a second time

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.recording.stamps.append(_stamp(message))

    def _on_labels(self, message: Image) -> None:
        self.recording.label_times.append(time.monotonic())
        if self._image_wanted:
            # Not before: the camera starts for its first subscriber, which must be the segmenter.
            self._image_wanted = False
            self.create_subscription(Image, "image", self._on_image, qos.frames(RELIABLE))
        # Level 1 makes a label image 30 times smaller in a millisecond.
        packed = zlib.compress(message.data, 1)
        self.recording.labels[_stamp(message)] = ((message.height, message.width), packed)

    def _on_image(self, message: Image) -> None:
        bgr = cv2.cvtColor(read_rgb(message), cv2.COLOR_RGB2BGR)
        self.recording.pictures[_stamp(message)] = cv2.imencode(".jpg", bgr)[1]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node, _, part = status.name.partition(": ")
            if node.startswith(f"{self.get_namespace()}/"):
                self.recording.status[part] = status
                self.recording.status_times[part] = time.monotonic()


def _stamp(message: Any) -> Stamp:
    return message.header.stamp.sec, message.header.stamp.nanosec
