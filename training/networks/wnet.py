# SPDX-License-Identifier: Apache-2.0
"""W-Net: an image through a soft segmentation and back, by two U-Nets (Xia & Kulis 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from training.networks.unet import Padding, UNet


class WNet(nn.Module):
    """U_Enc gives each pixel a distribution over K clusters, U_Dec paints the image from it.

    Args:
        clusters: K. width, dropout, padding: see UNet, the same for both.
    """

    def __init__(
        self,
        clusters: int = 9,
        width: float = 1.0,
        dropout: float = 0.0,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        self.encoder = UNet(3, clusters, width, dropout, padding)
        self.decoder = UNet(clusters, 3, width, dropout, padding)

    def segment(self, images: Tensor) -> Tensor:
        """Probabilities float [B, K, H, W] of images [B, 3, H, W], RGB on 0-1."""
        return self.encoder(images).softmax(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``segment``'s probabilities, and the reconstruction float [B, 3, H, W] on 0-1."""
        probabilities = self.segment(images)
        return probabilities, self.decoder(probabilities)
