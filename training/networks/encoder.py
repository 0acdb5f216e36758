# SPDX-License-Identifier: Apache-2.0
"""A timm vision transformer as the encoder of a segmentation network."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    """Patch tokens of a timm ViT, for any image size that is a multiple of the patch.

    The classification head is left out, the last LayerNorm kept, and the prefix tokens (CLS,
    registers) are dropped from the output. The position embedding lives at the grid of ``size``
    and is resampled whenever the *grid* of an image differs. Comparing token counts instead would
    reuse a 24x24 embedding for a 32x18 image, which has as many tokens, and give wrong masks.

    Args:
        name: timm architecture, such as ``deit_tiny_patch16_224``. Its ``pretrained_cfg`` supplies
            the normalisation, so the name has to be the one that the weights belong to.
        size: (height, width) in pixels of the grid that the position embedding is stored for.
        pretrained: True downloads the weights that timm has under ``name``.
        weights: a local file (``.pth`` or ``.safetensors``) to load in their place; its position
            embedding is resampled to ``size``. Loaded without unpickling code.
        dropout: rate in the linear layers; attention_dropout: rate on the attention weights.
        drop_path: stochastic depth at the last block, rising linearly from 0 at the first.

    Raises:
        FileNotFoundError: ``weights`` names no file.
        ValueError: ``size`` is no multiple of the patch.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        pretrained: bool = False,
        weights: str | Path | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"backbone weights {weights}: no such file")
        self.vit = timm.create_model(
            name,
            pretrained=pretrained or weights is not None,
            pretrained_cfg_overlay={"file": str(weights)} if weights is not None else None,
            img_size=tuple(size),
            num_classes=0,
            global_pool="",
            proj_drop_rate=dropout,
            attn_drop_rate=attention_dropout,
            drop_path_rate=drop_path,
        )
        self.patch: int = self.vit.patch_embed.patch_size[0]
        self.dim: int = self.vit.embed_dim
        check_multiple(size, self.patch)
        self.register_buffer("mean", torch.tensor(self.vit.pretrained_cfg["mean"]), False)
        self.register_buffer("std", torch.tensor(self.vit.pretrained_cfg["std"]), False)

    def position_embedding(self, height: int, width: int) -> Tensor:
        """The position embedding [1, prefix + height * width, D] for a grid of patches."""
        stored = self.vit.pos_embed
        prefix = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        patches = stored[:, prefix:].unflatten(1, self.vit.patch_embed.grid_size)
        patches = patches.permute(0, 3, 1, 2)
        # At the stored grid this changes nothing. Plain bilinear exports as one Resize, which
        # folds into a constant when the size is pinned.
        patches = F.interpolate(patches, size=(height, width), mode="bilinear", align_corners=False)
        return torch.cat([stored[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised patch embeddings [B, h, w, D] of images, RGB in 0-255, [B, 3, H, W]."""
        x = images.to(self.mean.dtype) / 255
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return self.vit.patch_embed.proj(x).permute(0, 2, 3, 1)

    def encode(self, patches: Tensor) -> Tensor:
        """Tokens [B, h * w, D] after the last LayerNorm, from patch embeddings [B, h, w, D]."""
        vit = self.vit
        batch, height, width, _ = patches.shape
        tokens = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        prefix = [t.expand(batch, -1, -1) for t in tokens]
        x = vit.patch_embed.norm(patches.flatten(1, 2))
        position = self.position_embedding(height, width)
        if vit.no_embed_class:
            x = torch.cat([*prefix, x + position], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + position
        x = vit.norm(vit.blocks(vit.norm_pre(vit.pos_drop(x))))
        return x[:, vit.num_prefix_tokens :]

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens.

        Args:
            images: uint8 or float [B, 3, H, W], RGB, 0-255; H and W multiples of the patch.

        Returns:
            float [B, H/patch * W/patch, D], rows of patches from the top.
        """
        check_multiple(images.shape[-2:], self.patch)
        return self.encode(self.embed(images))


def check_multiple(size: tuple[int, int] | torch.Size, patch: int) -> None:
    """Raise ValueError, naming the nearest size that fits, unless ``patch`` divides ``size``."""
    if any(s < patch or s % patch for s in size):
        fits = "x".join(str(max(patch, round(s / patch) * patch)) for s in size)
        given = "x".join(str(s) for s in size)
        raise ValueError(
            f"image size {given} is no multiple of the patch {patch}; nearest fit: {fits}"
        )
