# SPDX-License-Identifier: Apache-2.0
"""Augmentation of labelled frames, with torchvision.transforms.v2."""

from __future__ import annotations

from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from training.data.pairs import IGNORE

#: Grey that fills what lies outside a frame; the labels there are IGNORE.
_FILL = {tv_tensors.Image: 124, tv_tensors.Mask: IGNORE}


def train_transform(size: tuple[int, int], scale: tuple[float, float], jitter: bool) -> nn.Module:
    """Random scale, crop to ``size``, mirror and, with ``jitter``, photometric distortion.

    Args:
        size: (height, width) in pixels of what comes out.
        scale: least and greatest factor, of the frame fitted into ``size``.
        jitter: distort brightness, contrast, saturation and hue.
    """
    steps: list[nn.Module] = [
        v2.ScaleJitter(target_size=size, scale_range=scale, antialias=True),
        v2.RandomCrop(size, pad_if_needed=True, fill=_FILL),
        v2.RandomHorizontalFlip(),
    ]
    if jitter:
        steps.append(v2.RandomPhotometricDistort(hue=(-0.02, 0.02)))
    return v2.Compose(steps)


def eval_transform(size: tuple[int, int]) -> nn.Module:
    """Resize the image to ``size``. The labels keep their own size: scores are taken there."""
    return v2.Resize(size, antialias=True)
