# SPDX-License-Identifier: Apache-2.0
"""Which device comes next after a fault."""

import itertools

from ctxseg_ros.realtime.recovery import CALM_FRAMES, LAST_RESORT_S, RETRIES_S, Recovery


def attempts(recovery: Recovery, count: int) -> list[tuple[float, str]]:
    return [recovery.next() for _ in range(count)]


def test_the_same_device_is_tried_with_growing_pauses_then_the_others_then_all_for_ever() -> None:
    recovery = Recovery("cuda", lambda: ["cuda", "openvino", "cpu"])
    found = attempts(recovery, 11)
    assert found[:3] == [(wait_s, "cuda") for wait_s in RETRIES_S]
    assert found[3:5] == [(0.0, "openvino"), (0.0, "cpu")]
    around = itertools.cycle(("cuda", "openvino", "cpu"))
    assert found[5:] == [(LAST_RESORT_S, next(around)) for _ in range(6)]
    assert list(RETRIES_S) == sorted(RETRIES_S)


def test_a_single_device_is_never_given_up() -> None:
    assert {device for _, device in attempts(Recovery("cpu", lambda: ["cpu"]), 50)} == {"cpu"}


def test_frames_that_succeed_make_it_start_over() -> None:
    recovery = Recovery("cuda", lambda: ["cuda", "cpu"])
    attempts(recovery, 2)
    for _ in range(CALM_FRAMES):
        recovery.frame_done("cuda")
    assert recovery.next() == (RETRIES_S[0], "cuda")


def test_a_few_frames_between_two_faults_are_no_success() -> None:
    recovery = Recovery("cuda", lambda: ["cuda", "cpu"])
    found = []
    for _ in range(4):
        found.append(recovery.next())
        for _ in range(CALM_FRAMES - 1):
            recovery.frame_done("cuda")
    assert found[-1] == (0.0, "cpu")


def test_the_device_that_proved_itself_is_the_first_from_then_on() -> None:
    recovery = Recovery("cuda", lambda: ["cuda", "openvino", "cpu"])
    assert attempts(recovery, 5)[-1] == (0.0, "cpu")
    for _ in range(CALM_FRAMES):
        recovery.frame_done("cpu")
    assert attempts(recovery, 4) == [(w, "cpu") for w in RETRIES_S] + [(0.0, "cuda")]


def test_nobody_looks_for_devices_before_they_are_needed() -> None:
    asked = []
    recovery = Recovery("cuda", lambda: asked.append(1) or ["cuda", "cpu"])  # type: ignore[func-returns-value]
    attempts(recovery, len(RETRIES_S))
    assert not asked
    assert recovery.next() == (0.0, "cpu") and asked == [1]
