# SPDX-License-Identifier: Apache-2.0
"""Segmenter: a ViT encoder and a mask transformer (Strudel et al. 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.details import Details
from training.networks.encoder import Encoder
from training.networks.linear_head import LinearHead
from training.networks.mask_transformer import MaskTransformer


class Segmenter(nn.Module):
    """Semantic segmentation without convolutions beyond the patch embedding, as published.

    Args:
        encoder, decoder: the two parts.
        details: a branch for what is thinner than patches, with a MaskTransformer.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: MaskTransformer | LinearHead,
        details: Details | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.details = details

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the size of the images.

        Args:
            images: uint8 or float [B, 3, H, W], RGB, 0-255; H and W multiples of the patch.

        Returns:
            float [B, K, H, W]; their softmax over K is the paper's segmentation map.
        """
        height, width = images.shape[-2:]
        grid = height // self.encoder.patch, width // self.encoder.patch
        details = None
        if self.details is not None:
            details = self.details(images.to(self.encoder.mean.dtype) / 255)
        masks = decoded(self.decoder, self.encoder(images), grid, details)
        return F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)


def decoded(
    decoder: MaskTransformer | LinearHead,
    tokens: Tensor,
    grid: tuple[int, int],
    details: Tensor | None,
) -> Tensor:
    """Mask logits of patch tokens [B, h * w, D], and of what Details gives for the same images."""
    if details is None:
        return decoder(tokens, grid)
    assert isinstance(decoder, MaskTransformer)
    cells = [side * decoder.subpatch for side in grid]
    # Where cells are as large as Details' stride this changes nothing.
    details = F.interpolate(details, cells, mode="bilinear", align_corners=False)
    return decoder(tokens, grid, details)
