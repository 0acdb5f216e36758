# SPDX-License-Identifier: Apache-2.0
"""Attention maps scored against the masks of objects, by Jaccard (intersection over union).

A map is float32 [h, w] on the patch grid, attention float32 [heads, h, w]. Its mask holds the
fewest patches that have a share of its mass, and is compared at the truth's own size, enlarged as
the node enlarges it. A truth is bool [H, W], True on the object.

One frame at a time, then the set::

    scores = [score_frame(attention, truth, mass=0.6) for attention, truth in ...]
    score_objects(scores)["jaccard_mean"]
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ctxseg_ros.image.attention import head_map, mask_image, mass_mask
from ctxseg_ros.image.resize import resized
from ctxseg_ros.model.model_file import ModelInfo
from training.data.files import DataError, decoded, each_file
from training.data.pairs import Pair, read_pair
from training.evaluation.running import AUTO, RunOptions, each_at_its_size

#: The masses of the curve: 0.05 to 0.95.
MASSES: tuple[float, ...] = tuple(i / 20 for i in range(1, 20))
#: The centre prior's standard deviation as a share of each side: three reach the frame's edge.
CENTRE_SIGMA = 1 / 6


@dataclass(frozen=True)
class FrameScore:
    """Jaccard of one frame's masks: of the mean of the heads and of each head.

    Args:
        mean: of the heads' mean. heads: float [heads]. curve: of the mean, at each of ``MASSES``.
    """

    mean: float
    heads: NDArray[np.float64]
    curve: NDArray[np.float64]


#: Of one frame: of the ``model`` and of each control.
FrameScores = dict[str, FrameScore]


def evaluate_objects(
    info: ModelInfo,
    pairs: Sequence[Pair],
    mass: float = 0.6,
    run: RunOptions = AUTO,
) -> dict[str, Any]:
    """Scores of attention masks against the masks of objects, at their own size.

    Every frame weighs the same; those without an object are left out, since nothing could be
    right on them. Two controls are scored on the same frames and the same grid of patches: a
    prior for the centre, and a ViT that learnt nothing.

    Args:
        info: the model. pairs: frames and their masks, where what is not black is the object.
        mass: share of the attention that a mask holds.
        run: its size is by default, for each frame, the nearest to its own that the model takes,
            so that none is squeezed.

    Returns:
        What ``score_objects`` returns, for the model and, in ``controls``, for
        ``centre_prior`` and ``random_vit``; ``sequences``, by folder of the frames: ``images`` and
        ``jaccard_mean`` and ``jaccard_best_head`` of the model, ``jaccard_mean`` of the controls;
        ``mass``, ``images`` (those scored), ``without_object``.

    Raises:
        DataError: a file cannot be read or used, all are named before the model runs; or there is
            no object at all.
        ValueError: the model has no attention, ``mass`` is not above 0 and up to 1, or the size
            does not fit the model.
    """
    if info.task != "attention":
        raise ValueError(
            f"{info.name} is a model of task {info.task}: it has no attention to score"
        )
    mass_mask(np.ones((1, 1), np.float32), mass)  # validates it before the long run
    there = each_file(lambda pair: read_pair(pair, read_mask)[1].any(), pairs, "frames and masks")
    seen = [pair for pair, has_object in zip(pairs, there, strict=True) if has_object]
    if not seen:
        raise DataError("there is nothing to score: no mask has an object, all are black")
    scored = _score_pairs(info, seen, mass, run)
    sets = _score_sets([scores for _, scores in scored])
    return {
        **sets.pop("model"),
        "mass": mass,
        "images": len(seen),
        "without_object": len(pairs) - len(seen),
        "controls": sets,
        "sequences": _score_sequences(scored),
    }


def _score_pairs(
    info: ModelInfo, pairs: Sequence[Pair], mass: float, run: RunOptions
) -> list[tuple[Pair, FrameScores]]:
    """Each pair's scores, of the ``model`` and of the controls on the same grid of patches."""
    untaught, scored = random_vit(), []
    for pair, model in each_at_its_size(info, pairs, run):
        rows, columns = (side // info.stride for side in model.runtime.size)
        image, truth, _ = read_pair(pair, read_mask)
        attention = model.segment(image).attention
        assert attention is not None
        maps = {
            "model": attention,
            "centre_prior": centre_prior(rows, columns),
            "random_vit": untaught(image, (rows, columns)),
        }
        scores = {name: score_frame(each, truth, mass) for name, each in maps.items()}
        scored.append((pair, scores))
    return scored


def _score_sets(frames: Sequence[FrameScores]) -> dict[str, dict[str, Any]]:
    """What ``score_objects`` says of the model and of each control."""
    return {name: score_objects([scores[name] for scores in frames]) for name in frames[0]}


def _score_sequences(scored: Sequence[tuple[Pair, FrameScores]]) -> dict[str, dict[str, Any]]:
    """Scores by folder of the frames, named by its path below what all frames share."""
    frames_of: dict[Path, list[FrameScores]] = defaultdict(list)
    for pair, scores in scored:
        frames_of[pair.image.absolute().parent].append(scores)
    root = Path(os.path.commonpath(list(frames_of)))
    result = {}
    for folder, frames in sorted(frames_of.items()):
        sets = _score_sets(frames)
        model = sets.pop("model")
        result[root.name if folder == root else folder.relative_to(root).as_posix()] = {
            "images": len(frames),
            "jaccard_mean": model["jaccard_mean"],
            "jaccard_best_head": model["jaccard_best_head"],
            **{name: control["jaccard_mean"] for name, control in sets.items()},
        }
    return result


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask file as bool [H, W]: every pixel that is not black (alpha aside) is the object.

    Raises DataError if it cannot be read as an image.
    """
    pixels: NDArray[Any] = decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return (pixels != 0).any(axis=-1)


def jaccard(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, bool [H, W]; 1 where both are empty."""
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def score_plane(plane: NDArray[np.float32], truth: NDArray[np.bool_], mass: float) -> float:
    """Jaccard of a map's mask at ``mass``. Raises ValueError if mass is not above 0 up to 1."""
    return jaccard(mask_image(mass_mask(plane, mass), *truth.shape) > 0, truth)


def score_frame(
    attention: NDArray[np.float32], truth: NDArray[np.bool_], mass: float
) -> FrameScore:
    """Score one frame's attention. Raises ValueError if mass is not above 0 and up to 1."""
    mean = head_map(attention, -1)
    return FrameScore(
        mean=score_plane(mean, truth, mass),
        heads=np.array([score_plane(plane, truth, mass) for plane in attention]),
        curve=np.array([score_plane(mean, truth, each) for each in MASSES]),
    )


def score_objects(frames: Sequence[FrameScore]) -> dict[str, Any]:
    """Scores over a set in which every frame weighs the same; at least one.

    Returns:
        ``jaccard_mean``: of the heads' mean. ``jaccard_best_head``: of each frame's best head, an
        oracle. ``jaccard_fixed_head``: of ``fixed_head``, the one best over the set.
        ``mass_curve``: of the heads' mean, by mass. ``mass_curve_area``: the area under it by
        trapezoids, divided by its width, so that it is a Jaccard too. Fractions of 1.
    """
    heads = np.array([frame.heads for frame in frames])
    by_head = heads.mean(0)
    curve = np.mean([frame.curve for frame in frames], 0)
    return {
        "jaccard_mean": round(float(np.mean([frame.mean for frame in frames])), 6),
        "jaccard_best_head": round(float(heads.max(1).mean()), 6),
        "jaccard_fixed_head": round(float(by_head.max()), 6),
        "fixed_head": int(by_head.argmax()),
        "mass_curve_area": round(float((curve[1:] + curve[:-1]).mean() / 2), 6),
        "mass_curve": {
            f"{mass:g}": round(float(value), 6) for mass, value in zip(MASSES, curve, strict=True)
        },
    }


def centre_prior(height: int, width: int) -> NDArray[np.float32]:
    """A map without a model, float32 [1, height, width]: objects stand in the middle.

    A Gaussian of deviation ``CENTRE_SIGMA``: its mask at any mass is a centred disc in the frame's
    proportions; at 0.6 the radius is 0.226 of each side.
    """
    rows, columns = (
        (np.arange(side) - (side - 1) / 2) / (side * CENTRE_SIGMA) for side in (height, width)
    )
    plane = np.exp(-(rows[:, None] ** 2 + columns**2) / 2)
    return plane[None].astype(np.float32)


def random_vit() -> Callable[[NDArray[np.uint8], tuple[int, int]], NDArray[np.float32]]:
    """The attention of a ViT-Ti/16 that learnt nothing.

    Its weights are those that timm begins with at seed 0, its position embedding that of 14 x 14
    patches, resampled.

    Returns:
        From a frame, uint8 [H, W, 3] of any size, and a grid, (height, width) in patches, to
        attention float32 [3, height, width].
    """
    # Only here, since torch takes seconds to load.
    import torch

    from training.networks.encoder import Encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder("vit_tiny_patch16_224", (224, 224)).eval()

    def attention(image: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.float32]:
        size = (16 * grid[0], 16 * grid[1])
        fitted = torch.from_numpy(resized(image, size)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            _, row = encoder.features(fitted)
        return row[0].unflatten(-1, grid).numpy()

    return attention


def objects_table(name: str, result: dict[str, Any]) -> Table:
    """``evaluate_objects``'s result for people; ``name``: of the model."""
    left_out = result["without_object"]
    caption = "every frame weighs the same" + (
        f"; {left_out} without an object left out" if left_out else ""
    )
    table = Table(
        title=f"{name}: {result['images']} images, mass {result['mass']:g}, Jaccard",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    table.add_column("attention")
    for heading in ("heads' mean", "best head", "fixed head", "mass curve"):
        table.add_column(heading, justify="right")
    controls = result["controls"]
    for label, each in ((name, result), ("random ViT-Ti/16", controls["random_vit"])):
        table.add_row(
            label,
            f"{each['jaccard_mean']:.3f}",
            f"{each['jaccard_best_head']:.3f}",
            f"{each['jaccard_fixed_head']:.3f} (head {each['fixed_head']})",
            f"{each['mass_curve_area']:.3f}",
        )
    centre = controls["centre_prior"]  # one map: there is no choice of heads
    area = f"{centre['mass_curve_area']:.3f}"
    table.add_row("centre prior", f"{centre['jaccard_mean']:.3f}", "-", "-", area)
    if len(result["sequences"]) > 1:
        table.add_section()
        for folder, each in result["sequences"].items():
            values = (f"{each[key]:.3f}" for key in ("jaccard_mean", "jaccard_best_head"))
            table.add_row(f"{folder} ({each['images']})", *values)
    return table
