# SPDX-License-Identifier: Apache-2.0
"""How far a model's confidence can be believed: calibration error, and what a threshold buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bins of equal width for the expected calibration error. Their edges lie on bytes: 255 = 15 x 17.
BINS = 15
#: The thresholds of a curve, and those that one is recommended from.
CURVE = tuple(i / 20 for i in range(20))
CANDIDATES = tuple(i / 100 for i in range(100))


@dataclass(frozen=True)
class Reliability:
    """Pixels with ground truth, by the confidence of their label; sets are added with ``+``.

    ``right``, ``wrong``: int64 [256], pixels by confidence (a byte, 255 = certain).
    ``unlabelled``: pixels that the model itself left without a label.
    """

    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    unlabelled: int = 0

    @classmethod
    def count(
        cls, confidence: NDArray[np.uint8], right: NDArray[np.bool_], unlabelled: int = 0
    ) -> Reliability:
        """Of pixels: their confidence, uint8 [N], and whether their label is right, bool [N]."""
        return cls(
            np.bincount(confidence[right], minlength=256),
            np.bincount(confidence[~right], minlength=256),
            unlabelled,
        )

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.right + other.right, self.wrong + other.wrong, self.unlabelled + other.unlabelled
        )

    @property
    def pixels(self) -> int:
        """All of them, labelled or not."""
        return int(self.right.sum() + self.wrong.sum()) + self.unlabelled

    def _binned(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Sums over the pixels of each bin, [BINS]: pixels, confidence (0-1), right labels."""
        values = np.arange(256)
        member = np.maximum((values + 16) // 17 - 1, 0)
        pixels = self.right + self.wrong
        counts, confidences, hits = (
            np.bincount(member, weights, BINS).astype(float)
            for weights in (pixels, pixels * values / 255, self.right)
        )
        return counts, confidences, hits

    def bins(self) -> list[dict[str, Any]]:
        """For each bin, ``above`` < confidence <= ``to`` (the first includes 0).

        ``pixels``, and of these, fractions of 1: the mean ``confidence`` and the ``accuracy``;
        both None without a pixel.
        """
        return [
            {
                "above": round(i / BINS, 6),
                "to": round((i + 1) / BINS, 6),
                "pixels": int(count),
                "confidence": round(confidence / count, 6) if count else None,
                "accuracy": round(hits / count, 6) if count else None,
            }
            for i, (count, confidence, hits) in enumerate(zip(*self._binned(), strict=True))
        ]

    @property
    def ece(self) -> float | None:
        """Expected calibration error, a fraction of 1; None without a labelled pixel.

        The mean over pixels of | accuracy - mean confidence | of their bin (Guo et al. 2017).
        """
        counts, confidences, hits = self._binned()
        if not counts.any():
            return None
        return round(float(np.abs(hits - confidences).sum() / counts.sum()), 6)

    def at(self, threshold: float) -> dict[str, Any]:
        """What is left with this ``min_confidence`` (0-1), which counts as in the node.

        ``labelled``: the share of all pixels; ``accuracy``: of those that are labelled (None
        without any). Fractions of 1.
        """
        right, wrong = self._kept(threshold)
        kept = right + wrong
        return {
            "min_confidence": threshold,
            "labelled": round(kept / self.pixels, 6),
            "accuracy": round(right / kept, 6) if kept else None,
        }

    def curve(self) -> list[dict[str, Any]]:
        """``at`` each threshold of CURVE."""
        return [self.at(threshold) for threshold in CURVE]

    def gain(self, threshold: float) -> float:
        """Right less wrong labels that are left with this ``min_confidence``, by pixel."""
        right, wrong = self._kept(threshold)
        return (right - wrong) / self.pixels

    def _kept(self, threshold: float) -> tuple[int, int]:
        least = math.ceil(threshold * 255)
        return int(self.right[least:].sum()), int(self.wrong[least:].sum())


def recommended(sets: Sequence[Reliability]) -> float:
    """The ``min_confidence`` with most right less wrong labels, each set weighing the same.

    That takes a wrong label to cost what a right one is worth: a robot to which it costs more
    needs a higher threshold.
    """
    return max(CANDIDATES, key=lambda each: (sum(one.gain(each) for one in sets), -each))
