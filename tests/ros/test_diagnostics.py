# SPDX-License-Identifier: Apache-2.0
"""Counters, and the sentence that says what to do."""

from collections import Counter
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from ctxseg_ros.ros.diagnostics import (
    CALM_REPORTS,
    CameraHealth,
    Finding,
    FindingsLog,
    FrameCounts,
    NodeHealth,
    summary,
)
from ctxseg_ros.ros.segmenter import SegmentNode

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
BUSY = {"received": 20, "labelled": 20}


@pytest.mark.parametrize(
    ("level", "sentence", "fields"),
    [
        (OK, "/cam is labelled at 24.9 Hz", {"rate_out_hz": 24.9}),
        (ERROR, "offers best_effort", {"blocked": "it offers best_effort", "recent": {}}),
        (WARN, "offers best_effort", {"blocked": "it offers best_effort"}),  # another one works
        (WARN, "gets nothing", {"unmatched": ["a subscriber gets nothing"]}),
        (STALE, "nobody publishes /cam", {"unmatched": ["x"], "silence_s": 3.0, "recent": {}}),
        (STALE, "nobody publishes /cam: start", {"silence_s": 3.0, "recent": {}}),
        (
            STALE,
            "for 3 s though the topic has 1 publisher",
            {"silence_s": 3.0, "publishers": 1, "publishers_s": 3.0},
        ),
        (
            STALE,
            "the topic has 2 publishers: check",
            {"silence_s": 3.0, "publishers": 2, "publishers_s": 3.0},
        ),
        (STALE, "no frame on /cam yet: the topic has 1", {"silence_s": 3.0, "publishers": 1}),
        (ERROR, "2 frames of /cam failed: step", {"recent": {**BUSY, "inference_error": 2}}),
        (WARN, "3 malformed frames: step", {"recent": {**BUSY, "malformed": 3}}),
        (ERROR, "3 malformed frames: step", {"recent": {"received": 3, "malformed": 3}}),
        (WARN, "were lost in transport: give", {"recent": {**BUSY, "lost_transport": 4}}),
        (
            WARN,
            "/cam brings more frames than this node can read, 4 were lost: lower the camera's "
            "rate to 700 Hz",
            {
                "recent": {**BUSY, "lost_transport": 4},
                "rate_in_hz": 700.0,
                "read_delay_ms": 12.0,
            },
        ),
        (
            WARN,
            "lost in transport",
            {"recent": {**BUSY, "lost_transport": 4}, "rate_in_hz": 30.0, "read_delay_ms": 12.0},
        ),
        (WARN, "older than max_age_ms (50)", {"recent": {**BUSY, "stale": 5}, "max_age_ms": 50.0}),
        (WARN, "earlier stamps than a frame before", {"recent": {**BUSY, "out_of_order": 1}}),
        (WARN, "camera_info and /cam differ", {"recent": {**BUSY, "camera_info_mismatched": 1}}),
        (WARN, "/cam are 3.2 s ahead of this machine's clock", {"clock_offset_s": -3.2}),
        (WARN, "/cam are 1e+03 s behind this machine's", {"clock_offset_s": 1000.0}),
        (OK, "labelled at", {"recent": {**BUSY, "queue": 9}}),  # the newest frame is the goal
        (OK, "labelled at", {"recent": {**BUSY, "unstamped": 9}}),
    ],
)
def test_a_cameras_sentence_names_what_needs_somebody(
    level: bytes, sentence: str, fields: dict[str, Any]
) -> None:
    fields["recent"] = Counter(fields.get("recent", BUSY))
    health = CameraHealth(**{"topic": "/cam", "last_error": "step", **fields})
    found, message = summary(health.findings())
    assert (found, sentence in message) == (level, True), message


def test_silence_has_three_causes() -> None:
    def said(**fields: Any) -> str:
        health = CameraHealth("/cam", silence_s=9.0, publishers_s=9.0, **fields)
        level, message = summary(health.findings())
        assert level == STALE and "/cam" in message
        return message

    assert "nobody publishes" in said()
    assert "check the camera" in said(publishers=1)
    elsewhere = said(publishers=1, unheard=True)
    assert "ros2 topic hz /cam" in elsewhere
    assert "firewall" in elsewhere and "7400" in elsewhere and "--ipc=host" in elsewhere
    here = said(publishers=1, unheard=True, same_host=True)
    assert "--ipc=host" in here and "--shm-size" in here and "same user" in here
    assert "firewall" not in here


