# SPDX-License-Identifier: Apache-2.0
"""The soft N-cut over one graph of all the pixels of a batch, so that clusters mean the same in it.

The published loss is taken per image (``soft_ncut``): it charges an image for every cluster that
the image leaves empty, and nothing ties a cluster in one image to that of the same number in
another. Here each pixel is joined to each pixel of all the images, by features alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS = 512  # of W that are in memory at a time


def batch_ncut(probabilities: Tensor, features: Tensor, sigma: float) -> Tensor:
    """Soft N-cut of a batch: ``J = K - sum_k (p_k · W p_k) / (p_k · W 1)``, W over all pixels.

    ``W[u, v] = exp(-|F_u - F_v|²/sigma²)`` for any two pixels of any two images. A class without
    any pixel adds 0 to the sum. Takes time O(n² (C + K)) for n = B H W pixels and memory O(n).

    Args:
        probabilities: float [B, K, H, W], a softmax over K.
        features: float [B, C, H, W], such as a ViT's tokens of length 1: |F_u - F_v|² is then
            twice 1 - cosine. They get no gradient.
        sigma: in units of the features, above 0.

    Returns:
        a scalar in [0, K], float32 or wider.

    Raises:
        ValueError: shapes that do not fit, features that ask for a gradient, or ``sigma`` is not
            above 0.
    """
    if probabilities.ndim != 4 or features.ndim != 4:
        raise ValueError("probabilities and features must be [B, channels, H, W]")
    if (probabilities.shape[0], *probabilities.shape[2:]) != (
        features.shape[0],
        *features.shape[2:],
    ):
        raise ValueError(
            f"probabilities {list(probabilities.shape)} and features {list(features.shape)} are "
            "not of the same pixels"
        )
    if features.requires_grad:
        raise ValueError("features get no gradient here: pass features.detach()")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, not {sigma}")
    kind = torch.promote_types(probabilities.dtype, torch.float32)
    p = probabilities.to(kind).movedim(1, -1).flatten(0, 2)  # [n, K]
    return _BatchNcut.apply(p, features.to(kind).movedim(1, -1).flatten(0, 2) / sigma)


class _BatchNcut(torch.autograd.Function):
    """W is symmetric, so that with A = p·Wp and D = p·W1: dA/dp = 2 W p, dD/dp = W 1."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, features: Tensor) -> Tensor:
        with torch.autocast(p.device.type, enabled=False):
            values = torch.cat([p, torch.ones_like(p[:, :1])], dim=1)
            squares = features.square().sum(1)
            sums = torch.empty_like(values)
            for start in range(0, len(p), _ROWS):
                rows = slice(start, start + _ROWS)
                distance = squares[rows, None] + squares - 2 * features[rows] @ features.T
                sums[rows] = distance.clamp(min=0).neg().exp() @ values
            weighted, neighbours = sums[:, :-1], sums[:, -1:]  # W p, W 1
            inner, degree = (p * weighted).sum(0), (p * neighbours).sum(0)
            some = degree > torch.finfo(degree.dtype).tiny
            inverse = torch.where(some, 1 / degree, 0)
            ratio = torch.where(some, inner * inverse, 0)
            ctx.save_for_backward(inverse * (ratio * neighbours - 2 * weighted))
            return p.shape[1] - ratio.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None
