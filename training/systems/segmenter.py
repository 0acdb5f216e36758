# SPDX-License-Identifier: Apache-2.0
"""Segmenter, trained with labels."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from training.data.camvid import CLASSES
from training.data.module import Batch
from training.data.pairs import IGNORE
from training.losses.lovasz import lovasz_softmax
from training.networks.encoder import Encoder
from training.networks.mask_transformer import MaskTransformer
from training.networks.segmenter import Segmenter
from training.scores import Scores


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite. The message names the step and the batch."""


class SegmenterSystem(L.LightningModule):
    """The network, its loss and its optimiser.

    Args:
        backbone: timm name of the ViT. weights, pretrained: see Encoder.
        size: (height, width) that the position embedding is stored for.
        decoder_dim, decoder_depth, subpatch, mask_dim: see MaskTransformer.
        dropout: linear layers of encoder and decoder. attention_dropout: their attention weights.
        drop_path: stochastic depth of the encoder.
        lovasz: weight of the Lovász-softmax beside the cross entropy.
        optimizer: ``sgd`` (momentum 0.9) or ``adamw``.
        lr: of the decoder. encoder_lr_scale: the encoder's is this times ``lr``.
        schedule: ``poly`` decays by (1 - t)^0.9 over the run after ``warmup`` steps; ``plateau``
            divides by 10 when val mIoU has not risen for 10 validations.
        seed: of dropout, set anew at each step so that a resumed run equals an unbroken one.
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
        lovasz: float = 0.0,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 1e-3,
        encoder_lr_scale: float = 1.0,
        weight_decay: float = 0.0,
        schedule: Literal["poly", "plateau"] = "poly",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        encoder = Encoder(
            backbone, size, pretrained, weights, dropout, attention_dropout, drop_path
        )
        decoder = MaskTransformer(
            encoder.dim,
            len(CLASSES),
            decoder_dim,
            decoder_depth,
            dropout,
            attention_dropout,
            subpatch,
            mask_dim,
        )
        self.network = Segmenter(encoder, decoder)
        self.confusion = MulticlassConfusionMatrix(len(CLASSES), ignore_index=IGNORE)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        step = self.global_step * self.trainer.world_size + self.global_rank
        torch.manual_seed(self.hparams.seed + 1_000_003 * step)

    def loss(self, logits: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        """Cross entropy over the labelled pixels of the global batch, plus the Lovász term.

        Args:
            logits: float [B, K, H, W]; labels: int64 [B, H, W], IGNORE where there is none.
            pixels: number of labelled pixels in a process's batch, averaged over the processes.
                DDP averages gradients over processes; dividing by this, not by a process's own
                number, makes that average the mean over the pixels of all of them.
        """
        entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        loss = entropy / pixels.clamp(min=1)
        if self.hparams.lovasz:
            # Every second pixel of every second row, from each of the four corners in turn:
            # sorting all of them would take longer than the network.
            top, left = divmod(self.global_step % 4, 2)
            sample = logits[..., top::2, left::2].float().softmax(1)
            loss = loss + self.hparams.lovasz * lovasz_softmax(
                sample, labels[..., top::2, left::2], IGNORE
            )
        return loss

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, labels, stems = batch
        pixels = self.all_gather((labels != IGNORE).sum()).float().mean()
        loss = self.loss(self.network(images), labels, pixels)
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"loss is {loss.item()} at step {self.global_step} of epoch {self.current_epoch}, "
                f"batch {index}: {', '.join(stems)}. Lower the learning rate, or use bf16 or fp32 "
                "in place of fp16; look at these frames if it happens at them again."
            )
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        images, labels, _ = batch
        # As a user gets them: labels at the network's size, then nearest to the frame's own.
        predicted = self.network(images).argmax(1, keepdim=True).float()
        predicted = F.interpolate(predicted, size=labels.shape[-2:], mode="nearest-exact")
        self.confusion.update(predicted[:, 0].long(), labels)

    def on_validation_epoch_end(self) -> None:
        scores = Scores(self.confusion.compute().cpu().numpy())
        self.confusion.reset()
        # The confusion matrix was summed over processes: the figures are the same on each.
        self.log("val/miou", scores.miou, prog_bar=True, sync_dist=False)
        self.log("val/pixel_accuracy", scores.pixel_accuracy)
        for (name, _), iou in zip(CLASSES, scores.iou, strict=True):
            self.log(f"val/iou_{name}", 0.0 if math.isnan(iou) else iou)

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups = [
            *_decay_groups(self.network.encoder, h.lr * h.encoder_lr_scale, h.weight_decay),
            *_decay_groups(self.network.decoder, h.lr, h.weight_decay),
        ]
        optimizer: torch.optim.Optimizer
        if h.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=h.lr, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(groups, lr=h.lr)
        if h.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=10)
            every = self.trainer.check_val_every_n_epoch or 1
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "val/miou", "frequency": every},
            }
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            if step < h.warmup:
                return (step + 1) / h.warmup
            done = (step - h.warmup) / max(1, steps - h.warmup)
            return max(0.0, 1 - done) ** 0.9

        poly = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": poly, "interval": "step"}}


def _decay_groups(module: torch.nn.Module, lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: weight matrices decay; biases, norms and tokens do not."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        tokens = name.endswith(("class_tokens", "cls_token", "reg_token", "pos_embed"))
        (others if parameter.ndim < 2 or tokens else matrices).append(parameter)
    return [
        {"params": matrices, "lr": lr, "weight_decay": decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
