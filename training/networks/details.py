# SPDX-License-Identifier: Apache-2.0
"""A few convolutions beside a ViT, for what is thinner than its patches."""

from __future__ import annotations

from torch import Tensor, nn

#: Pixels between two of its outputs, along a side.
STRIDE = 4


class Details(nn.Module):
    """Embeddings of an image at STRIDE pixels that see about 20 pixels around, and no further.

    A ViT turns 16 x 16 pixels into one token: where in it a pole of 2 pixels stands is hard to
    learn from few images. Edges are easy for convolutions; what they belong to the ViT knows.
    The last layer begins with zeros, so that a network with it begins as one without.

    Args:
        outputs: size of the embeddings. width: channels inside.
    """

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.GELU(),
            *_separable(width, width, 2),
            *_separable(width, width, 1),
            *_separable(width, width, 1),
        )
        last = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.rest.append(last)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings float [B, outputs, H/4, W/4] of images [B, 3, H, W], RGB on 0-1.

        H and W that 4 does not divide are rounded up.
        """
        return self.rest(self.first(images))


def _separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 3x3 filter a channel, then 1x1, BatchNorm, GELU."""
    return [
        nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    ]
