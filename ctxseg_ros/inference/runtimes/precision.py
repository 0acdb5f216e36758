# SPDX-License-Identifier: Apache-2.0
"""Whether a model may run in bf16 or fp16: what that changes compared with fp32, and the limits.

The share of labels that stay depends on the footage: it falls with every pixel whose two best
classes are nearly tied, and there either label is as good. So it only has to be above a floor.
What decides is that the labels which fp32 is sure of stay, and that the accuracy against ground
truth does, where that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import Prediction

PRECISIONS = ("fp32", "bf16", "fp16")
SURE = 0.6
"""The confidence from which on fp32 is sure of a label. Where two classes are tied it is at most
0.5, so that rounding alone changes no label of a pixel above that."""
LEAST_SURE_AGREEMENT = 0.999
"""The least share of those labels that must stay."""
LEAST_LABEL_AGREEMENT = 0.97
"""The least share of all labels that must stay: for models that are hardly ever sure."""
LEAST_MAP_CORRELATION = 0.99
"""The least correlation of any head's attention map with that of fp32."""
MOST_SCORE_LOSS = 0.005
"""The most that the score against ground truth (a fraction of 1: mIoU, Jaccard) may fall."""


@dataclass(frozen=True)
class LabelChange:
    """Pixels by their confidence in fp32: int64 [256] of all, and of those whose label changed.

    Changes are added with ``+``.
    """

    pixels: NDArray[np.int64]
    changed: NDArray[np.int64]

    def __add__(self, other: LabelChange) -> LabelChange:
        return LabelChange(self.pixels + other.pixels, self.changed + other.changed)

    def agreement(self, least: float = 0.0, below: float = np.inf) -> float:
        """The share of labels that stay, of pixels with a confidence in [least, below).

        1 if there is no such pixel.
        """
        confidence = np.arange(256) / 255
        chosen = (confidence >= least) & (confidence < below)
        count = self.pixels[chosen].sum()
        return float(1 - self.changed[chosen].sum() / count) if count else 1.0

    def changed_confidence(self, share: float) -> float:
        """The confidence (0-1) that `share` of the changed pixels do not exceed; 0 without any."""
        if not self.changed.any():
            return 0.0
        reached = np.cumsum(self.changed) >= share * self.changed.sum()
        return float(np.argmax(reached) / 255)

    def measured(self) -> dict[str, float]:
        """`label_agreement`, `sure_agreement`, and the `changed_confidence` of 95 % of changes."""
        return {
            "label_agreement": round(self.agreement(), 6),
            "sure_agreement": round(self.agreement(SURE), 6),
            "changed_confidence": round(self.changed_confidence(0.95), 4),
        }


def label_change(full: Prediction, lower: Prediction) -> LabelChange:
    """Compare the labels of one frame, in fp32 and in a lower precision."""
    assert full.labels is not None and full.confidence is not None and lower.labels is not None
    changed = full.labels != lower.labels
    return LabelChange(
        np.bincount(full.confidence.ravel(), minlength=256),
        np.bincount(full.confidence[changed], minlength=256),
    )


def map_correlations(full: Prediction, lower: Prediction) -> list[float]:
    """Pearson's correlation, for each head, of the attention in fp32 and in a lower precision.

    For a constant map it is not defined: 1 if both maps are the same within 1 %, else 0.
    """
    assert full.attention is not None and lower.attention is not None
    found = []
    for one, other in zip(full.attention, lower.attention, strict=True):
        apart = [plane.ravel() - plane.mean(dtype=np.float64) for plane in (one, other)]
        norm = float(np.linalg.norm(apart[0]) * np.linalg.norm(apart[1]))
        if norm > 0:
            found.append(float(apart[0] @ apart[1]) / norm)
        else:
            found.append(float(np.allclose(one, other, rtol=0.01)))
    return found


def measure(full: Prediction, lower: Prediction) -> dict[str, float]:
    """What `cost` judges, of one frame; a negative correlation counts as 0."""
    if full.attention is not None:
        return {"map_correlation": max(0.0, round(min(map_correlations(full, lower)), 6))}
    return label_change(full, lower).measured()


def recorded(info: ModelInfo) -> dict[str, Any]:
    """What a model file records of bf16, as `cost` takes it; empty if nothing."""
    entries = info.source.get("precision", {})
    return {key.removeprefix("bf16_"): value for key, value in entries.items()}


def cost(measured: Mapping[str, float], task: str, precision: str) -> str | None:
    """Why a model should not run in a lower precision; None if it may.

    Args:
        measured: for task attention `map_correlation`, for the others `label_agreement` and
            `sure_agreement`; `fp32_score` and `score` where ground truth was there.
        task: of the model.
        precision: bf16 or fp16.
    """
    needed = {"map_correlation"} if task == "attention" else {"label_agreement", "sure_agreement"}
    if not needed <= measured.keys():
        return (
            f"the model file does not record what {precision} changes "
            "(python -m training record-precision MODEL.onnx --frames ... measures and records it)"
        )
    # Written so that NaN, which a broken engine gives, is refused too.
    if task == "attention":
        correlation = measured["map_correlation"]
        if not correlation >= LEAST_MAP_CORRELATION:
            return (
                f"{precision} attention correlates with that of fp32 by only {correlation:.3f} "
                f"(at least {LEAST_MAP_CORRELATION})"
            )
    else:
        if not measured["sure_agreement"] >= LEAST_SURE_AGREEMENT:
            return (
                f"{precision} changes {1 - measured['sure_agreement']:.2%} of the labels that "
                f"have an fp32 confidence of {SURE:g} or more "
                f"(at most {1 - LEAST_SURE_AGREEMENT:.2%})"
            )
        if not measured["label_agreement"] >= LEAST_LABEL_AGREEMENT:
            return (
                f"{precision} changes {1 - measured['label_agreement']:.1%} of all labels "
                f"(at most {1 - LEAST_LABEL_AGREEMENT:.1%})"
            )
    if {"fp32_score", "score"} <= measured.keys():
        loss = measured["fp32_score"] - measured["score"]
        if not loss <= MOST_SCORE_LOSS:
            return (
                f"{precision} costs {100 * loss:.1f} points of accuracy "
                f"(at most {100 * MOST_SCORE_LOSS:.1f})"
            )
    return None
