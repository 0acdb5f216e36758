# SPDX-License-Identifier: Apache-2.0
"""U-Net of nine modules: the supervised baseline, and either half of W-Net."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What a map is continued with beyond its edges.
Padding = Literal["zeros", "reflect"]

#: Channels of the five levels at width 1.
WIDTHS = (64, 128, 256, 512, 1024)


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless a model file can have this (height, width)."""
    if any(side < UNet.stride or side % UNet.stride for side in size):
        height, width = (max(1, round(side / UNet.stride)) * UNet.stride for side in size)
        raise ValueError(
            f"size {list(size)}: the sides must be multiples of {UNet.stride}; "
            f"the nearest are [{height}, {width}]"
        )


def _convolution(inputs: int, outputs: int, separable: bool, padding: Padding) -> nn.Sequential:
    """A 3x3 convolution, ReLU and BatchNorm; separable: one filter a channel, then 1x1."""
    convolution: nn.Module = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)
    if separable:
        convolution = nn.Sequential(
            nn.Conv2d(
                inputs, inputs, 3, padding=1, padding_mode=padding, groups=inputs, bias=False
            ),
            nn.Conv2d(inputs, outputs, 1),
        )
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.BatchNorm2d(outputs))


class Module(nn.Sequential):
    """Two 3x3 convolutions, each with ReLU and BatchNorm, then dropout."""

    def __init__(
        self, inputs: int, outputs: int, separable: bool, dropout: float, padding: Padding = "zeros"
    ) -> None:
        super().__init__(
            _convolution(inputs, outputs, separable, padding),
            _convolution(outputs, outputs, separable, padding),
            nn.Dropout(dropout),
        )


class UNet(nn.Module):
    """Five modules down, four up, with skips (Ronneberger et al. 2015; W-Net's variant of it).

    The first and the last module are plain convolutions, the seven between them
    depthwise-separable (Xia & Kulis 2017). A module between poolings sees 2x2 max-pooled maps; on
    the way up a transposed convolution doubles the map and halves its channels, and the map of
    that level from the way down is put beside it.

    Args:
        inputs: channels in. outputs: channels out.
        width: multiplies WIDTHS; each is rounded to an integer of at least 1.
        dropout: probability after each module.
        padding: ``zeros``, which a network can tell from the inside of an image, or ``reflect``.
    """

    #: Poolings halve a side four times.
    stride = 16

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: float = 1.0,
        dropout: float = 0.0,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        widths = [max(1, round(width * channels)) for channels in WIDTHS]
        self.down = nn.ModuleList(
            Module(before, after, separable=i > 0, dropout=dropout, padding=padding)
            for i, (before, after) in enumerate(pairwise([inputs, *widths]))
        )
        pairs = list(pairwise(widths[::-1]))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(
            Module(2 * b, b, separable=i < len(pairs) - 1, dropout=dropout, padding=padding)
            for i, (_, b) in enumerate(pairs)
        )
        self.head = nn.Conv2d(widths[0], outputs, 1)

    @property
    def first(self) -> nn.Conv2d:
        """The convolution that sees the input."""
        return next(part for part in self.modules() if isinstance(part, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        """Map float [B, inputs, H, W] to float [B, outputs, H, W], of any H and W.

        Sides that are no multiple of 16 are filled up by repeating the last row and column, and
        cut again: zeros would look like an edge.
        """
        height, width = x.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        return self.fitting(x)[..., :height, :width]

    def fitting(self, x: Tensor) -> Tensor:
        """``forward`` of maps whose sides are multiples of 16."""
        skips = []
        for i, module in enumerate(self.down):
            x = module(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for rise, module in zip(self.rise, self.up, strict=True):
            x = module(torch.cat((skips.pop(), rise(x)), 1))
        return self.head(x)
