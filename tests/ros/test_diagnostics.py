# SPDX-License-Identifier: Apache-2.0
"""Counters, and the sentence that says what to do."""

from collections import Counter
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from ctxseg_ros.ros.diagnostics import FrameCounts, Health

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
BUSY = {"labelled": 20}


@pytest.mark.parametrize(
    ("level", "sentence", "fields"),
    [
        (OK, "24.9 frames a second", {"rate_out_hz": 24.9, "recent": BUSY}),
        (ERROR, "not configured: no model", {"failure": "no model", "state": "unconfigured"}),
        (OK, "configure and activate", {"state": "unconfigured"}),
        (OK, "activate the node", {"state": "inactive", "silence_s": 99.0}),
        (ERROR, "offers best_effort", {"blocked": "it offers best_effort", "silence_s": 99.0}),
        (STALE, "nobody publishes /cam: start", {"silence_s": 3.0}),
        (STALE, "no frame on /cam for 3 s though 1", {"silence_s": 3.0, "publishers": 1}),
        (ERROR, "inference failed on 2", {"recent": {**BUSY, "inference_error": 2}}),
        (WARN, "3 malformed frames: step", {"recent": {**BUSY, "malformed": 3}}),
        (ERROR, "3 malformed frames: step", {"recent": {"malformed": 3}}),
        (WARN, "4 frames were lost in transport", {"recent": {**BUSY, "lost_transport": 4}}),
        (WARN, "5 frames were older than", {"recent": {**BUSY, "stale": 5}, "max_age_ms": 50.0}),
        (WARN, "101 ms, the budget 100", {"latency_p95_ms": 101.0, "budget_ms": 100.0}),
        (OK, "frames a second", {"latency_p95_ms": 99.0, "budget_ms": 100.0}),
        (OK, "frames a second", {"latency_p95_ms": 101.0, "budget_ms": 0.0}),
        (OK, "frames a second", {"budget_ms": 100.0}),  # no frame yet: NaN
        (OK, "frames a second", {"recent": {**BUSY, "queue": 9}}),  # the newest frame is the goal
    ],
)
def test_the_sentence_names_what_needs_somebody(
    level: bytes, sentence: str, fields: dict[str, Any]
) -> None:
    fields["recent"] = Counter(fields.get("recent", {}))
    health = Health(**{"state": "active", "topic": "/cam", "last_error": "step", **fields})
    found, message = health.judge()
    assert (found, sentence in message) == (level, True), message


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
