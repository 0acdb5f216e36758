# SPDX-License-Identifier: Apache-2.0
"""Networks as they are deployed: uint8 frames in, uint8 labels and confidence, or attention out."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.encoder import Encoder
from training.networks.segmenter import Segmenter, decoded
from training.networks.unet import UNet


class DeployedGraph(nn.Module):
    """A network that is exported: frames uint8 [1, H, W, 3] in, what the model file gives out.

    ``stride``: H and W are multiples of it.
    """

    stride: int


class ViTGraph(DeployedGraph):
    """What graphs of ViTs share, in operators that every runtime has.

    - One byte a channel comes in, and only a Cast sees it (TensorRT takes uint8 into nothing
      else).
    - Mean and standard deviation are folded into the patch convolution, which is exact as its
      kernel equals its stride and nothing is padded: ``W' = W / (255 std)``,
      ``b' = b - sum(W mean / std)``.
    - Attention is written out with the query scaled before the product, the form that TensorRT
      fuses.
    """

    def __init__(self, network: nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.stride = encoder, encoder.patch
        convolution = encoder.vit.patch_embed.proj
        mean, std = encoder.mean[:, None, None], encoder.std[:, None, None]
        bias = -(convolution.weight * mean / std).sum((1, 2, 3))
        if convolution.bias is not None:  # CLIP has none
            bias += convolution.bias
        self.weight = nn.Parameter((convolution.weight / (255 * std)).detach())
        self.bias = nn.Parameter(bias.detach())
        module: Any  # timm declares no types of their attributes
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False

    def patches(self, image: Tensor) -> Tensor:
        """Normalised patch embeddings [1, h, w, D] of an image uint8 [1, H, W, 3]."""
        x = image.to(torch.float32).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, self.bias, stride=self.stride).permute(0, 2, 3, 1)


class SegmenterGraph(ViTGraph):
    """A Segmenter with its pre- and postprocessing inside.

    The logits are upsampled by one Resize. Interpolation written as two matrix products was slower
    for masks at 4 pixels (K = 11 at 352x480, two cores, ONNX Runtime: 9.1 against 4.8 ms) and no
    faster at K = 150.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__(network, network.encoder)
        self.decoder, self.details = network.decoder, None
        if network.details is not None:
            # The division by 255, folded; what is padded with is 0 on either scale.
            self.details = copy.deepcopy(network.details)
            self.details.first.weight.data /= 255

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and confidence.

        Args:
            image: uint8 [1, H, W, 3], RGB; H and W multiples of the patch.

        Returns:
            labels uint8 [1, H, W] and confidence uint8 [1, H, W], 255 x top-class probability.
        """
        height, width = image.shape[1:3]
        grid = height // self.stride, width // self.stride
        details = None
        if self.details is not None:
            details = self.details(image.to(torch.float32).permute(0, 3, 1, 2))
        masks = decoded(self.decoder, self.encoder.encode(self.patches(image)), grid, details)
        logits = F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)
        return labels_and_confidence(logits)


class AttentionGraph(ViTGraph):
    """The CLS row of an encoder's last attention, and nothing that only other outputs need.

    Args:
        sharpness: float [heads], powers that the attention is raised to, see ``sharpened``; None:
            it stays as it is.

    Raises:
        ValueError: the ViT has no CLS token.
    """

    def __init__(self, network: Encoder, sharpness: Tensor | None = None) -> None:
        if network.vit.cls_token is None:
            raise ValueError("this ViT has no CLS token, whose attention could be shown")
        super().__init__(network, network)
        self.sharpness: Tensor | None
        self.register_buffer("sharpness", sharpness)

    def published(self, rows: Tensor) -> Tensor:
        """What the graph gives for attention [B, heads, N]."""
        return rows if self.sharpness is None else sharpened(rows, self.sharpness)

    def forward(self, image: Tensor) -> Tensor:
        """Attention.

        Args:
            image: uint8 [1, H, W, 3], RGB; H and W multiples of the patch.

        Returns:
            float [1, heads, H/patch, W/patch]: what the patches have of a softmax over all tokens;
            sharpened, what they have of the attention that falls on patches.
        """
        patches = self.patches(image)
        return self.published(self.encoder.attention(patches)).unflatten(-1, patches.shape[1:3])


class UNetGraph(DeployedGraph):
    """A U-Net for frames of one byte a channel: its logits, or U_Enc's of a W-Net.

    The division by 255 is folded into the first convolution, which is exact: what it pads with
    is 0 on either scale.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.stride = network.stride
        self.network.first.weight.data /= 255

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


def sharpened(rows: Tensor, powers: Tensor) -> Tensor:
    """Attention [B, heads, N] raised to a power [heads] and brought to a sum of 1.

    The power p is the inverse of a temperature: softmax(x)^p / sum softmax(x)^p = softmax(p x).
    """
    rows = (rows / rows.amax(-1, keepdim=True)) ** powers[:, None]
    return rows / rows.sum(-1, keepdim=True)
