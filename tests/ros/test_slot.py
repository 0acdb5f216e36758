# SPDX-License-Identifier: Apache-2.0
"""The newest item waits, nothing else."""

import threading

from ctxseg_ros.ros.slot import LatestSlot


def test_only_the_newest_is_kept_and_every_loss_is_told() -> None:
    slot: LatestSlot[int] = LatestSlot()
    assert [slot.put(number) for number in (1, 2, 3)] == [False, True, True]
    assert next(iter(slot)) == 3
    assert not slot.put(4)
    assert slot.close()  # 4 was still waiting
    assert list(slot) == []
    assert slot.put(5)  # nobody will take it
    assert not slot.close()


def test_every_item_put_is_taken_or_told_as_lost() -> None:
    slot: LatestSlot[int] = LatestSlot()
    taken: list[int] = []
    worker = threading.Thread(target=lambda: taken.extend(slot))
    worker.start()
    lost = sum(slot.put(number) for number in range(20000))
    lost += slot.close()
    worker.join(30)
    assert not worker.is_alive()
    assert taken == sorted(taken)
    assert len(taken) + lost == 20000


def test_close_ends_a_waiting_worker() -> None:
    slot: LatestSlot[int] = LatestSlot()
    worker = threading.Thread(target=lambda: list(slot))
    worker.start()
    slot.close()
    worker.join(30)
    assert not worker.is_alive()
