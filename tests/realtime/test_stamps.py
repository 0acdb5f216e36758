# SPDX-License-Identifier: Apache-2.0
"""Order and clock of a camera's stamps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.realtime.stamps import ClockWatch, StampOrder


def ages(delays: list[float]) -> tuple[list[float], float | None]:
    watch = ClockWatch()
    return [watch.observe(delay) for delay in delays], watch.offset_s


def test_a_clock_that_goes_right_is_left_alone() -> None:
    delays = [0.004, 0.03, 0.9, 0.005] * 10
    assert ages(delays) == (delays, None)


def test_a_slight_drift_counts_as_no_age() -> None:
    found, offset = ages([-0.015] * 50)
    assert offset is None and set(found) == {0.0}


def test_simulated_time_may_lag_behind_the_stamps() -> None:
    watch = ClockWatch(simulated=True)
    assert [watch.observe(-0.5) for _ in range(30)] == [0.0] * 30
    assert watch.offset_s is None
    for _ in range(5):
        watch.observe(-60.0)
    assert watch.offset_s == -60.0


def test_stamps_from_the_future_are_noticed_at_the_fifth_frame() -> None:
    assert ages([-3.0] * 4)[1] is None
    found, offset = ages([-3.0, -3.2, -2.9, -3.1, -3.0])
    assert offset == -2.9
    assert found == [0.0] * 5


def test_old_stamps_are_noticed_at_the_tenth_frame_and_then_count_from_the_arrival() -> None:
    found, offset = ages([3600.2] * 9 + [3600.1] * 3)
    assert offset == 3600.1
    assert found == [3600.2] * 9 + [0.0] * 3


def test_an_old_frame_is_doubtful_until_that_is_explained() -> None:
    watch = ClockWatch()
    doubts = []
    for delay in [0.02, *[5.0] * 11, 0.02]:
        watch.observe(delay)
        doubts.append(watch.doubtful)
    assert doubts == [False, *[True] * 9, False, False, False]


def test_a_queue_that_empties_is_no_wrong_clock() -> None:
    delays = [2.0 - 0.2 * number for number in range(9)] + [0.01] * 5
    assert ages(delays) == (pytest.approx(delays), None)


def test_one_wrong_stamp_is_no_wrong_clock() -> None:
    assert ages([0.01] * 8 + [-5.0] + [0.01] * 3)[1] is None
    assert ages([0.01] * 8 + [5000.0] + [0.01] * 3)[1] is None


def test_a_clock_that_was_set_right_is_trusted_again() -> None:
    found, offset = ages([-3.0] * 8 + [0.02] * 5)
    assert offset is None
    assert found[-1] == 0.02


@given(st.lists(st.floats(-1e6, 1e6), max_size=60))
def test_an_age_is_never_negative_and_never_more_than_the_delay(delays: list[float]) -> None:
    for age, delay in zip(ages(delays)[0], delays, strict=True):
        assert age in (0.0, delay) and age >= 0


def accepted(stamps: list[int]) -> list[int]:
    order = StampOrder()
    return [stamp for stamp in stamps if order.accepts(stamp)]


def test_late_frames_are_refused() -> None:
    assert accepted([10, 20, 15, 30, 29, 28, 40]) == [10, 20, 30, 40]


def test_equal_stamps_and_no_stamps_go_through() -> None:
    assert accepted([10, 10, 0, 0, 10, 11]) == [10, 10, 0, 0, 10, 11]


def test_a_clock_that_was_set_back_is_followed_from_its_third_frame() -> None:
    assert accepted([1000, 1001, 10, 11, 12, 13]) == [1000, 1001, 12, 13]


def test_two_publishers_in_turns_do_not_look_like_a_clock_that_was_set_back() -> None:
    old, new = range(10, 60, 10), range(1010, 1060, 10)
    stamps = [stamp for pair in zip(new, old, strict=True) for stamp in pair]
    assert accepted(stamps) == list(new)


def test_a_stream_that_runs_backwards_for_good_is_refused_for_good() -> None:
    assert accepted(list(range(100, 0, -1))) == [100]


@given(st.lists(st.integers(0, 50), max_size=80))
def test_between_two_new_timelines_stamps_never_fall(stamps: list[int]) -> None:
    order = StampOrder()
    newest, refused = 0, 0
    for stamp in stamps:
        if order.accepts(stamp):
            if 0 < stamp < newest:
                assert refused >= 2  # only after two others that were refused
            newest, refused = stamp or newest, 0 if stamp else refused
        else:
            assert 0 < stamp < newest
            refused += 1
