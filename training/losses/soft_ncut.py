# SPDX-License-Identifier: Apache-2.0
"""The soft normalised cut of W-Net (Xia & Kulis 2017), exact, in memory O(pixels x classes)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_STRIP = 2**17  # numbers of one operand that stay in a core's cache
_SMALLEST = -40.0  # e^-40 is nothing beside a pixel's weight 1 to itself; subnormals are slow


def soft_ncut(
    probabilities: Tensor,
    features: Tensor,
    radius: float = 5,
    sigma_intensity: float = 10.0,
    sigma_space: float = 4.0,
) -> Tensor:
    """Soft N-cut of each image: ``J = K - sum_k (p_k · W p_k) / (p_k · W 1)``.

    ``W[u, v] = exp(-|F_u - F_v|²/sigma_intensity²) exp(-|X_u - X_v|²/sigma_space²)`` for pixels
    nearer than `radius` (each pixel to itself: 1), else 0. What lies outside the image does not
    exist: nothing is padded. A class without any pixel adds 0 to the sum.

    Args:
        probabilities: float [B, K, H, W], a softmax over K.
        features: float [B, C, H, W] in 0-255: grey intensity, or C colours. They get no gradient.
        radius: pixels, above 0.
        sigma_intensity: in units of the features, above 0.
        sigma_space: pixels, above 0.

    Returns:
        [B], in [0, K]; float64 for float64 probabilities, else float32.

    Raises:
        ValueError: shapes that do not fit, a type that is not float, features that ask for a
            gradient, or a radius or sigma that is not above 0.
    """
    check_inputs(probabilities, features, radius, sigma_intensity, sigma_space)
    return _SoftNcut.apply(probabilities, features, radius, sigma_intensity, sigma_space)


def check_inputs(
    probabilities: Tensor,
    features: Tensor,
    radius: float,
    sigma_intensity: float,
    sigma_space: float,
) -> None:
    """Raise ValueError for what `soft_ncut` does not take."""
    for name, tensor in (("probabilities", probabilities), ("features", features)):
        if tensor.ndim != 4 or not tensor.numel():
            raise ValueError(f"{name} must be [B, channels, H, W], not {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be float, not {tensor.dtype}: call .float()")
    if len(probabilities) != len(features):
        raise ValueError(
            f"probabilities of {len(probabilities)} images, features of {len(features)}"
        )
    if probabilities.shape[2:] != features.shape[2:]:
        raise ValueError(
            f"probabilities are {list(probabilities.shape[2:])} pixels (H, W), "
            f"features {list(features.shape[2:])}: resize one to the other"
        )
    if features.requires_grad:
        raise ValueError("features get no gradient here: pass features.detach()")
    for name, value in (
        ("radius", radius),
        ("sigma_intensity", sigma_intensity),
        ("sigma_space", sigma_space),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, not {value}")


class _SoftNcut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        probabilities: Tensor,
        features: Tensor,
        radius: float,
        sigma_intensity: float,
        sigma_space: float,
    ) -> Tensor:
        kind = torch.promote_types(probabilities.dtype, torch.float32)
        wanted = ctx.needs_input_grad[0]
        cuts = probabilities.new_empty(len(probabilities), dtype=kind)
        slopes = torch.empty_like(probabilities if wanted else probabilities[:0])
        count = _images_at_once(probabilities)
        layout = _Layout(probabilities.shape, radius)
        pairs = [
            (shift, torch.tensor(-distance / sigma_space**2, dtype=kind, device=cuts.device))
            for shift, distance in layout.pairs()
        ]
        for start in range(0, len(probabilities), count):
            part = slice(start, start + count)
            values = layout.flat(probabilities[part], kind, ones=True)
            scaled = features[part].to(kind) / sigma_intensity
            sums = _weighted_sums(values, layout.flat(scaled, kind), pairs)
            inside = layout.images(sums)
            weighted, neighbours = inside[:, :-1], inside[:, -1:]  # W p, W 1
            ratio, inverse = _terms(layout.images(values)[:, :-1], weighted)
            cuts[part] = ratio.shape[1] - ratio.sum(1)
            if wanted:
                ratio, inverse = ratio[..., None, None], inverse[..., None, None]
                slopes[part] = weighted.mul_(-2 * inverse).addcmul_(neighbours, ratio * inverse)
        ctx.save_for_backward(slopes)
        return cuts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient.to(slopes.dtype)[:, None, None, None], None, None, None, None


def _terms(p: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """(p·Wp / p·W1, 1 / p·W1) [B, K]; zeros for an empty class."""
    degree = weighted.sum((2, 3))  # p·W1 = 1·Wp
    some = degree > torch.finfo(degree.dtype).tiny
    inner = (p * weighted).sum((2, 3))
    return torch.where(some, inner / degree, 0), torch.where(some, 1 / degree, 0)


def _images_at_once(probabilities: Tensor) -> int:
    if probabilities.is_cuda:
        return len(probabilities)
    return max(1, _STRIP * len(probabilities) // probabilities.numel())


class _Layout:
    """Images in one row of pixels, so that one shift reaches a neighbour in all of them.

    Zeros follow each row, and rows of zeros each image, as many as the window reaches: a neighbour
    outside the image is one of these, and adds nothing.
    """

    def __init__(self, shape: torch.Size, radius: float) -> None:
        self._height, self._width = shape[2:]
        self._radius = radius
        reach = math.ceil(radius) - 1
        self._down, self._right = min(reach, self._height - 1), min(reach, self._width - 1)
        self._rows, self._columns = self._height + self._down, self._width + self._right

    def flat(self, images: Tensor, kind: torch.dtype, ones: bool = False) -> Tensor:
        """[B, C, H, W] -> [C, pixels], with `ones` [C + 1, pixels], the last channel all ones."""
        batch, channels = images.shape[:2]
        padded = images.new_zeros(channels + ones, batch, self._rows, self._columns, dtype=kind)
        inside = padded[:, :, : self._height, : self._width]
        inside[:channels] = images.transpose(0, 1)
        inside[channels:] = 1
        return padded.flatten(1)

    def images(self, flat: Tensor) -> Tensor:
        """[C, pixels] -> a view [B, C, H, W]."""
        padded = flat.unflatten(1, (-1, self._rows, self._columns))
        return padded[:, :, : self._height, : self._width].transpose(0, 1)

    def pairs(self) -> list[tuple[int, int]]:
        """(shift, squared distance) to one of each two opposite neighbours in the window."""
        return [
            (dy * self._columns + dx, dy * dy + dx * dx)
            for dy in range(self._down + 1)
            for dx in range(-self._right if dy else 1, self._right + 1)
            if dy * dy + dx * dx < self._radius**2
        ]


def _weighted_sums(values: Tensor, features: Tensor, pairs: list[tuple[int, Tensor]]) -> Tensor:
    """W values, for flat values [C, pixels]; `pairs`: shift and exponent of the distance."""
    sums = values.clone()
    end = values.shape[1] - max((shift for shift, _ in pairs), default=0)
    length = end if values.is_cuda else max(1, _STRIP // len(values))
    for start in range(0, end, length):
        size = min(length, end - start)
        values_here = values.narrow(1, start, size)
        sums_here = sums.narrow(1, start, size)
        features_here = features.narrow(1, start, size)
        for shift, spatial in pairs:
            there = start + shift
            weight = _weight(features_here, features.narrow(1, there, size), spatial)
            sums_here.addcmul_(weight, values.narrow(1, there, size))
            sums.narrow(1, there, size).addcmul_(weight, values_here)
    return sums


def _weight(features: Tensor, others: Tensor, spatial: Tensor) -> Tensor:
    exponent = spatial
    for difference in (features - others).unbind():
        exponent = torch.addcmul(exponent, difference, difference, value=-1)
    return exponent.clamp_(min=_SMALLEST).exp_()
