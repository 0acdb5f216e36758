# SPDX-License-Identifier: Apache-2.0
"""A small ViT that learns features and attention of a large self-supervised one, without labels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ctxseg_ros.model.model_file import ClassInfo
from training.data.files import DataError
from training.data.unlabelled import Frames, UnlabelledBatch
from training.losses.dino import entropy
from training.networks.deployed import AttentionGraph, sharpened
from training.networks.encoder import Encoder, create_vit
from training.systems.base import UnlabelledSystem, check_data_size
from training.systems.pictures import attention_sheet, log_picture
from training.systems.schedules import decay_groups, warmed_poly

#: Shares of attention are at least this in the loss, so that none has an infinite logarithm
#: or derivative.
_LEAST = 1e-8
#: Powers that attention may be raised to, and how often the interval is halved in the search.
_POWERS = (0.25, 4.0)
_HALVINGS = 20


class DistilledSystem(UnlabelledSystem):
    """Student and frozen teacher see the same part of a frame, cut into the same grid of patches.

    Three losses, averaged over patches or maps, make the student's maps and features mean what the
    teacher's do:

    1. Attention: the Jeffreys divergence of the last block's CLS rows over the patches, head by
       head and of the heads' mean (the student's last block is given as many heads as the
       teacher's). KL(teacher || student) alone hardly minds attention where the teacher has none,
       and maps grow diffuse; KL(student || teacher) minds just that.
    2. Entropy: the absolute difference of the entropies of the same maps, in nats. Where the
       student is not sure it spreads its attention, and a mask of a given mass becomes too large.
    3. Features: 1 - cosine between a linear map of the student's patch tokens and the teacher's,
       each channel of which is brought to mean 0 and variance 1 (of the batch; in validation of
       running statistics): a few channels of DINOv2 are so large that nothing else would count.

    The student is less sure of frames that it has never seen, and spreads its attention there. So
    each head's exported attention is raised to a power, ``sharpness``, at which its mean entropy
    over the validation frames is the teacher's (temperature scaling, Guo et al. 2017): these
    should be frames that it does not learn from.

    Args:
        backbone, weights, pretrained: of the student, see Encoder.
        teacher: timm name of the teacher. teacher_weights: a local file, or None to download.
        size: (height, width) that the exported model is meant for, and whose grid the student's
            position embedding is stored for.
        lr: of AdamW, after ``warmup`` steps; (1 - t)^0.9 over the run. weight_decay: of matrices.
        attention_loss, entropy_loss, feature_loss: weights of the three.

    Raises:
        ValueError: the student's width cannot be shared among the teacher's heads, or one of them
            has no CLS token; see also Encoder.
    """

    task = "attention"

    def __init__(
        self,
        backbone: str = "deit_tiny_patch16_224",
        weights: str | None = None,
        pretrained: bool = False,
        teacher: str = "vit_small_patch14_dinov2.lvd142m",
        teacher_weights: str | None = None,
        size: tuple[int, int] = (384, 384),
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        warmup: int = 100,
        attention_loss: float = 1.0,
        entropy_loss: float = 2.0,
        feature_loss: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.device("meta"):  # its shape is enough: a finished student needs no teacher
            shape: Any = create_vit(teacher)
        heads = shape.blocks[-1].attn.num_heads
        self.network = Encoder(backbone, size, pretrained, weights, last_heads=heads)
        for name, vit in ((backbone, self.network.vit), (teacher, shape)):
            if vit.cls_token is None:
                raise ValueError(f"{name} has no CLS token, whose attention is learnt")
        self.head = nn.Linear(self.network.dim, shape.embed_dim)
        self.standardise = nn.BatchNorm1d(shape.embed_dim, affine=False)
        self.sharpness: Tensor
        self.register_buffer("sharpness", torch.ones(heads))
        #: Attention of student and teacher on the validation frames.
        self._seen: list[tuple[Tensor, Tensor]] = []
        # No submodule: its weights are not the run's, and belong into no checkpoint.
        self._teacher: tuple[Encoder, ...] = ()

    def setup(self, stage: str) -> None:
        """Load the teacher. Raises as Encoder does."""
        h = self.hparams
        if not self._teacher:
            teacher = Encoder(h.teacher, None, h.teacher_weights is None, h.teacher_weights)
            self._teacher = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> Encoder:
        """The frozen teacher, once ``setup`` has loaded it."""
        (teacher,) = self._teacher
        return teacher

    def teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's patch tokens [B, N, D] and attention [B, heads, N] on the student's grid.

        Args:
            images: uint8 [B, 3, H, W], as the student takes them.
        """
        teacher = self.teacher
        size = [s // self.network.patch * teacher.patch for s in images.shape[-2:]]
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        with torch.no_grad():
            tokens, attention = teacher.to(images.device).features(x)
        return tokens[:, teacher.vit.num_prefix_tokens :], attention

    def losses(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The losses by name, without their weights, and the attention of student and teacher."""
        target, wanted = self.teach(images)
        tokens, attention = self.network.features(images)
        features = self.head(tokens[:, self.network.vit.num_prefix_tokens :])
        target = self.standardise(target.flatten(0, 1)).unflatten(0, target.shape[:2])
        unlike = 1 - F.cosine_similarity(features, target, dim=-1).mean()
        # Shares of what falls on patches: neither the CLS token's own share nor a register's.
        wanted = wanted / wanted.sum(-1, keepdim=True)
        found = attention / attention.sum(-1, keepdim=True)
        p, q = with_mean(wanted), with_mean(found)
        losses = {
            "attention": jeffreys(p, q).mean(),
            "entropy": (entropy(p) - entropy(q.clamp(min=_LEAST))).abs().mean(),
            "features": unlike,
        }
        return losses, found, wanted

    def graph(self) -> AttentionGraph:
        """The student as it is deployed, see ``training.networks.deployed``."""
        return AttentionGraph(self.network, self.sharpness)

    def class_infos(self) -> list[ClassInfo]:
        """None: attention has no classes."""
        return []

    def embed(self, images: Tensor) -> Tensor:
        """The student's CLS tokens [B, D] of images uint8 [B, 3, H, W]."""
        return self.network.features(images)[0][:, 0]

    def origin(self) -> tuple[str, str]:
        """The teacher and the training frames, and their terms of use."""
        return f"{self.hparams.teacher}, on {self.data}", "those of the frames and of the teacher"

    def on_fit_start(self) -> None:
        data = self.frames
        if not isinstance(data, Frames):
            raise DataError(
                f"a teacher teaches on frames without labels, not on {type(data).__name__}: set "
                "--data training.data.unlabelled.Frames"
            )
        check_data_size(data.size, self.network.patch)
        self.learn_from(data.summary)

    def training_step(self, batch: UnlabelledBatch, index: int) -> Tensor:
        images, names = batch
        losses, _, _ = self.losses(images)
        for name, loss in losses.items():
            self.log(f"train/{name}", loss, prog_bar=True, sync_dist=True)
        h = self.hparams
        total = h.attention_loss * losses["attention"] + h.entropy_loss * losses["entropy"]
        total = total + h.feature_loss * losses["features"]
        return self.finite(total, index, names)

    def validation_step(self, batch: UnlabelledBatch, index: int) -> None:
        images, _ = batch
        losses, found, wanted = self.losses(images)
        for name, loss in losses.items():
            self.log(f"val/{name}", loss, sync_dist=True)
        self._seen.append((found, wanted))
        if index == 0 and self.trainer.is_global_zero:
            grid = [s // self.network.patch for s in images.shape[-2:]]
            maps = [a.mean(1).unflatten(-1, grid) for a in (wanted, found)]
            log_picture(self, "val", attention_sheet(images, maps))

    def on_validation_epoch_end(self) -> None:
        found, wanted = (torch.cat(maps) for maps in zip(*self._seen, strict=True))
        self._seen.clear()
        self.sharpness.copy_(matching_powers(found, wanted))
        self.log("val/sharpness", self.sharpness.mean(), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h = self.hparams
        groups = decay_groups(nn.ModuleList([self.network, self.head]), h.lr, h.weight_decay)
        return warmed_poly(torch.optim.AdamW(groups, lr=h.lr), self.trainer, h.warmup)


def with_mean(rows: Tensor) -> Tensor:
    """Attention [B, heads, N] and its mean over the heads as one more, [B, heads + 1, N]."""
    return torch.cat([rows, rows.mean(1, keepdim=True)], dim=1)


def jeffreys(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) = sum (p - q) log(p / q) of distributions [..., N], in nats [...]."""
    p, q = p.clamp(min=_LEAST), q.clamp(min=_LEAST)
    return ((p - q) * (p.log() - q.log())).sum(-1)


def matching_powers(found: Tensor, wanted: Tensor) -> Tensor:
    """The powers [heads] that give ``found`` the mean entropy of ``wanted``, both [B, heads, N].

    By halving in the logarithm, between the bounds of _POWERS: entropy falls as the power rises.
    """
    target = entropy(wanted).mean(0)
    low, high = (torch.full_like(target, math.log(bound)) for bound in _POWERS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        blurred = entropy(sharpened(found, middle.exp())).mean(0) > target
        low, high = torch.where(blurred, middle, low), torch.where(blurred, high, middle)
    return ((low + high) / 2).exp()