@pytest.mark.parametrize(
    ("level", "sentence", "fields"),
    [
        (ERROR, "not configured: no model", {"failure": "no model", "state": "unconfigured"}),
        (OK, "ros2 lifecycle set /a/node configure", {"state": "unconfigured"}),
        (OK, "ros2 lifecycle set /a/node activate", {"state": "inactive"}),
        (OK, "finalized", {"state": "finalized"}),
        (ERROR, "not returned for 31 s: the device appears to hang", {"busy_s": 31.0}),
        (
            ERROR,
            "to hang; set refinement to none if that takes so long, else restart the node",
            {"busy_s": 31.0, "refines": True},
        ),
        (OK, "fine", {"busy_s": 3.0}),
        (ERROR, "failed on cuda", {"trouble": "failed on cuda", "broken": True}),
        (WARN, "on cpu: fix the device", {"trouble": "failed on cuda; it runs on cpu"}),
        (WARN, "is 101 ms at 32x48, the budget 100 ms", {"p95_ms": 101.0, "budget_ms": 100.0}),
        (
            WARN,
            "even 32x48, the smallest of input_sizes, needs 140 ms (95th percentile), the budget "
            "is 100 ms: add a smaller size, take a faster device or model, or set "
            "latency_budget_ms to 141",
            {"p95_ms": 140.2, "budget_ms": 100.0, "needed_ms": 140.2},
        ),
        (OK, "fine", {"p95_ms": 99.0, "budget_ms": 100.0}),
        (OK, "fine", {"p95_ms": 101.0, "budget_ms": 0.0}),
        (OK, "fine", {"budget_ms": 100.0}),  # no frame yet: NaN
    ],
)
def test_the_nodes_sentence_names_what_needs_somebody(
    level: bytes, sentence: str, fields: dict[str, Any]
) -> None:
    health = NodeHealth(**{"node": "/a/node", "state": "active", "input_size": "32x48", **fields})
    found, message = summary([*health.findings(), Finding(OK, "fine")])
    assert (found, sentence in message) == (level, True), message


def test_the_summary_is_as_bad_as_the_worst_and_says_it_first() -> None:
    levels = {"well": OK, "w": WARN, "e": ERROR, "s": STALE}
    findings = [Finding(level, sentence) for sentence, level in levels.items()]
    assert summary([*findings, Finding(WARN, "w")]) == (ERROR, "e; s; w")
    assert summary([Finding(OK, "a"), Finding(OK, "b")]) == (OK, "a; b")


class Lines:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda message: self.lines.append((level, message))

    def new(self) -> list[tuple[str, str]]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


FINE = Finding(OK, "25 Hz")


def test_a_finding_is_logged_once_and_its_end_once() -> None:
    lines = Lines()
    log = FindingsLog(lines)
    for lost in range(1, 9):  # the figures change, the finding does not
        log.update([Finding(WARN, f"{lost} lost", "lost"), FINE])
    assert lines.new() == [("warning", "1 lost")]
    for _ in range(CALM_REPORTS * 3):
        log.update([FINE])
    assert lines.new() == [("info", "all problems resolved: 25 Hz")]
    log.update([Finding(WARN, "2 lost", "lost"), FINE])
    assert lines.new() == [("warning", "2 lost")]


def test_what_comes_and_goes_is_one_finding() -> None:
    lines = Lines()
    log = FindingsLog(lines)
    for number in range(40):
        log.update([Finding(WARN, "lost")] * (number % (CALM_REPORTS - 1) == 0) + [FINE])
    assert lines.new() == [("warning", "lost")]


def test_each_finding_counts_for_itself_and_worse_is_new() -> None:
    lines = Lines()
    log = FindingsLog(lines)
    silent = Finding(STALE, "silent")
    log.update([silent])
    log.update([silent, Finding(WARN, "slow", "budget")])
    log.update([silent, Finding(ERROR, "slower", "budget")])
    log.update([silent, Finding(WARN, "slow", "budget")])
    assert lines.new() == [("warning", "silent"), ("warning", "slow"), ("error", "slower")]
    for _ in range(CALM_REPORTS + 1):
        log.update([silent])
    assert not lines.new()  # not yet well


def test_what_the_log_has_already_is_not_repeated_but_its_end_is_told() -> None:
    lines = Lines()
    log = FindingsLog(lines)
    log.update([Finding(ERROR, "broken", logged=True)])
    assert not lines.new()
    for _ in range(CALM_REPORTS):
        log.update([FINE])
    assert lines.new() == [("info", "all problems resolved: 25 Hz")]
    log.update([Finding(WARN, "lost")])
    log.clear()
    for _ in range(CALM_REPORTS):
        log.update([FINE])
    assert lines.new() == [("warning", "lost")]


def test_counts_add_up_and_recent_forgets() -> None:
    counts = FrameCounts()
    counts.add("received", 5)
    counts.add("labelled", 3)
    counts.add("queue", 2)
    assert counts.totals() == {"received": 5, "labelled": 3, "queue": 2}
    assert counts.recent()["labelled"] == 3
    assert counts.rate("labelled") > 0
    for _ in range(5):
        counts.sample()
    assert counts.recent()["labelled"] == 0
    assert counts.totals()["labelled"] == 3


def test_a_process_without_shared_memory_says_so(
    graph_with: Any, stage: Any, wait: Any, model_factory: Any
) -> None:
    graph = graph_with(model=model_factory())
    graph.add(SegmentNode("/dev/shm is full"))
    graph.wait_for_state("active")
    wait(lambda: "/dev/shm is full" in graph.status().message)
    assert graph.status().level != DiagnosticStatus.OK
