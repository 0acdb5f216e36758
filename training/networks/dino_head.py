# SPDX-License-Identifier: Apache-2.0
"""The projection head of self-distillation (DINO, Caron et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DinoHead(nn.Module):
    """Three linear layers with GELU between them, L2 norm, and K cosines.

    The last layer's weights are normalised with their norm fixed at 1, so that an output is the
    cosine between the bottleneck and the output's own direction.

    Args:
        dim: of what comes in. outputs: K. hidden, bottleneck: widths.
    """

    def __init__(
        self, dim: int, outputs: int = 65_536, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines float32 [B, K] of features [B, dim]."""
        x = self.mlp(x).float()
        # In float32 also under AMP: the teacher divides these by 0.04, and half a percent would
        # become an eighth.
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.normalize(x, dim=-1), F.normalize(self.last.weight.float(), dim=-1))
