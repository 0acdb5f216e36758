# SPDX-License-Identifier: Apache-2.0
"""What a confusion matrix says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Segmentation scores over a whole set, fractions of 1.

    Args:
        confusion: integer [K, K], pixels counted by [truth, prediction]; or [K, K + 1], with the
            pixels that were left unlabelled in the last column: they count as wrong.
    """

    confusion: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union by class, [K]; NaN for a class neither true nor predicted."""
        hit = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(0)[: len(hit)] + self.confusion.sum(1) - hit
        return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)

    @property
    def miou(self) -> float:
        """Mean of ``iou`` over the classes that have one; NaN if none has."""
        iou = self.iou
        return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right; NaN without any."""
        total = self.confusion.sum()
        return float(np.diag(self.confusion).sum() / total) if total else float("nan")

    @property
    def class_accuracy(self) -> float:
        """Mean recall over the classes that occur in the truth; NaN if none does."""
        true = self.confusion.sum(1)
        there = true > 0
        if not there.any():
            return float("nan")
        return float((np.diag(self.confusion)[there] / true[there]).mean())
