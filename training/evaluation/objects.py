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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.image.attention import head_map, mask_image, mass_mask
from ctxseg_ros.image.resize import resized
from training.data.files import decoded

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


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask file as bool [H, W]: every pixel that is not black (alpha aside) is the object.

    Raises DataError if it cannot be read as an image.
    """
    return decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH).any(-1)


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
