# SPDX-License-Identifier: Apache-2.0
"""Segmenter, trained with labels."""

from __future__ import annotations

from typing import Any, Literal

from training.data.mixture import Mixture
from training.data.module import LabelledFrames
from training.networks.deployed import SegmenterGraph
from training.networks.details import Details
from training.networks.encoder import Encoder
from training.networks.linear_head import LinearHead
from training.networks.mask_transformer import MaskTransformer
from training.networks.segmenter import Segmenter
from training.systems.base import check_data_size
from training.systems.labelled import Classes, LabelledSystem
from training.systems.schedules import decay_groups


class SegmenterSystem(LabelledSystem):
    """The network with its loss and its optimiser.

    Args:
        backbone: timm name of the ViT. weights, pretrained, patch, last_heads: see Encoder.
            ``weights`` of a checkpoint of DistilledSystem need ``last_heads``.
        size: (height, width) that the position embedding is stored for.
        head: ``mask`` decodes with the mask transformer, ``linear`` with one linear layer, the
            measure of what an encoder knows.
        decoder_dim, decoder_depth, subpatch, mask_dim: see MaskTransformer.
        details: channels of a branch of convolutions for what is thinner than a patch, see
            Details; 0 for none, as published. Needs head ``mask``.
        dropout: linear layers of encoder and decoder. attention_dropout: their attention weights.
        drop_path: stochastic depth of the encoder.
        lr: of the decoder. encoder_lr_scale: the encoder's is this times ``lr``.
        frozen: the encoder keeps its weights, whatever ``encoder_lr_scale``.
        classes, lovasz, ema, consistency, sure, optimizer, weight_decay, schedule, warmup,
            seed: see LabelledSystem.
    """

    network: Segmenter

    def __init__(
        self,
        backbone: str = "deit_tiny_patch16_224",
        weights: str | None = None,
        pretrained: bool = False,
        patch: int | None = None,
        last_heads: int | None = None,
        size: tuple[int, int] = (352, 480),
        head: Literal["mask", "linear"] = "mask",
        decoder_dim: int = 192,
        decoder_depth: int = 2,
        subpatch: int = 1,
        mask_dim: int | None = None,
        details: int = 0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        classes: Classes = "camvid",
        lovasz: float = 0.0,
        ema: float = 0.0,
        consistency: float = 0.0,
        sure: float = 0.95,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 1e-3,
        encoder_lr_scale: float = 1.0,
        frozen: bool = False,
        weight_decay: float = 0.0,
        schedule: Literal["poly", "plateau"] = "poly",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(classes)
        if details and head != "mask":
            raise ValueError("details are added to the cells of masks: set head to mask")
        self.save_hyperparameters()
        encoder = Encoder(
            backbone,
            size,
            pretrained,
            weights,
            dropout,
            attention_dropout,
            drop_path,
            last_heads,
            patch,
        )
        encoder.requires_grad_(not frozen)
        count = len(self.class_names)
        if head == "linear":
            self.network = Segmenter(encoder, LinearHead(encoder.dim, count))
        else:
            decoder = MaskTransformer(
                encoder.dim,
                count,
                decoder_dim,
                decoder_depth,
                dropout,
                attention_dropout,
                subpatch,
                mask_dim,
            )
            branch = Details(decoder.mask_dim, details) if details else None
            self.network = Segmenter(encoder, decoder, branch)
        self.keep_average()

    def graph(self) -> SegmenterGraph:
        deployed = self.deployed
        assert isinstance(deployed, Segmenter)
        return SegmenterGraph(deployed)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        frames = self.frames
        assert isinstance(frames, LabelledFrames | Mixture)
        check_data_size(frames.size, self.network.encoder.patch)

    def on_train_epoch_start(self) -> None:
        if self.hparams.frozen:  # no dropout either: Lightning has just put all into training mode
            self.network.encoder.eval()

    def parameter_groups(self) -> list[dict[str, Any]]:
        h = self.hparams
        decoder = decay_groups(self.network.decoder, h.lr, h.weight_decay)
        if self.network.details is not None:
            decoder += decay_groups(self.network.details, h.lr, h.weight_decay)
        if h.frozen:
            return decoder
        encoder = self.network.encoder
        return [*decay_groups(encoder, h.lr * h.encoder_lr_scale, h.weight_decay), *decoder]
