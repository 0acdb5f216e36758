# SPDX-License-Identifier: Apache-2.0
"""Where a frame's time goes."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.realtime.latency import STAGES, FrameTimes, LatencyWindow

seconds = st.floats(0, 100)


def test_stages_are_the_differences_in_ms():
    times = FrameTimes(
        stamp=1.0,
        received=1.01,
        started=1.03,
        prepared=1.07,
        inferred=1.15,
        refined=1.2,
        finished=1.36,
        published=1.68,
    )
    expected = {"transport": 10, "queue": 20, "preprocess": 40, "inference": 80}
    expected |= {"refine": 50, "postprocess": 160, "publish": 320, "total": 680}
    assert times.stages() == pytest.approx(expected)


def test_a_dropped_frame_has_the_stages_that_it_passed():
    times = FrameTimes(stamp=1.0, received=1.25)
    assert times.stages() == {"transport": 250}
    assert FrameTimes().stages() == {}


@given(st.tuples(*[seconds] * 8))
def test_stages_sum_to_the_total(points):
    stages = FrameTimes(*points).stages()
    assert sum(stages.values()) - stages["total"] == pytest.approx(stages["total"], abs=1e-6)


@given(st.lists(seconds, min_size=1, max_size=50), st.integers(1, 20))
def test_percentiles_are_those_of_the_last_frames(values, size):
    window = LatencyWindow(size)
    for value in values:
        window.add({"transport": value * 1e3})
    assert window.count == min(len(values), size)
    found = window.percentiles()
    expected = np.percentile(np.array(values[-size:]) * 1e3, (50, 95, 99))
    assert list(found["transport"].values()) == pytest.approx(expected.tolist())
    assert math.isnan(found["total"]["p50"])


def test_a_cleared_window_is_empty():
    window = LatencyWindow(5)
    window.add({"transport": 1.0})
    window.clear()
    assert window.count == 0 and math.isnan(window.percentiles()["transport"]["p50"])


def test_empty_window_has_every_key():
    found = LatencyWindow(5).percentiles()
    assert tuple(found) == STAGES
    for stage in found.values():
        assert tuple(stage) == ("p50", "p95", "p99")
        assert all(math.isnan(value) for value in stage.values())


def test_threads_lose_no_frame():
    window = LatencyWindow(10_000)

    def work():
        for _ in range(1000):
            window.add({"transport": 1.0})
            if window.count % 100 == 0:
                window.percentiles()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert window.count == 4000
