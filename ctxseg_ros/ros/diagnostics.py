# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says: counters, rates, and one sentence that tells what to do."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.impl.rcutils_logger import RcutilsLogger
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

CALM_REPORTS = 5
"""A finding that is missing from so many reports in a row is over."""

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
    """Counts frames by what became of them: `received`, `labelled`, `idle` (nobody subscribed to a
    result), `lost_transport`, CAUSES, and what else was odd about them (`unstamped`,
    `camera_info_mismatched`).

    received = labelled + idle + the causes + the frames still in work. Any thread may count.
    `sample` is called about once a second; `recent` and `rate` look back over the last few
    samples.
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


class Finding(NamedTuple):
    """A level, and a sentence that says what to do.

    `what`: the same in every report, however the figures in the sentence change; empty: the
    sentence itself. `logged`: the log has it from where it happened.
    """

    level: bytes
    message: str
    what: str = ""
    logged: bool = False

    @property
    def severity(self) -> int:
        """0 (OK) to 3 (ERROR)."""
        return _SEVERITY.index(self.level)


def summary(findings: Iterable[Finding]) -> tuple[bytes, str]:
    """The worst level (OK, WARN, STALE, ERROR), and the sentences, worst first; those of level OK
    only where there is nothing else."""
    ordered = sorted(findings, key=lambda finding: finding.severity, reverse=True)
    level = ordered[0].level
    said = [item.message for item in ordered if item.level != OK or level == OK]
    return level, "; ".join(dict.fromkeys(said))


class FindingsLog:
    """Puts findings into the log: each once when it appears or gets worse, and one line once all
    of them are over. To be told of every report."""

    def __init__(self, log: RcutilsLogger) -> None:
        self._log = log
        self._known: dict[str, tuple[int, int]] = {}  # severity, and reports without it

    def clear(self) -> None:
        """Forget what is known, for what was watched has ended."""
        self._known.clear()

    def update(self, findings: Iterable[Finding]) -> None:
        """Log what is new in a report."""
        findings = list(findings)
        troubled = bool(self._known)
        self._known = {
            what: (severity, missing + 1)
            for what, (severity, missing) in self._known.items()
            if missing + 1 < CALM_REPORTS
        }
        for finding in findings:
            if finding.level == OK:
                continue
            what = finding.what or finding.message
            known, _ = self._known.get(what, (0, 0))
            if finding.severity > known and not finding.logged:
                self._write(finding)
            self._known[what] = (max(known, finding.severity), 0)
        if troubled and not self._known:
            self._log.info(f"all problems resolved: {summary(findings)[1]}")

    def _write(self, finding: Finding) -> None:
        # rclpy wants one severity for each line of code.
        if finding.level == ERROR:
            self._log.error(finding.message)
        else:
            self._log.warning(finding.message)


def retry(node: str) -> str:
    """The commands that start a node of this full name again after a failure."""
    return f"ros2 lifecycle set {node} configure, then ros2 lifecycle set {node} activate"


@dataclass
class NodeHealth:
    """What the node's own sentence is made from.

    `node`: its full name, for commands. `failure`: why configure or a start value failed.
    `trouble`: why the model does not run where it should; `broken`: it does not run at all.
    `busy_s`: how long the frame in work has been there. `needed_ms`: the budget that would hold.
    `refines`: part of the time is refinement. `shortage`: why this process has no shared memory.
    `idle`: no output has a subscriber, so nothing is labelled.
    `loading`: the model that is being loaded, and for how long.
    """

    node: str
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
    idle: bool = False
    loading: str = ""

    @property
    def runs(self) -> bool:
        """Whether frames get through, so that it matters how the cameras do."""
        return not self.broken and self.busy_s <= HUNG_S

    def findings(self) -> list[Finding]:
        """What needs somebody, worst first; one that is OK where nothing does."""
        if self.failure:
            return [Finding(ERROR, f"not configured: {self.failure}", logged=True)]
        if self.loading and self.state != "active":
            return [Finding(OK, f"{self.state}: {self.loading}", "loading")]
        if self.state == "unconfigured":
            return [Finding(OK, f"unconfigured: {retry(self.node)}")]
        if self.state == "inactive":
            return [Finding(OK, f"inactive: ros2 lifecycle set {self.node} activate")]
        if self.state != "active":
            return [Finding(OK, self.state)]
        if self.broken:
            return [Finding(ERROR, self.trouble, "broken", logged=True)]
        if self.busy_s > HUNG_S:
            slow = "set refinement to none if that takes so long, else " if self.refines else ""
            sentence = (
                f"inference has not returned for {self.busy_s:.0f} s: the device appears to hang; "
                f"{slow}restart the node"
            )
            return [Finding(ERROR, sentence, "hung")]
        found = []
        if self.trouble:
            advice = "fix the device, then set `device` again, or restart the node"
            found.append(Finding(WARN, f"{self.trouble}: {advice}"))
        if self.shortage:
            found.append(Finding(WARN, self.shortage, logged=True))
        if self.loading:
            found.append(Finding(OK, self.loading, "loading"))
        if self.idle:
            sentence = "idle: no output has a subscriber, so no frame is labelled"
            return [*found, Finding(OK, sentence)]
        if self.budget_ms and self.needed_ms is not None:
            simpler = "set refinement to none, " if self.refines else ""
            sentence = (
                f"even {self.input_size}, the smallest of input_sizes, needs "
                f"{self.needed_ms:.0f} ms (95th percentile), the budget is "
                f"{self.budget_ms:g} ms: add a smaller size, take a faster device or model, "
                f"{simpler}or set latency_budget_ms to {math.ceil(self.needed_ms)}"
            )
            found.append(Finding(WARN, sentence, "budget"))
        elif self.budget_ms and self.p95_ms > self.budget_ms:
            sentence = (
                f"the 95th percentile of the latency is {self.p95_ms:.0f} ms at "
                f"{self.input_size}, the budget {self.budget_ms:g} ms"
            )
            found.append(Finding(WARN, sentence, "budget"))
        return found


@dataclass
class CameraHealth:
    """What an active camera's sentence is made from; `recent` counts the last seconds.

    `publishers_s`: since when they are there. `unheard`: no frame of them has ever arrived;
    `same_host`: one of them is on this machine.
    """

    topic: str
    blocked: str | None = None
    unmatched: Sequence[str] = ()
    publishers: int = 0
    publishers_s: float = 0.0
    unheard: bool = False
    same_host: bool = False
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
        found = [Finding(WARN, sentence) for sentence in self.unmatched]
        if self.blocked:  # no error as long as another publisher's frames arrive
            found.append(Finding(WARN if recent["received"] else ERROR, self.blocked))
        elif self.silence_s > SILENCE_S:
            found.append(self._silence())
        if not recent["received"] and (self.blocked or self.silence_s > SILENCE_S):
            return found
        # Frames that fail are in the log one by one.
        if failed := recent["inference_error"]:
            sentence = f"{failed} frames of {topic} failed: {self.last_error}"
            found.append(Finding(ERROR, sentence, "failed", logged=True))
        if malformed := recent["malformed"]:
            level = WARN if recent["labelled"] else ERROR
            sentence = f"{malformed} malformed frames: {self.last_error}"
            found.append(Finding(level, sentence, "malformed", logged=True))
        if recent["lost_transport"]:
            found.append(Finding(WARN, self._loss(), "lost"))
        if self.clock_offset_s is not None:
            side = "behind" if self.clock_offset_s > 0 else "ahead of"
            sentence = (
                f"the stamps of {topic} are {abs(self.clock_offset_s):.3g} s {side} this "
                "machine's clock, so ages count from the arrival: synchronise the clocks "
                "(chrony, PTP), or check use_sim_time"
            )
            found.append(Finding(WARN, sentence, "clock"))
        if recent["stale"]:
            sentence = (
                f"{recent['stale']} frames of {topic} were older than max_age_ms "
                f"({self.max_age_ms:g}): find the cause of the delay, or raise max_age_ms"
            )
            found.append(Finding(WARN, sentence, "stale"))
        if recent["out_of_order"]:
            sentence = (
                f"{recent['out_of_order']} frames of {topic} have earlier stamps than a frame "
                "before: use only one publisher (a bag that starts again costs two frames)"
            )
            found.append(Finding(WARN, sentence, "out_of_order"))
        if recent["camera_info_mismatched"]:
            sentence = f"camera_info and {topic} differ in size: remap both to the same camera"
            found.append(Finding(WARN, sentence, logged=True))
        if recent["idle"] and not recent["labelled"]:
            found.append(Finding(OK, f"{topic} is read at {self.rate_in_hz:.1f} Hz"))
        else:
            found.append(Finding(OK, f"{topic} is labelled at {self.rate_out_hz:.1f} Hz"))
        return found

    def _silence(self) -> Finding:
        if not self.publishers:
            sentence = f"nobody publishes {self.topic}: start the camera or remap `image`"
            return Finding(STALE, sentence)
        plural = "publisher" if self.publishers == 1 else "publishers"
        there = f"the topic has {self.publishers} {plural}"
        if self.publishers_s <= SILENCE_S:
            return Finding(STALE, f"no frame on {self.topic} yet: {there}", "new", logged=True)
        if not self.unheard:
            sentence = (
                f"no frame on {self.topic} for {self.silence_s:.0f} s though {there}: check the "
                "camera"
            )
            return Finding(STALE, sentence, "stopped")
        if self.same_host:
            way = (
                "its process and this one do not share memory: start both containers with "
                "--ipc=host (or one of them with --ipc=shareable --shm-size=512m and the other "
                "with --ipc=container:NAME), and both processes as the same user"
            )
        else:
            way = (
                "they are lost on the way: let the firewalls of both machines pass UDP from port "
                "7400 on; start containers with --network=host and --ipc=host, as the same user"
            )
        sentence = (
            f"no frame on {self.topic} has arrived for {self.silence_s:.0f} s though {there}: if "
            f"the camera does send (ros2 topic hz {self.topic} beside it), {way}"
        )
        return Finding(STALE, sentence, "unheard")

    def _loss(self) -> str:
        lost = self.recent["lost_transport"]
        # A reader's queue that is half full whenever it is looked at overflows.
        if self.read_delay_ms * self.rate_in_hz > 1e3 * qos.FRAMES_DEPTH / 2:
            return (
                f"{self.topic} brings more frames than this node can read, {lost} were lost: "
                f"lower the camera's rate to {self.rate_in_hz:.0f} Hz or its resolution"
            )
        return f"{lost} frames of {self.topic} were lost in transport: {transport.loss_advice()}"
