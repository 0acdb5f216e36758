# SPDX-License-Identifier: Apache-2.0
"""Segmenter: a ViT encoder and a mask transformer (Strudel et al. 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.encoder import Encoder
from training.networks.linear_head import LinearHead
from training.networks.mask_transformer import MaskTransformer


class Segmenter(nn.Module):
    """Semantic segmentation without convolutions beyond the patch embedding."""

    def __init__(self, encoder: Encoder, decoder: MaskTransformer | LinearHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the size of the images.

        Args:
            images: uint8 or float [B, 3, H, W], RGB, 0-255; H and W multiples of the patch.

        Returns:
            float [B, K, H, W]; their softmax over K is the paper's segmentation map.
        """
        height, width = images.shape[-2:]
        grid = height // self.encoder.patch, width // self.encoder.patch
        masks = self.decoder(self.encoder(images), grid)
        return F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)
