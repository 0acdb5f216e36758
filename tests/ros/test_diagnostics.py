# SPDX-License-Identifier: Apache-2.0
"""Counters, and the sentence that says what to do."""

from collections import Counter
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from ctxseg_ros.ros.diagnostics import CameraHealth, FrameCounts, NodeHealth, summary

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
        (OK, "24.9 frames a second", {"rate_out_hz": 24.9}),
        (ERROR, "offers best_effort", {"blocked": "it offers best_effort", "recent": {}}),
        (WARN, "offers best_effort", {"blocked": "it offers best_effort"}),  # another one works
        (WARN, "gets nothing", {"unmatched": ["a subscriber gets nothing"]}),
        (STALE, "nobody publishes /cam", {"unmatched": ["x"], "silence_s": 3.0, "recent": {}}),
        (STALE, "nobody publishes /cam: start", {"silence_s": 3.0, "recent": {}}),
        (STALE, "no frame on /cam for 3 s though 1", {"silence_s": 3.0, "publishers": 1}),
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
        (WARN, "older than one before", {"recent": {**BUSY, "out_of_order": 1}}),
        (WARN, "camera_info and /cam differ", {"recent": {**BUSY, "camera_info_mismatched": 1}}),
        (WARN, "/cam are 3.2 s ahead of this machine's clock", {"clock_offset_s": -3.2}),
        (WARN, "/cam are 1e+03 s behind this machine's", {"clock_offset_s": 1000.0}),
        (OK, "frames a second", {"recent": {**BUSY, "queue": 9}}),  # the newest frame is the goal
        (OK, "frames a second", {"recent": {**BUSY, "unstamped": 9}}),
    ],
)
def test_a_cameras_sentence_names_what_needs_somebody(
    level: bytes, sentence: str, fields: dict[str, Any]
) -> None:
    fields["recent"] = Counter(fields.get("recent", BUSY))
    health = CameraHealth(**{"topic": "/cam", "last_error": "step", **fields})
    found, message = summary(health.findings())
    assert (found, sentence in message) == (level, True), message


@pytest.mark.parametrize(
    ("level", "sentence", "fields"),
    [
        (ERROR, "not configured: no model", {"failure": "no model", "state": "unconfigured"}),
        (OK, "configure and activate", {"state": "unconfigured"}),
        (OK, "activate the node", {"state": "inactive"}),
        (ERROR, "in work for 31 s: the device seems to hang", {"busy_s": 31.0}),
        (
            ERROR,
            "to hang; set refinement to none if that takes so long, else restart the node",
            {"busy_s": 31.0, "refines": True},
        ),
        (OK, "fine", {"busy_s": 3.0}),
        (ERROR, "failed on cuda", {"trouble": "failed on cuda", "broken": True}),
        (WARN, "on cpu: mend the device", {"trouble": "failed on cuda; it runs on cpu"}),
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
    health = NodeHealth(**{"state": "active", "input_size": "32x48", **fields})
    found, message = summary([*health.findings(), (OK, "fine")])
    assert (found, sentence in message) == (level, True), message


def test_the_summary_is_as_bad_as_the_worst_and_says_it_first() -> None:
    findings = [(OK, "well"), (WARN, "w"), (ERROR, "e"), (STALE, "s"), (WARN, "w")]
    assert summary(findings) == (ERROR, "e; s; w")
    assert summary([(OK, "a"), (OK, "b")]) == (OK, "a; b")


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
