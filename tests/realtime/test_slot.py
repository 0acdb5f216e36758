# SPDX-License-Identifier: Apache-2.0
"""The newest frames wait, nothing else, and every camera has its turn."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.realtime.slot import LatestSlots


def test_only_the_newest_is_kept_and_every_loss_is_told() -> None:
    slots: LatestSlots[int] = LatestSlots([""])
    assert [slots.put("", number) for number in (1, 2, 3)] == [False, True, True]
    assert next(iter(slots)) == ("", 3)
    assert not slots.put("", 4)
    assert slots.close() == [""]  # 4 was still waiting
    assert list(slots) == []
    assert slots.put("", 5)  # nobody will take it
    assert slots.close() == []


def test_every_item_put_is_taken_or_told_as_lost() -> None:
    slots: LatestSlots[int] = LatestSlots(["a", "b"])
    taken: list[tuple[str, int]] = []
    worker = threading.Thread(target=lambda: taken.extend(slots))
    worker.start()
    lost = sum(slots.put("ab"[number % 2], number) for number in range(20000))
    lost += len(slots.close())
    worker.join(30)
    assert not worker.is_alive()
    for name in "ab":
        own = [number for found, number in taken if found == name]
        assert own == sorted(own)
    assert len(taken) + lost == 20000


def test_a_camera_that_is_faster_does_not_starve_the_others() -> None:
    slots: LatestSlots[int] = LatestSlots(["slow", "fast", "third"])
    frames = iter(slots)
    served = []
    for turn in range(30):
        for number in range(5):
            slots.put("fast", 10 * turn + number)
        slots.put("slow", turn)
        slots.put("third", turn)
        served.append(next(frames)[0])
    assert [served.count(name) for name in ("slow", "fast", "third")] == [10, 10, 10]
    assert all(len(set(served[i : i + 3])) == 3 for i in range(0, 30, 3))


@given(st.lists(st.sampled_from(["a", "b", "c", "take"]), max_size=60))
def test_who_waits_is_served_before_anybody_is_served_twice(events: list[str]) -> None:
    slots: LatestSlots[int] = LatestSlots("abc")
    frames = iter(slots)
    waiting: dict[str, int] = {}  # camera -> how many were served since it began to wait
    for event in events:
        if event != "take":
            slots.put(event, 0)
            waiting.setdefault(event, 0)
        elif waiting:
            name, _ = next(frames)
            del waiting[name]
            waiting = {camera: served + 1 for camera, served in waiting.items()}
            assert all(served <= 2 for served in waiting.values())


def test_close_ends_a_waiting_worker() -> None:
    slots: LatestSlots[int] = LatestSlots([""])
    worker = threading.Thread(target=lambda: list(slots))
    worker.start()
    slots.close()
    worker.join(30)
    assert not worker.is_alive()


def test_a_pause_ends_with_close_or_when_it_is_over_and_not_with_a_frame() -> None:
    slots: LatestSlots[int] = LatestSlots([""])
    slots.put("", 1)
    assert not slots.pause(0.01, lambda: False)
    over = threading.Event()

    def end() -> None:
        over.set()
        slots.wake()

    for ending in (end, slots.close):
        over.clear()
        timer = threading.Timer(0.05, ending)
        timer.start()
        assert slots.pause(30, over.is_set)
        timer.join()
