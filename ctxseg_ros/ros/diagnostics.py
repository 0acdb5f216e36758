# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says: counters, rates, and one sentence that tells what to do."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from ctxseg_ros.ros import qos, transport

CAUSES = ("queue", "stale", "malformed", "out_of_order", "inference_error")
"""Why a frame that was received got no labels."""

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
SILENCE_S = 2.0
HUNG_S = 10.0

_IDLE = {
    "unconfigured": "unconfigured: configure and activate the node",
    "inactive": "inactive: activate the node",
    "finalized": "ended",
}
_SEVERITY = (OK, WARN, STALE, ERROR)  # the message's numbers have STALE last


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
    """Counts frames by what became of them: `received`, `labelled`, `lost_transport`, CAUSES, and
    what else was odd about them (`unstamped`, `camera_info_mismatched`).

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


Finding = tuple[bytes, str]
"""A level and a sentence that says what to do."""


def summary(findings: Iterable[Finding]) -> Finding:
    """The worst level (OK, WARN, STALE, ERROR), and the sentences, worst first; those of level OK
    only where there is nothing else."""
    ordered = sorted(findings, key=lambda finding: _SEVERITY.index(finding[0]), reverse=True)
    level = ordered[0][0]
    said = [message for found, message in ordered if found != OK or level == OK]
    return level, "; ".join(dict.fromkeys(said))


@dataclass
class NodeHealth:
    """What the node's own sentence is made from.

    `failure`: why configure or a start value failed. `trouble`: why the model does not run where
    it should; `broken`: it does not run at all. `busy_s`: how long the frame in work has been
    there. `needed_ms`: the budget that would hold. `refines`: part of the time is refinement.
    `shortage`: why this process has no shared memory.
    """

    state: str
    failure: str = ""
    trouble: str = ""
    broken: bool = False
    busy_s: float = 0.0
    p95_ms: float = float("nan")
    budget_ms: float = 0.0
    needed_ms: float | None = None
    input_size: str = ""
    refines: bool = False
    shortage: str = ""

    @property
    def runs(self) -> bool:
        """Whether frames get through, so that it matters how the cameras do."""
        return not self.broken and self.busy_s <= HUNG_S

    def findings(self) -> list[Finding]:
        """What needs somebody, worst first; one that is OK where nothing does."""
        if self.failure:
            return [(ERROR, f"not configured: {self.failure}")]
        if self.state != "active":
            return [(OK, _IDLE[self.state])]
        if self.broken:
            return [(ERROR, self.trouble)]
        if self.busy_s > HUNG_S:
            slow = "set refinement to none if that takes so long, else " if self.refines else ""
            return [
                (
                    ERROR,
                    f"a frame has been in work for {self.busy_s:.0f} s: the device seems to hang; "
                    f"{slow}restart the node",
                )
            ]
        found = []
        if self.trouble:
            found.append(
                (
                    WARN,
                    f"{self.trouble}: mend the device and set `device` again, or restart the node",
                )
            )
        if self.shortage:
            found.append((WARN, self.shortage))
        if self.budget_ms and self.needed_ms is not None:
            simpler = "set refinement to none, " if self.refines else ""
            found.append(
                (
                    WARN,
                    f"even {self.input_size}, the smallest of input_sizes, needs "
                    f"{self.needed_ms:.0f} ms (95th percentile), the budget is "
                    f"{self.budget_ms:g} ms: add a smaller size, take a faster device or model, "
                    f"{simpler}or set latency_budget_ms to {math.ceil(self.needed_ms)}",
                )
            )
        elif self.budget_ms and self.p95_ms > self.budget_ms:
            found.append(
                (
                    WARN,
                    f"the 95th percentile of the latency is {self.p95_ms:.0f} ms at "
                    f"{self.input_size}, the budget {self.budget_ms:g} ms",
                )
            )
        return found


@dataclass
class CameraHealth:
    """What an active camera's sentence is made from; `recent` counts the last seconds."""

    topic: str
    blocked: str | None = None
    unmatched: Sequence[str] = ()
    publishers: int = 0
    silence_s: float = 0.0
    last_error: str = ""
    recent: Counter[str] = field(default_factory=Counter)
    rate_in_hz: float = 0.0
    rate_out_hz: float = 0.0
    read_delay_ms: float = 0.0
    max_age_ms: float = 0.0
    clock_offset_s: float | None = None

    def findings(self) -> list[Finding]:
        """What needs somebody, and last what is well."""
        recent, topic = self.recent, self.topic
        found: list[Finding] = [(WARN, sentence) for sentence in self.unmatched]
        if self.blocked:  # no error as long as another publisher's frames arrive
            found.append((WARN if recent["received"] else ERROR, self.blocked))
        elif self.silence_s > SILENCE_S:
            found.append((STALE, self._silence()))
        if not recent["received"] and (self.blocked or self.silence_s > SILENCE_S):
            return found
        if recent["inference_error"]:
            found.append(
                (ERROR, f"{recent['inference_error']} frames of {topic} failed: {self.last_error}")
            )
        if recent["malformed"]:
            level = WARN if recent["labelled"] else ERROR
            found.append((level, f"{recent['malformed']} malformed frames: {self.last_error}"))
        if recent["lost_transport"]:
            found.append((WARN, self._loss()))
        if self.clock_offset_s is not None:
            side = "behind" if self.clock_offset_s > 0 else "ahead of"
            found.append(
                (
                    WARN,
                    f"the stamps of {topic} are {abs(self.clock_offset_s):.3g} s {side} this "
                    "machine's clock, so ages count from the arrival: synchronise the clocks "
                    "(chrony, PTP), or check use_sim_time",
                )
            )
        if recent["stale"]:
            found.append(
                (
                    WARN,
                    f"{recent['stale']} frames of {topic} were older than max_age_ms "
                    f"({self.max_age_ms:g}): find what holds them up, or raise max_age_ms",
                )
            )
        if recent["out_of_order"]:
            found.append(
                (
                    WARN,
                    f"{recent['out_of_order']} frames of {topic} were older than one before: let "
                    "only one publisher send there (a bag that starts again costs two frames)",
                )
            )
        if recent["camera_info_mismatched"]:
            found.append(
                (WARN, f"camera_info and {topic} differ in size: remap both to one camera")
            )
        found.append((OK, f"{self.rate_out_hz:.1f} frames a second are labelled"))
        return found

    def _silence(self) -> str:
        if not self.publishers:
            return f"nobody publishes {self.topic}: start the camera or remap `image`"
        return (
            f"no frame on {self.topic} for {self.silence_s:.0f} s though {self.publishers} "
            "publish it: check the camera and the transport"
        )

    def _loss(self) -> str:
        lost = self.recent["lost_transport"]
        # A reader's queue that is half full whenever it is looked at overflows.
        if self.read_delay_ms * self.rate_in_hz > 1e3 * qos.FRAMES_DEPTH / 2:
            return (
                f"{self.topic} brings more frames than this node can read, {lost} were lost: "
                f"lower the camera's rate to {self.rate_in_hz:.0f} Hz or its resolution"
            )
        return f"{lost} frames of {self.topic} were lost in transport: {transport.loss_advice()}"
