# SPDX-License-Identifier: Apache-2.0
"""Segmenter, trained with labels."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from training.graphs import SegmenterGraph
from training.networks.encoder import Encoder
from training.networks.mask_transformer import MaskTransformer
from training.networks.segmenter import Segmenter
from training.systems.labelled import LabelledSystem, decay_groups


class SegmenterSystem(LabelledSystem):
    """The network with its loss and its optimiser.

    Args:
        backbone: timm name of the ViT. weights, pretrained: see Encoder.
        size: (height, width) that the position embedding is stored for.
        decoder_dim, decoder_depth, subpatch, mask_dim: see MaskTransformer.
        dropout: linear layers of encoder and decoder. attention_dropout: their attention weights.
        drop_path: stochastic depth of the encoder.
        lr: of the decoder. encoder_lr_scale: the encoder's is this times ``lr``.
        classes, lovasz, optimizer, weight_decay, schedule, warmup, seed: see LabelledSystem.
    """

    def __init__(
        self,
        backbone: str = "deit_tiny_patch16_224",
        weights: str | None = None,
        pretrained: bool = False,
        size: tuple[int, int] = (352, 480),
        decoder_dim: int = 192,
        decoder_depth: int = 2,
        subpatch: int = 1,
        mask_dim: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        classes: str = "camvid",
        lovasz: float = 0.0,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 1e-3,
        encoder_lr_scale: float = 1.0,
        weight_decay: float = 0.0,
        schedule: Literal["poly", "plateau"] = "poly",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(classes)
        self.save_hyperparameters()
        encoder = Encoder(
            backbone, size, pretrained, weights, dropout, attention_dropout, drop_path
        )
        decoder = MaskTransformer(
            encoder.dim,
            len(self.class_names),
            decoder_dim,
            decoder_depth,
            dropout,
            attention_dropout,
            subpatch,
            mask_dim,
        )
        self.network = Segmenter(encoder, decoder)

    def graph(self) -> nn.Module:
        return SegmenterGraph(self.network)

    def parameter_groups(self) -> list[dict[str, Any]]:
        h = self.hparams
        return [
            *decay_groups(self.network.encoder, h.lr * h.encoder_lr_scale, h.weight_decay),
            *decay_groups(self.network.decoder, h.lr, h.weight_decay),
        ]
