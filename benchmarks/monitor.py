# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' independent clock: when which labels arrived, and the newest diagnostics.

python -m benchmarks.monitor TOPIC...

Requests: {"do": "take"} gives what came since the last one; {"do": "set", "name", "value"} sets a
parameter of /segment. Label messages are taken as bytes, and of these only the stamp is read, so
that this process takes little from the two others.
"""

import struct
import sys
import threading
import time
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from benchmarks.processes import Parent

SERVICE_S = 30.0


def stamp_ns(serialized: bytes) -> int:
    """The stamp of a serialized message that starts with a Header (little-endian CDR)."""
    # Behind 4 bytes that name the encoding: int32 seconds, uint32 nanoseconds.
    seconds, nanoseconds = struct.unpack_from("<iI", serialized, 4)
    return seconds * 10**9 + nanoseconds


class Monitor(Node):
    """Notes stamps and times of receipt."""

    def __init__(self, topics: list[str]) -> None:
        super().__init__("monitor")
        self._lock = threading.Lock()
        self._labels: dict[str, list[tuple[int, int]]] = {topic: [] for topic in topics}
        self._status: dict[str, Any] = {"values": {}, "message": "", "level": 0, "monotonic": 0.0}
        self._parameters = self.create_client(SetParameters, "/segment/set_parameters")
        reliable = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, depth=20)
        for topic in topics:
            on_labels = partial(self._on_labels, topic)
            self.create_subscription(Image, topic, on_labels, reliable, raw=True)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable)

    def _on_labels(self, topic: str, serialized: bytes) -> None:
        received = time.time_ns()
        with self._lock:
            self._labels[topic].append((stamp_ns(serialized), received))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/segment: labels":
                self._status = {
                    "values": {item.key: item.value for item in status.values},
                    "message": status.message,
                    "level": int.from_bytes(status.level, "little"),
                    "monotonic": time.monotonic(),
                }

    def take(self) -> dict[str, Any]:
        """Labels that came since the last call, by topic, and the newest status."""
        with self._lock:
            labels, self._labels = self._labels, {topic: [] for topic in self._labels}
        return {"labels": labels, "status": self._status}

    def set(self, name: str, value: Any) -> dict[str, Any]:
        """Set a parameter of /segment."""
        if not self._parameters.wait_for_service(SERVICE_S):
            return {"successful": False, "reason": "no service /segment/set_parameters"}
        parameter = Parameter(name, value=value).to_parameter_msg()
        done = threading.Event()
        future = self._parameters.call_async(SetParameters.Request(parameters=[parameter]))
        future.add_done_callback(lambda _: done.set())
        if not done.wait(SERVICE_S):
            return {"successful": False, "reason": f"no answer within {SERVICE_S:g} s"}
        result = future.result().results[0]
        return {"successful": result.successful, "reason": result.reason}


def main(topics: list[str]) -> None:
    """Answer requests until the parent closes its end."""
    parent = Parent()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    monitor = Monitor(topics)
    threading.Thread(target=rclpy.spin, args=(monitor,), daemon=True).start()
    commands = {"take": monitor.take, "set": monitor.set}
    for request in parent.requests():
        parent.answer(**commands[request.pop("do")](**request))


if __name__ == "__main__":
    main(sys.argv[1:])
