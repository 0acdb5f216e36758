# SPDX-License-Identifier: Apache-2.0
"""The camera node: publishes the frames of a source at a steady rate."""

import threading
import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ctxseg_ros.image.source import FrameSource, SourceError
from ctxseg_ros.ros import diagnostics, qos
from ctxseg_ros.ros.images import to_image
from ctxseg_ros.ros.parameters import Settings, choice, integer, number, path, switch, text
from ctxseg_ros.system.files import shown

_SHOWN = 3  # sentences on losses, the latest, in the diagnostics; the log has all

SETTINGS = {
    "source": path(
        "",
        "Video, image, folder of images, numbered images such as frame_%03d.png, URL, device such "
        "as /dev/video0, or camera index; ~ is the home folder",
        read_only=True,
    ),
    "source_bits": integer(
        16,
        8,
        16,
        "Bits actually used in 16-bit images, such as 12 for a 12-bit sensor, whose images are "
        "nearly black otherwise",
        read_only=True,
    ),
    "rate_hz": number(
        0.0,
        0.0,
        1000.0,
        "Highest frame rate in Hz; 0: the frame rate of the source",
        read_only=True,
    ),
    "loop": switch(
        True, "Start again at the end of the source; false: end the node", read_only=True
    ),
    "reliability": choice(
        "reliable", ("reliable", "best_effort"), "QoS of `image`", read_only=True
    ),
    "frame_id": text("camera", "frame_id in every header", read_only=True),
    "wait_for_subscriber": switch(
        False, "Send the first frame only when `image` has a subscriber", read_only=True
    ),
}

VALUES = {
    "source": "as given",
    "frames_sent": "since startup, like all counts",
    "rate_hz": "rate of sent frames in Hz",
    "frames_unreadable": "frames that could not be decoded",
    "frames_missing": "frames that a video announces but does not contain, because it was cut "
    "short or has gaps",
    "outages": "interruptions of a live source",
    "outage_s": "total time without the source in seconds",
}
"""The values of the node's status in /diagnostics."""


class CameraNode(Node):
    """Publishes `image` (bgr8) and `camera_info`, stamped when they are sent.

    One thread decodes the next frame, waits for its turn, stamps and publishes it. `end` is called
    with the exit code when the source ends (0), or cannot be opened or read on (1). Frames that
    cannot be decoded are left out, counted and named; a live source that drops is reconnected.
    `shortage`: why this process has no shared memory, if so (transport.py).
    """

    def __init__(self, end: Callable[[int], None], shortage: str = "") -> None:
        super().__init__("camera")
        if shortage:
            self.get_logger().warning(shortage)
        self._end = end
        self._settings = Settings(self, SETTINGS)
        self._sent = 0
        self._state = "publishing"
        self._reported = (0, time.monotonic())  # frames sent, and when
        self._stopping = threading.Event()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._images = self.create_publisher(
            Image, "image", qos.frames(qos.wanted_reliability(self._settings["reliability"], ()))
        )
        self._infos = self.create_publisher(CameraInfo, "camera_info", qos.CAMERA_INFO_OUTPUT)
        self._settings.warn_of_unused_qos()
        self._thread = threading.Thread(target=self._play, name="camera", daemon=True)
        try:
            if self._settings.faults:
                raise SourceError("; ".join(self._settings.faults.values()))
            self._source = FrameSource(
                self._settings["source"],
                self._settings["source_bits"],
                lambda line: self.get_logger().warning(line),
            )
        except SourceError as error:
            self.get_logger().fatal(str(error))
            end(1)
            return
        self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Stop publishing. False: the source was still busy after `timeout_s`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._source.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _play(self) -> None:
        exit_code = 1
        try:
            self._publish_all()
            exit_code = 0
        except SourceError as error:
            self.get_logger().error(str(error))
        finally:
            # Whoever was matched has every frame, and the count, before the node goes.
            self._images.wait_for_all_acked(Duration(seconds=1))
            self._state = "ended"
            self._report()
            self._diagnostics.wait_for_all_acked(Duration(seconds=1))
            self.get_logger().info(f"{self._sent} frames sent")
            self._end(exit_code)

    def _publish_all(self) -> None:
        rate = self._settings["rate_hz"] or self._source.rate_hz
        period = 1.0 / rate if rate else 0.0
        pace = f"{rate:g} Hz" if period else "the camera's own rate"
        self.get_logger().info(f"{shown(self._source.name)} on {self._images.topic_name}, {pace}")
        if self._settings["wait_for_subscriber"]:
            while not self._images.get_subscription_count() and not self._stopping.wait(0.05):
                pass
            # The same subscribers' readers of camera_info and /diagnostics follow within moments.
            self._stopping.wait(0.5)
        due = time.monotonic()
        for frame in self._source.frames(self._settings["loop"]):
            if self._source.live and time.monotonic() < due:
                if self._stopping.is_set():
                    return
                continue  # a camera goes on while one waits: a later frame is newer
            header = Header(frame_id=self._settings["frame_id"])
            image = to_image(header, frame, "bgr8")
            # No K: the camera is not calibrated.
            info = CameraInfo(
                header=header, height=image.height, width=image.width, distortion_model="plumb_bob"
            )
            if self._stopping.wait(max(due - time.monotonic(), 0.0)):
                return
            header.stamp = self.get_clock().now().to_msg()
            self._infos.publish(info)
            self._images.publish(image)
            self._sent += 1
            # A late frame shifts those behind it: a camera does not send bursts either.
            due = max(due + period, time.monotonic())

    def _report(self) -> None:
        sent, then = self._reported
        now = time.monotonic()
        self._reported = (self._sent, now)
        values = {
            "source": shown(self._source.name),
            "frames_sent": self._sent,
            "rate_hz": round((self._sent - sent) / max(now - then, 1e-3), 2),
            "frames_unreadable": self._source.unreadable,
            "frames_missing": self._source.missing,
            "outages": self._source.outages,
            "outage_s": round(self._source.outage_s, 1),
        }
        trouble = self._source.trouble
        level = DiagnosticStatus.WARN if trouble else DiagnosticStatus.OK
        if not self._source.connected:
            level = DiagnosticStatus.ERROR
        message = "; ".join((self._state, *trouble[-_SHOWN:]))
        status = diagnostics.status(self, "frames", level, message, values)
        self._diagnostics.publish(diagnostics.array(self, status))
