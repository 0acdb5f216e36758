# SPDX-License-Identifier: Apache-2.0
"""A few of many, evenly spread."""

from __future__ import annotations

import numpy as np


def evenly(items: int, most: int, middles: bool = False) -> list[int]:
    """Indices of at most ``most`` of a number of items, ascending and none twice.

    Args:
        items, most: 0 or more.
        middles: False spreads them from the first item to the last (of one: the first). True takes
            the middles of as many equal parts, so that each stands for what is around it.
    """
    count = min(most, items)
    if middles:
        return [(2 * i + 1) * items // (2 * count) for i in range(count)]
    return np.linspace(0, items - 1, count).round().astype(int).tolist()
