# SPDX-License-Identifier: Apache-2.0
"""Which class a cluster stands for, decided once over a whole set by the pixels that they share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

#: The ways to match, and in words what each does.
MATCHES = {
    "hungarian": "one cluster to one class, so that the most pixels agree",
    "majority": "each cluster to the class that holds most of it",
}

#: The class of a cluster that was matched to none.
NONE = -1


def match_clusters(pixels: NDArray[np.int64], how: str) -> NDArray[np.int64]:
    """The class of each cluster, [K], or NONE.

    ``hungarian`` is the protocol of PiCIE and STEGO: it maximises the pixels that agree, not the
    IoU. Clusters beyond the number of classes, and pairs that share no pixel, stay unmatched.

    Args:
        pixels: [C, K], counted by [class, cluster]. how: a key of MATCHES.
    """
    if how == "majority":
        best = pixels.argmax(0)
    else:
        best = np.full(pixels.shape[1], NONE)
        classes, clusters = linear_sum_assignment(pixels, maximize=True)
        best[clusters] = classes
    shared = pixels[best, np.arange(len(best))]
    return np.where((best != NONE) & (shared > 0), best, NONE)


def matched_confusion(pixels: NDArray[np.int64], matching: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels by [class, class of their cluster], [C, C + 1]; those of no class in the last column.

    Args:
        pixels: [C, K + 1], counted by [class, cluster], unlabelled pixels in the last column.
        matching: from ``match_clusters``, [K].
    """
    count = len(pixels)
    confusion = np.zeros((count, count + 1), np.int64)
    for column, item in enumerate([*matching, NONE]):
        confusion[:, item] += pixels[:, column]  # NONE is the last column
    return confusion
