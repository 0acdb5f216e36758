# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says: counters, rates, and one sentence that tells what to do."""

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

CAUSES = ("queue", "malformed", "inference_error", "stale")
"""Why a frame that was received got no labels."""

SILENCE_S = 2.0

_IDLE = {
    "unconfigured": "unconfigured: configure and activate the node",
    "inactive": "inactive: activate the node",
    "finalized": "ended",
}


def status(
    node: Node, part: str, level: bytes, message: str, values: Mapping[str, Any]
) -> DiagnosticStatus:
    """A status of a part of a node, such as "/segment: labels"."""
    return DiagnosticStatus(
        name=f"{node.get_fully_qualified_name()}: {part}",
        level=level,
        message=message,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def array(node: Node, *statuses: DiagnosticStatus) -> DiagnosticArray:
    """The message for /diagnostics, stamped now."""
    message = DiagnosticArray(status=list(statuses))
    message.header.stamp = node.get_clock().now().to_msg()
    return message


class FrameCounts:
    """Counts frames by what became of them: `received`, `labelled`, `lost_transport`, and CAUSES.

    received = labelled + the causes + the frames still in work. Any thread may count. `sample` is
    called about once a second; `recent` and `rate` look back over the last few samples.
    """

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, Counter[str]]] = deque(maxlen=3)
        self.sample()

    def add(self, what: str, number: int = 1) -> None:
        """Count frames."""
        with self._lock:
            self._totals[what] += number

    def totals(self) -> Counter[str]:
        """All counts since the start."""
        with self._lock:
            return self._totals.copy()

    def sample(self) -> None:
        """Remember where the counters stand now."""
        self._samples.append((time.monotonic(), self.totals()))

    def recent(self) -> Counter[str]:
        """Counts since the oldest sample, a few seconds ago."""
        recent = self.totals()
        recent.subtract(self._samples[0][1])
        return recent

    def rate(self, what: str) -> float:
        """Frames a second over the same time."""
        return self.recent()[what] / max(time.monotonic() - self._samples[0][0], 0.1)


@dataclass
class Health:
    """What the sentence is made from. `latency_p95_ms` is NaN while no frame was labelled."""

    state: str
    failure: str | None = None
    blocked: str | None = None
    topic: str = ""
    publishers: int = 0
    silence_s: float = 0.0
    last_error: str = ""
    recent: Counter[str] = field(default_factory=Counter)
    rate_out_hz: float = 0.0
    latency_p95_ms: float = float("nan")
    budget_ms: float = 0.0
    max_age_ms: float = 0.0

    def judge(self) -> tuple[bytes, str]:
        """Level and sentence: the first thing that needs somebody, worst first."""
        recent = self.recent
        if self.failure:
            return DiagnosticStatus.ERROR, f"not configured: {self.failure}"
        if self.state != "active":
            return DiagnosticStatus.OK, _IDLE[self.state]
        if self.blocked:
            return DiagnosticStatus.ERROR, self.blocked
        if self.silence_s > SILENCE_S:
            if not self.publishers:
                return (
                    DiagnosticStatus.STALE,
                    f"nobody publishes {self.topic}: start the camera or remap `image`",
                )
            return (
                DiagnosticStatus.STALE,
                f"no frame on {self.topic} for {self.silence_s:.0f} s though {self.publishers} "
                "publish it: check the camera and the transport",
            )
        if recent["inference_error"]:
            return (
                DiagnosticStatus.ERROR,
                f"inference failed on {recent['inference_error']} frames: {self.last_error}",
            )
        if recent["malformed"]:
            level = DiagnosticStatus.WARN if recent["labelled"] else DiagnosticStatus.ERROR
            return level, f"{recent['malformed']} malformed frames: {self.last_error}"
        if recent["lost_transport"]:
            return (
                DiagnosticStatus.WARN,
                f"{recent['lost_transport']} frames were lost in transport: give the camera's "
                "process config/fastdds.xml too, or let it publish reliable",
            )
        if recent["stale"]:
            return (
                DiagnosticStatus.WARN,
                f"{recent['stale']} frames were older than max_age_ms ({self.max_age_ms:g}): "
                "check the camera's clock, or raise max_age_ms",
            )
        if self.budget_ms and self.latency_p95_ms > self.budget_ms:
            return (
                DiagnosticStatus.WARN,
                f"the 95th percentile of the latency is {self.latency_p95_ms:.0f} ms, the budget "
                f"{self.budget_ms:g} ms: set smaller input_sizes, a faster device or model",
            )
        return DiagnosticStatus.OK, f"{self.rate_out_hz:.1f} frames a second are labelled"
