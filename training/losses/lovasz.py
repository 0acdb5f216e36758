# SPDX-License-Identifier: Apache-2.0
"""The Lovász-softmax loss: a convex surrogate of the Jaccard index (Berman et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(probabilities: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """Lovász-softmax, for each image over the classes present in it, then averaged.

    For class c with errors ``m_i = |[y_i = c] - p_i(c)|`` sorted downwards, the loss is
    ``sum_i m_i * (J(i) - J(i - 1))``, where J(i) is the Jaccard *loss* of getting just the i worst
    pixels wrong (eq. 9 there). Averaged over images, not over the pooled pixels of a batch: so
    two processes with half a batch each compute what one computes with the whole.

    Args:
        probabilities: float [B, K, H, W], a softmax over K.
        labels: integer [B, H, W], 0 to K - 1, or ``ignore``.
        ignore: label of the pixels that do not count.

    Returns:
        a scalar in [0, 1]; 0 for a batch without a labelled pixel.
    """
    images = [_one_image(p, y, ignore) for p, y in zip(probabilities, labels, strict=True)]
    return torch.stack(images).mean()


def _one_image(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    valid = labels != ignore
    p = probabilities[:, valid]
    y = labels[valid]
    present = y.unique()
    if not len(present):
        return probabilities.sum() * 0
    truth = y[None] == present[:, None]
    errors = (truth.to(p.dtype) - p[present]).abs()
    errors, order = errors.sort(dim=1, descending=True)
    truth = truth.gather(1, order).to(p.dtype)
    total = truth.sum(1, keepdim=True)
    intersection = total - truth.cumsum(1)
    union = total + (1 - truth).cumsum(1)
    jaccard = 1 - intersection / union
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return (errors * steps).sum(1).mean()
