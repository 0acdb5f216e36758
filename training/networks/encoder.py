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
        last_heads: heads of the last block's attention; None leaves the architecture's. The
            weights keep their shapes, only their rows are shared out among more or fewer heads.

    Raises:
        FileNotFoundError: ``weights`` names no file.
        ValueError: ``size`` is no multiple of the patch, or the width none of ``last_heads``.
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
        last_heads: int | None = None,
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
        if last_heads is not None:
            share_out(self.vit.blocks[-1].attn, last_heads)
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

    def tokens(self, patches: Tensor) -> Tensor:
        """Tokens [B, prefix + h * w, D] that enter the first block, CLS first, from ``embed``'s."""
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
        return vit.norm_pre(vit.pos_drop(x))

    def encode(self, patches: Tensor) -> Tensor:
        """Tokens [B, h * w, D] after the last LayerNorm, from patch embeddings [B, h, w, D]."""
        vit = self.vit
        return vit.norm(vit.blocks(self.tokens(patches)))[:, vit.num_prefix_tokens :]

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens after the last LayerNorm and the CLS row of the last block's attention.

        Args:
            images: as ``forward`` takes them.

        Returns:
            tokens float [B, prefix + N, D], CLS first, and the row float [B, heads, N]: what the
            patches have of a softmax over all tokens.
        """
        check_multiple(images.shape[-2:], self.patch)
        vit = self.vit
        x = self.tokens(self.embed(images))
        for block in vit.blocks[:-1]:
            x = block(x)
        last = vit.blocks[-1]
        row = cls_row(last.attn, last.norm1(x))
        return vit.norm(last(x)), row[..., vit.num_prefix_tokens :]

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens.

        Args:
            images: uint8 or float [B, 3, H, W], RGB, 0-255; H and W multiples of the patch.

        Returns:
            float [B, H/patch * W/patch, D], rows of patches from the top.
        """
        check_multiple(images.shape[-2:], self.patch)
        return self.encode(self.embed(images))


def share_out(attention: nn.Module, heads: int) -> None:
    """Give a timm ``Attention`` another number of heads. Raises ValueError if it does not fit."""
    dim = attention.attn_dim
    if heads < 1 or dim % heads:
        fits = ", ".join(str(h) for h in range(1, 17) if dim % h == 0)
        raise ValueError(f"{heads} heads do not share {dim} dimensions; these do: {fits}")
    attention.num_heads, attention.head_dim = heads, dim // heads
    attention.scale = attention.head_dim**-0.5


def cls_row(attention: nn.Module, tokens: Tensor) -> Tensor:
    """The first token's row of softmax(Q K^T / sqrt(d)), without the other N rows.

    Args:
        attention: a timm ``Attention``.
        tokens: float [B, N, D], normalised, CLS first.

    Returns:
        float [B, heads, N]; each row sums to 1.
    """
    heads = attention.num_heads
    query, key, _ = attention.qkv.weight.chunk(3)
    biases = (None, None, None) if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
    q = F.linear(tokens[:, :1], query, biases[0]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = F.linear(tokens, key, biases[1]).unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return ((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1).squeeze(2)


def check_multiple(size: tuple[int, int] | torch.Size, patch: int) -> None:
    """Raise ValueError, naming the nearest size that fits, unless ``patch`` divides ``size``."""
    if any(s < patch or s % patch for s in size):
        fits = "x".join(str(max(patch, round(s / patch) * patch)) for s in size)
        given = "x".join(str(s) for s in size)
        raise ValueError(
            f"image size {given} is no multiple of the patch {patch}; nearest fit: {fits}"
        )
