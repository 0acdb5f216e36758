# SPDX-License-Identifier: Apache-2.0
"""The picture of a model's confidence: reliability, and what ``min_confidence`` buys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ctxseg_ros.system.output_files import replacing
from training.evaluation.reliability import CANDIDATES, Reliability

#: Bins with a smaller share of the pixels are left out of the diagram: their accuracy is chance.
LEAST = 0.001


def draw_reliability(
    name: str, sets: Mapping[str, tuple[Reliability, Reliability]], out: Path
) -> None:
    """Draw a model's reliability on several sets, before and after calibration, into a PNG.

    Left: accuracy over confidence, on the diagonal where the confidence is right. Right: accuracy
    over the share of pixels that is still labelled as ``min_confidence`` rises.

    Args:
        name: of the model. sets: by name, the reliability before and after.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for i, (title, (before, after)) in enumerate(sets.items()):
        for reliability, style, when in ((before, "--", "before"), (after, "-", "after")):
            error = reliability.ece
            if error is None:
                continue
            bins = reliability.bins()
            pixels = sum(each["pixels"] for each in bins)
            bins = [each for each in bins if each["pixels"] >= LEAST * pixels]
            colour = f"C{i}"
            left.plot(
                [each["confidence"] for each in bins],
                [each["accuracy"] for each in bins],
                style,
                color=colour,
                marker="o",
                markersize=3,
                label=f"{title}, {when}: ECE {error:.3f}",
            )
            kept = [reliability.at(threshold) for threshold in CANDIDATES]
            kept = [each for each in kept if each["accuracy"] is not None]
            right.plot(
                [each["labelled"] for each in kept],
                [each["accuracy"] for each in kept],
                style,
                color=colour,
                label=f"{title}, {when}",
            )
    left.set(title=name, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="share labelled", ylabel="accuracy of what is labelled", xlim=(0, 1))
    right.set_ylim(top=1)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(color="0.9")
    with replacing(out) as draft:
        figure.savefig(draft, dpi=100, format="png")
