# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from training.data.evenly import evenly

COUNTS = st.integers(0, 300)


def test_examples():
    assert evenly(3, 5) == [0, 1, 2] and evenly(1, 5) == [0]
    assert evenly(101, 5) == [0, 25, 50, 75, 100] and evenly(7, 1) == [0]
    assert evenly(39, 20)[-1] == 38
    assert evenly(8, 2, middles=True) == [2, 6] and evenly(8, 1, middles=True) == [4]
    assert evenly(3, 5, middles=True) == [0, 1, 2]


@given(COUNTS, COUNTS, st.booleans())
def test_none_is_taken_twice_and_gaps_are_alike(items, most, middles):
    found = evenly(items, most, middles)
    assert len(found) == min(items, most)
    assert all(0 <= i < items for i in found)
    gaps = {after - before for before, after in pairwise(found)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
    if len(found) > 1 and not middles:
        assert (found[0], found[-1]) == (0, items - 1)
    if found and middles:  # as much before the first as after the last
        assert abs(found[0] - (items - 1 - found[-1])) <= 1
