# SPDX-License-Identifier: Apache-2.0
"""Networks as they are deployed: uint8 frames in, uint8 labels and confidence out."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.segmenter import Segmenter
from training.networks.unet import UNet


class SegmenterGraph(nn.Module):
    """A Segmenter with its pre- and postprocessing inside, in operators that every runtime has.

    - One byte a channel comes in, and only a Cast sees it (TensorRT takes uint8 into nothing
      else).
    - Mean and standard deviation are folded into the patch convolution, which is exact as its
      kernel equals its stride and nothing is padded: ``W' = W / (255 std)``,
      ``b' = b - sum(W mean / std)``.
    - Attention is written out with the query scaled before the product, the form that TensorRT
      fuses.
    - The logits are upsampled by one Resize. Interpolation written as two matrix products was
      slower for masks at 4 pixels (K = 11 at 352x480, two cores, ONNX Runtime: 9.1 against
      4.8 ms) and no faster at K = 150.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        encoder = network.encoder
        self.encoder, self.decoder, self.stride = encoder, network.decoder, encoder.patch
        convolution = encoder.vit.patch_embed.proj
        mean, std = encoder.mean[:, None, None], encoder.std[:, None, None]
        bias = convolution.bias - (convolution.weight * mean / std).sum((1, 2, 3))
        self.weight = nn.Parameter((convolution.weight / (255 * std)).detach())
        self.bias = nn.Parameter(bias.detach())
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and confidence.

        Args:
            image: uint8 [1, H, W, 3], RGB; H and W multiples of the patch.

        Returns:
            labels uint8 [1, H, W] and confidence uint8 [1, H, W], 255 x top-class probability.
        """
        height, width = image.shape[1:3]
        x = image.to(torch.float32).permute(0, 3, 1, 2)
        patches = F.conv2d(x, self.weight, self.bias, stride=self.stride).permute(0, 2, 3, 1)
        masks = self.decoder(
            self.encoder.encode(patches), (height // self.stride, width // self.stride)
        )
        logits = F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)
        return labels_and_confidence(logits)


class UNetGraph(nn.Module):
    """A U-Net for frames of one byte a channel: its logits, or U_Enc's of a W-Net.

    The division by 255 is folded into the first convolution, which is exact: what it pads with
    is 0 on either scale.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.stride = network.stride
        first = self.network.down[0].first
        first.weight.data /= 255

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and confidence, as SegmenterGraph's; H and W multiples of 16."""
        return labels_and_confidence(
            self.network.fitting(image.to(torch.float32).permute(0, 3, 1, 2))
        )


def labels_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and confidence uint8 [1, H, W] of logits float [1, K, H, W].

    The logits are laid out with the classes last, where ArgMax is cheap, and the confidence needs
    one sum: ``max_k softmax(x)_k = 1 / sum_k exp(x_k - max x)``.
    """
    logits = logits.permute(0, 2, 3, 1)
    top = logits.amax(-1, keepdim=True)
    confidence = 255 / (logits - top).exp().sum(-1)
    return logits.argmax(-1).to(torch.uint8), (confidence + 0.5).to(torch.uint8)
