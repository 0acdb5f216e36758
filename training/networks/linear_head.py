# SPDX-License-Identifier: Apache-2.0
"""One linear layer on patch tokens: what the encoder alone knows of the classes."""

from __future__ import annotations

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Scores every patch by itself, where MaskTransformer lets patches and classes attend.

    Args:
        encoder_dim: D_enc, size of the incoming patch tokens.
        classes: K.
    """

    def __init__(self, encoder_dim: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(encoder_dim, classes)
        nn.init.trunc_normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask logits [B, K, h, w] of tokens [B, h * w, D_enc], rows of patches from the top."""
        return self.score(tokens).transpose(1, 2).unflatten(2, grid)
