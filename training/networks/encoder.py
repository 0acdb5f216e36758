# SPDX-License-Identifier: Apache-2.0
"""A timm vision transformer as the encoder of a segmentation network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed, RotaryEmbeddingDinoV3, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from training.networks.weights import WeightsError, load_weights, read_weights, stored_size


class Encoder(nn.Module):
    """Patch tokens of a timm ViT, for any image size that is a multiple of the patch.

    The classification head is left out, the last LayerNorm kept, and the prefix tokens (CLS,
    registers) are dropped from the output. The position embedding lives at the grid of ``size``
    and is resampled whenever the *grid* of an image differs. Comparing token counts instead would
    reuse a 24x24 embedding for a 32x18 image, which has as many tokens, and give wrong masks.

    Args:
        name: timm architecture, such as ``deit_tiny_patch16_224``. Its ``pretrained_cfg`` supplies
            the normalisation, so the name has to be the one that the weights belong to.
        size: (height, width) in pixels of the grid that the position embedding is stored for;
            None keeps the weights' own, so that nothing is resampled twice.
        pretrained: True downloads the weights that timm has under ``name``.
        weights: a local file to load in their place, see ``training.networks.weights``; its
            position embedding is resampled to ``size``.
        dropout: rate in the linear layers; attention_dropout: rate on the attention weights.
        drop_path: stochastic depth at the last block, rising linearly from 0 at the first.
        last_heads: heads of the last block's attention; None leaves the architecture's. The
            weights keep their shapes, only their rows are shared out among more or fewer heads.
        patch: side of the patches in pixels; weights of another are resampled to it. None leaves
            the architecture's, and weights of another are refused.

    Raises:
        FileNotFoundError: ``weights`` names no file.
        ValueError: ``name`` is no ViT of timm, ``weights`` are another network's, or their last
            block has other heads and ``last_heads`` is None; ``patch`` is less than 1, ``size`` no
            multiple of it, or the width none of ``last_heads``.
        OSError: the weights of ``name`` cannot be downloaded.
    """

    #: A VisionTransformer or Eva; timm declares no types of their attributes.
    vit: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        size: tuple[int, int] | None,
        pretrained: bool = False,
        weights: str | Path | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        last_heads: int | None = None,
        patch: int | None = None,
    ) -> None:
        super().__init__()
        if patch is not None and patch < 1:
            raise ValueError(f"patch is {patch}: give a side of 1 pixel or more")
        local = read_weights(weights) if weights is not None else None
        stored = stored_size(local, patch) if size is None and local is not None else size
        self.vit = create_vit(
            name,
            **({} if patch is None else {"patch_size": patch}),
            pretrained=pretrained and local is None,
            img_size=None if stored is None else tuple(stored),
            proj_drop_rate=dropout,
            attn_drop_rate=attention_dropout,
            drop_path_rate=drop_path,
        )
        self.patch: int = self.vit.patch_embed.patch_size[0]
        self.dim: int = self.vit.embed_dim
        self.rotates = getattr(self.vit, "rope", None) is not None
        if size is not None:
            check_multiple(size, self.patch)
        if local is not None:
            load_weights(self.vit, name, local, patch)
            heads = self.vit.blocks[-1].attn.num_heads
            if last_heads is None and local.last_heads not in (None, heads):
                raise WeightsError(
                    f"{local.path}: the last block was trained with {local.last_heads} heads, "
                    f"{name} has {heads}: set last_heads to {local.last_heads}"
                )
        if last_heads is not None:
            share_out(self.vit.blocks[-1].attn, last_heads)
        self.register_buffer("mean", torch.tensor(self.vit.pretrained_cfg["mean"]), False)
        self.register_buffer("std", torch.tensor(self.vit.pretrained_cfg["std"]), False)

    def rotary(self, height: int, width: int) -> Tensor:
        """DINOv3's rotary embedding [height * width, 2 * head width] of a grid, sines first.

        What timm computes, which cannot be exported for a grid of any size.
        """
        periods = self.vit.rope.periods
        rows, columns = (
            2 * math.pi * (2 * (torch.arange(n, device=periods.device) + 0.5) / n - 1)[:, None]
            for n in (height, width)
        )
        angles = torch.cat(
            [
                (rows / periods)[:, None].expand(-1, width, -1),
                (columns / periods)[None].expand(height, -1, -1),
            ],
            dim=-1,
        ).flatten(0, 1)
        return torch.cat([angles.sin(), angles.sin(), angles.cos(), angles.cos()], dim=-1)

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
        if vit.pos_embed is None:
            x = torch.cat([*prefix, x], dim=1)
        elif vit.no_embed_class:
            x = torch.cat([*prefix, x + self.position_embedding(height, width)], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + self.position_embedding(height, width)
        return vit.norm_pre(vit.pos_drop(x))

    def before_last(self, patches: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What enters the last block: tokens [B, prefix + h * w, D], and the rotary embedding.

        The latter as the keyword argument that blocks of networks with one take, else nothing.
        """
        x = self.tokens(patches)
        rope = {"rope": self.rotary(*patches.shape[1:3])} if self.rotates else {}
        for block in self.vit.blocks[:-1]:
            x = block(x, **rope)
        return x, rope

    def encode(self, patches: Tensor) -> Tensor:
        """Tokens [B, h * w, D] after the last LayerNorm, from patch embeddings [B, h, w, D]."""
        vit = self.vit
        x, rope = self.before_last(patches)
        return vit.norm(vit.blocks[-1](x, **rope))[:, vit.num_prefix_tokens :]

    def attention(self, patches: Tensor) -> Tensor:
        """``features``'s CLS row [B, heads, h * w] alone, from patch embeddings [B, h, w, D]."""
        last = self.vit.blocks[-1]
        x, rope = self.before_last(patches)
        return cls_row(last.attn, last.norm1(x), **rope)[..., self.vit.num_prefix_tokens :]

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
        x, rope = self.before_last(self.embed(images))
        last = vit.blocks[-1]
        row = cls_row(last.attn, last.norm1(x), **rope)
        return vit.norm(last(x, **rope)), row[..., vit.num_prefix_tokens :]

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens.

        Args:
            images: uint8 or float [B, 3, H, W], RGB, 0-255; H and W multiples of the patch.

        Returns:
            float [B, H/patch * W/patch, D], rows of patches from the top.
        """
        check_multiple(images.shape[-2:], self.patch)
        return self.encode(self.embed(images))


def create_vit(name: str, **options: Any) -> VisionTransformer | Eva:
    """A ViT of timm without its head. Raises ValueError for what is none, or one not handled."""
    try:
        vit = timm.create_model(name, num_classes=0, global_pool="", **options)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"timm makes no ViT called {name}: {error}") from error
    rope = getattr(vit, "rope", None)
    if not (
        isinstance(vit, VisionTransformer | Eva)
        and isinstance(vit.patch_embed, PatchEmbed)  # no hybrid, whose patches are of features
        and isinstance(vit.blocks[-1], Block | EvaBlock)
        and isinstance(vit.blocks[-1].attn, Attention | EvaAttention)
        and (rope is None or isinstance(rope, RotaryEmbeddingDinoV3))
    ):
        raise ValueError(f"{name} is no ViT as DINO, DINOv2, DINOv3 and DeiT are; take one of them")
    return vit


def share_out(attention: Any, heads: int) -> None:
    """Give a timm ``Attention`` another number of heads. Raises ValueError if it does not fit."""
    dim = attention.num_heads * attention.head_dim
    if heads < 1 or dim % heads:
        fits = ", ".join(str(h) for h in range(1, 17) if dim % h == 0)
        raise ValueError(f"{heads} heads do not share {dim} dimensions; these do: {fits}")
    attention.num_heads, attention.head_dim = heads, dim // heads
    attention.scale = attention.head_dim**-0.5


def cls_row(attention: Any, tokens: Tensor, rope: Tensor | None = None) -> Tensor:
    """The first token's row of softmax(Q K^T / sqrt(d)), without the other N rows.

    Args:
        attention: a timm ``Attention`` or ``EvaAttention``.
        tokens: float [B, N, D], normalised, CLS first.
        rope: as ``Encoder.rotary`` gives it, for the tokens that are patches.

    Returns:
        float [B, heads, N]; each row sums to 1.
    """
    heads = attention.num_heads
    query, key, _ = attention.qkv.weight.chunk(3)
    query_bias, key_bias = _biases(attention)
    q = F.linear(tokens[:, :1], query, query_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
    q = attention.q_norm(q) * attention.scale  # [B, heads, 1, d]
    if rope is None and isinstance(attention.k_norm, nn.Identity):
        # q . (W x) = (W^T q) . x needs a D x D product once, not for each token. The bias of the
        # keys adds the same to all logits of a head, and the softmax drops it.
        rows = (q @ key.unflatten(0, (heads, -1))).squeeze(2)
        return (tokens @ rows.transpose(1, 2)).transpose(1, 2).softmax(-1)
    k = F.linear(tokens, key, key_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = attention.k_norm(k)
    if rope is not None:
        # The CLS token and so its query is not rotated, nor are the registers.
        prefix, half = attention.num_prefix_tokens, attention.rotate_half
        rotated = apply_rot_embed_cat(k[:, :, prefix:], rope, half=half)
        k = torch.cat([k[:, :, :prefix], rotated], dim=2)
    return (q @ k.transpose(-2, -1)).squeeze(2).softmax(-1)


def _biases(attention: Any) -> tuple[Tensor | None, Tensor | None]:
    """The biases of queries and keys."""
    if isinstance(attention, EvaAttention):
        return attention.q_bias, None
    if attention.qkv.bias is None:
        return None, None
    query, key, _ = attention.qkv.bias.chunk(3)
    return query, key


def check_multiple(size: tuple[int, int] | torch.Size, patch: int) -> None:
    """Raise ValueError, naming the nearest size that fits, unless ``patch`` divides ``size``."""
    if any(s < patch or s % patch for s in size):
        fits = "x".join(str(max(patch, round(s / patch) * patch)) for s in size)
        given = "x".join(str(s) for s in size)
        raise ValueError(
            f"image size {given} is no multiple of the patch {patch}; nearest fit: {fits}"
        )
