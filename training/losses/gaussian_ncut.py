# SPDX-License-Identifier: Apache-2.0
"""The soft N-cut as F. Odom approximates it: one weight for a pixel and class, then one filter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.losses.soft_ncut import check_inputs

_SMALLEST = -40.0  # e^-40 is nothing beside a class's largest weight; subnormals are slow


def gaussian_ncut(
    probabilities: Tensor,
    features: Tensor,
    radius: float = 5,
    sigma_intensity: float = 10.0,
    sigma_space: float = 4.0,
) -> Tensor:
    """Approximate N-cut of each image: ``J = K - sum_k (p_k · G a_k p_k) / (p_k · G a_k)``.

    ``a_k(u) = exp(-|F_u - m_k|²/sigma_intensity²)`` compares a pixel with the class's mean
    ``m_k = sum_u p_k(u) F_u / sum_u p_k(u)`` instead of with its neighbours;
    ``G[u, v] = exp(-|X_u - X_v|²/sigma_space²)`` for pixels nearer than `radius`, else 0. What lies
    outside the image does not exist. A class without any pixel adds 0 to the sum.

    Arguments, result and errors are those of `soft_ncut`.
    """
    check_inputs(probabilities, features, radius, sigma_intensity, sigma_space)
    kind = torch.promote_types(probabilities.dtype, torch.float32)
    with torch.autocast(probabilities.device.type, enabled=False):
        p = probabilities.to(kind)
        weights = _class_weights(p, features.to(kind) / sigma_intensity)
        kernel = _kernel(radius, sigma_space, p)
        inner = (p * _filtered(p * weights, kernel)).sum((2, 3))
        degree = (p * _filtered(weights, kernel)).sum((2, 3))
        return p.shape[1] - _ratio(inner, degree).sum(1)


def _class_weights(p: Tensor, features: Tensor) -> Tensor:
    """a [B, K, H, W], but for a factor of each class, which J does not see: its largest is 1."""
    total = p.sum((2, 3))
    exponent = torch.zeros_like(p)
    for image in features.split(1, 1):
        # Not a matrix product: a backward pass within autocast would round it to bfloat16.
        mean = _ratio((p * image).sum((2, 3)), total)
        difference = image - mean[..., None, None]
        exponent = torch.addcmul(exponent, difference, difference, value=-1)
    largest = exponent.detach().amax((2, 3), keepdim=True)
    return (exponent - largest).clamp(min=_SMALLEST).exp()


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 0, with a gradient of 0, where `below` is next to 0."""
    some = below > torch.finfo(below.dtype).tiny ** 0.5  # the gradient divides by its square
    return torch.where(some, above, 0) / torch.where(some, below, 1)


def _kernel(radius: float, sigma_space: float, like: Tensor) -> Tensor:
    reach = math.ceil(radius) - 1
    squares = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device) ** 2
    distance = squares[:, None] + squares
    return torch.where(distance < radius**2, torch.exp(-distance / sigma_space**2), 0)


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel [B, K, H, W] with the kernel; the zeros around an image add nothing."""
    # As channels of one image, each its own group: many times faster than as a batch of one each.
    channels = images.flatten(0, 1)[None]
    kernels = kernel.expand(channels.shape[1], 1, *kernel.shape)
    filtered = functional.conv2d(
        channels, kernels, padding=len(kernel) // 2, groups=channels.shape[1]
    )
    return filtered.view_as(images)
