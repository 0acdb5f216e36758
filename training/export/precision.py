# SPDX-License-Identifier: Apache-2.0
"""What bf16 changes in a model's output, and what it costs in accuracy against ground truth.

Both are written into ``ctxseg.source`` of a model file, under ``precision``; by that the runtime
decides whether to run the model in bf16, see ``ctxseg_ros.inference.runtimes.precision``. The
entries:

- ``bf16_label_agreement``: share of the labels of fp32 that stay;
- ``bf16_sure_agreement``: the same, of the labels with a confidence of at least ``SURE`` in fp32;
- ``bf16_changed_confidence``: 95 % of the changed labels had at most this confidence in fp32;
- ``bf16_map_correlation``, in place of these three, for task attention: the least correlation of
  any head's map with that of fp32;
- ``frames``: how many were compared;
- ``score``, ``fp32_score``, ``bf16_score``: where ground truth was given, which score it is, and
  its value in either precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.inference.runtimes import Runtime, open_runtime, open_vino
from ctxseg_ros.inference.runtimes.precision import LabelChange, label_change, map_correlations
from ctxseg_ros.model.model_file import ModelInfo
from training.data.ground_truth import MODEL_IDS, GroundTruth
from training.data.pairs import Pair
from training.evaluation.labels import CONFIDENCE_SCORES, evaluate_labels
from training.evaluation.running import RunOptions

DEVICE = "openvino"  # the one that computes in bf16


def why_no_bf16() -> str | None:
    """Why bf16 cannot be measured on this machine; None if it can."""
    return open_vino.why_not() or open_vino.bf16_missing()


def open_both(info: ModelInfo, size: tuple[int, int] | None = None) -> tuple[Runtime, Runtime]:
    """The model in fp32 and in bf16, at ``size`` (height, width; None: its own)."""
    fp32, bf16 = (open_runtime(info, size, DEVICE, precision=name) for name in ("fp32", "bf16"))
    return fp32, bf16


def total_change(
    full: Runtime, lower: Runtime, frames: Iterable[NDArray[np.uint8]]
) -> LabelChange | list[float]:
    """What a precision changes over frames, uint8 [H, W, 3] of the runtimes' size; at least one.

    Returns:
        The labels that change; for task attention the correlation of each frame's each head.
    """
    if full.info.task == "attention":
        return [r for frame in frames for r in map_correlations(full.run(frame), lower.run(frame))]
    changes = [label_change(full.run(frame), lower.run(frame)) for frame in frames]
    return sum(changes[1:], changes[0])


def bf16_change(info: ModelInfo, frames: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """The entries that need no ground truth; empty on a processor without bf16.

    Args:
        frames: uint8 [H, W, 3], all of one size that the model takes.
    """
    if why_no_bf16():
        return {}
    full, lower = open_both(info, frames[0].shape[:2])
    change = total_change(full, lower, frames)
    full.close()
    lower.close()
    if isinstance(change, LabelChange):
        entries = {f"bf16_{name}": value for name, value in change.measured().items()}
    else:
        entries = {"bf16_map_correlation": round(max(0.0, min(change)), 6)}
    return {**entries, "frames": len(frames)}


def label_scores(
    info: ModelInfo,
    pairs: Sequence[Pair],
    precision: str,
    truth: GroundTruth = MODEL_IDS,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """``evaluate_labels`` in a precision, less what it tells about the confidence.

    Clusters are matched by Hungarian matching.
    """
    match = "none" if info.task == "semantic" else "hungarian"
    device = DEVICE if precision == "bf16" else "auto"
    scores = evaluate_labels(info, pairs, truth, match, RunOptions(size, device, precision))
    return {key: value for key, value in scores.items() if key not in CONFIDENCE_SCORES}


def accuracy(score: str, fp32: float, bf16: float) -> dict[str, Any]:
    """The entries that need ground truth."""
    return {"score": score, "fp32_score": fp32, "bf16_score": bf16}


def summary(entries: Mapping[str, Any]) -> str:
    """The entries in a sentence; an empty mapping: nothing was measured."""
    if not entries:
        return "bf16 was not measured, so OpenVINO will run the model in fp32"
    if "bf16_map_correlation" in entries:
        text = f"bf16: attention maps correlate by at least {entries['bf16_map_correlation']:.4f}"
    else:
        text = (
            f"bf16: {entries['bf16_label_agreement']:.2%} of the labels stay, "
            f"{entries['bf16_sure_agreement']:.3%} of those that fp32 is sure of"
        )
    if "score" in entries:
        text += (
            f"; {entries['score']} {100 * entries['fp32_score']:.2f} in fp32, "
            f"{100 * entries['bf16_score']:.2f} in bf16"
        )
    return text
