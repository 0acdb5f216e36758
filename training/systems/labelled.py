# SPDX-License-Identifier: Apache-2.0
"""What the systems that train with labels share: loss, scores, optimiser, schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics.classification import MulticlassConfusionMatrix

from ctxseg_ros.model.model_file import ClassInfo
from training.data.files import DataError
from training.data.label_files import IGNORE
from training.data.label_sets import LABEL_SETS
from training.data.mixture import CERTAIN, LabelledBatch, Mixture, UnlabelledBatch
from training.data.module import Batch, LabelledFrames
from training.data.own import OWN
from training.evaluation.scores import Scores
from training.losses.allowed_classes import allowed_classes_loss
from training.losses.lovasz import lovasz_softmax
from training.systems.base import System
from training.systems.schedules import decay_groups, warmed_poly

#: A label set's name, or name and colour (RGB) of each class.
Classes = str | list[tuple[str, tuple[int, int, int]]]


class LabelledSystem(System):
    """A network [B, 3, H, W] uint8 -> logits [B, K, H, W], its loss and its optimiser.

    A subclass makes the network, calls ``save_hyperparameters`` and names these hyperparameters:

    - ``classes``: the label set, a key of ``training.data.label_sets.LABEL_SETS``; or name and
      colour of each class. In a configuration ``own`` stands for the classes of OwnLabels.
    - ``lovasz``: weight of the Lovász-softmax beside the cross entropy; of labels that are certain
      and allow one class.
    - ``ema``: decay of the average of the weights, 0 for none. The average is what is validated
      and exported, and what labels the unlabelled frames.
    - ``consistency``: weight of the loss on unlabelled frames. ``sure``: the least probability of
      the average's labels for them.
    - ``optimizer``: ``sgd`` (momentum 0.9) or ``adamw``; ``lr``, ``weight_decay``.
    - ``schedule``: ``poly`` decays by (1 - t)^0.9 over the run after ``warmup`` steps; ``plateau``
      divides by 10 when val mIoU has not risen for 10 validations.
    - ``size``, ``seed``: see System.
    """

    task = "semantic"
    network: nn.Module
    allowed: Tensor

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        #: What taught the network, and the terms of that data.
        self.data = ("", "")
        if isinstance(classes, str):
            if classes == OWN:
                raise ValueError(f"classes {OWN!r} need --data training.data.module.OwnLabels")
            if classes not in LABEL_SETS:
                known = ", ".join([*LABEL_SETS, OWN])
                raise ValueError(f"no label set {classes!r}; there are {known}")
            labels = LABEL_SETS[classes]
            self.data = (labels.origin, labels.terms)
            classes = list(labels.classes)
        self.classes = [ClassInfo(i, name, (*rgb,)) for i, (name, rgb) in enumerate(classes)]
        self.class_names = [item.name for item in self.classes]
        self.register_buffer("allowed", torch.eye(len(self.classes), dtype=torch.bool), False)
        #: Of the weights, see ``ema``.
        self.average: AveragedModel | None = None
        #: One for each validation set, and the names of all but the first.
        self.confusions = nn.ModuleList([self._confusion()])
        self.val_names: list[str] = []

    def _confusion(self) -> MulticlassConfusionMatrix:
        return MulticlassConfusionMatrix(len(self.class_names), ignore_index=IGNORE)

    def _confusions(self) -> list[MulticlassConfusionMatrix]:
        return [c for c in self.confusions if isinstance(c, MulticlassConfusionMatrix)]

    def keep_average(self) -> None:
        """Begin the average of the weights, where ``ema`` asks for it; once there is a network."""
        h = self.hparams
        if h.ema:
            self.average = AveragedModel(
                self.network, multi_avg_fn=ramped_average(h.ema), use_buffers=True
            )
            self.average.requires_grad_(False).eval()

    @property
    def deployed(self) -> nn.Module:
        """The network that is validated and exported."""
        return self.network if self.average is None else self.average.module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser."""
        return decay_groups(self.network, self.hparams.lr, self.hparams.weight_decay)

    def on_fit_start(self) -> None:
        frames = self.frames
        if not isinstance(frames, LabelledFrames | Mixture):
            raise DataError(
                f"{type(self).__name__} needs labels, and {type(frames).__name__} has none: set "
                "--data training.data.module.CamVid, or another labelled set"
            )
        names, data = [name for name, _ in frames.labels.classes], frames.labels.name
        if names != self.class_names:
            mine = self.hparams.classes
            raise DataError(
                f"the network has the classes {mine if isinstance(mine, str) else 'of its own'} "
                f"({', '.join(self.class_names)}), the labels are {data} ({', '.join(names)}): set "
                f"--model.init_args.classes {data}"
            )
        self.data = (frames.origin(), frames.terms())
        footage = isinstance(frames, Mixture) and bool(frames.footage)
        if footage != bool(self.hparams.consistency):
            raise DataError(
                "unlabelled frames and their loss go together: set --data.init_args.unlabelled of "
                "training.data.mixture.Mixture and --model.init_args.consistency, or neither"
            )
        if footage and self.average is None:
            raise DataError(
                "the average of the weights labels the unlabelled frames: set --model.init_args.ema"
            )

    def setup(self, stage: str) -> None:
        """Learn from the data what its labels allow, and how many validation sets it has."""
        frames = self.frames
        if isinstance(frames, Mixture):
            self.allowed = frames.allowed
            self.val_names = [source.name for source in frames.val[1:]]
            extra = len(self.val_names) + 1 - len(self.confusions)
            self.confusions.extend(self._confusion() for _ in range(extra))

    def logits(self, images: Tensor) -> Tensor:
        """Float [B, K, H, W] of images uint8 [B, 3, H, W]; the greatest is the label."""
        return self.deployed(images)

    def class_infos(self) -> list[ClassInfo]:
        """The classes as the model file has them."""
        return self.classes

    def origin(self) -> tuple[str, str]:
        """What taught the network, and the terms of that data."""
        return self.data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["data"] = list(self.data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        origin, terms = checkpoint["data"]
        self.data = (origin, terms)

    def loss(self, logits: Tensor, batch: LabelledBatch, pixels: Tensor) -> Tensor:
        """``allowed_classes_loss`` per labelled pixel of the global batch, plus the Lovász term.

        Args:
            logits: float [B, K, H, W].
            pixels: number of labelled pixels in a process's batch, averaged over the processes.
                DDP averages gradients over processes; dividing by this, not by a process's own
                number, makes that average the mean over the pixels of all of them.
        """
        labels = batch.labels
        entropy = allowed_classes_loss(logits, labels, batch.confidence, self.allowed, IGNORE)
        loss = entropy / pixels.clamp(min=1)
        if self.hparams.lovasz:
            plain = (labels < len(self.classes)) & (batch.confidence == CERTAIN)
            labels = labels.where(plain, IGNORE)
            # Every second pixel of every second row, from each of the four corners in turn:
            # sorting all of them would take longer than the network.
            top, left = divmod(self.global_step % 4, 2)
            sample = logits[..., top::2, left::2].float().softmax(1)
            loss = loss + self.hparams.lovasz * lovasz_softmax(
                sample, labels[..., top::2, left::2], IGNORE
            )
        return loss

    def training_step(
        self, batch: Batch | dict[str, LabelledBatch | UnlabelledBatch], index: int
    ) -> Tensor:
        labelled, unlabelled = _parts(batch)
        pixels = self.gathered((labelled.labels != IGNORE).sum()).float().mean()
        images = labelled.images
        if unlabelled is not None:  # one pass: BatchNorm sees both kinds at once
            images = torch.cat([images, unlabelled.distorted])
        logits = self.network(images)
        count = len(labelled.images)
        loss = self.loss(logits[:count], labelled, pixels)
        if unlabelled is not None:
            apart = self.consistency_loss(logits[count:], unlabelled.images)
            self.log("train/consistency", apart, sync_dist=True)
            loss = loss + self.hparams.consistency * apart
        loss = self.finite(loss, index, labelled.names)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def consistency_loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """Cross entropy with the labels that the average gives to the undistorted frames.

        Where it is not ``sure`` of them the loss is 0; the mean is over all pixels (FixMatch, Sohn
        et al. 2020, with the averaged teacher of Tarvainen & Valpola 2017).

        Args:
            logits: float [B, K, H, W] of the distorted frames. images: uint8 [B, 3, H, W].
        """
        assert self.average is not None
        self.average.eval()  # Lightning puts all modules into training mode
        with torch.no_grad():
            probability, labels = self.average.module(images).float().softmax(1).max(1)
            self.log("train/sure", (probability >= self.hparams.sure).float().mean())
        labels = labels.where(probability >= self.hparams.sure, IGNORE)
        entropy = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        return entropy / labels.numel()

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if self.average is not None:
            self.average.update_parameters(self.network)

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        images, labels, _ = batch
        # As a user gets them: labels at the network's size, then nearest to the frame's own.
        predicted = self.deployed(images).argmax(1, keepdim=True).float()
        predicted = F.interpolate(predicted, size=labels.shape[-2:], mode="nearest-exact")
        self._confusions()[dataloader_idx].update(predicted[:, 0].long(), labels)

    def on_validation_epoch_end(self) -> None:
        for prefix, confusion in zip(["", *self.val_names], self._confusions(), strict=True):
            # Summed over processes: the figures are the same on each.
            self._log_scores(f"val/{prefix}/" if prefix else "val/", confusion)
            confusion.reset()

    def _log_scores(self, prefix: str, confusion: MulticlassConfusionMatrix) -> None:
        pixels = confusion.compute().cpu().numpy()
        scores = Scores(pixels)
        # A set may have labels of some classes only: the mean is over those, whatever else is
        # predicted there.
        there = pixels.sum(1) > 0
        miou = float(scores.iou[there].mean()) if there.any() else math.nan
        self.log(f"{prefix}miou", miou, prog_bar=True, sync_dist=False)
        self.log(f"{prefix}pixel_accuracy", scores.pixel_accuracy)
        for name, iou, is_there in zip(self.class_names, scores.iou, there, strict=True):
            if is_there:
                self.log(f"{prefix}iou_{name}", float(iou))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h = self.hparams
        groups = self.parameter_groups()
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
        return warmed_poly(optimizer, self.trainer, h.warmup)


def ramped_average(decay: float) -> Any:
    """What AveragedModel calls: decay min(``decay``, (1 + n) / (10 + n)) after n averages.

    So that the first steps, of an untrained network, are soon forgotten.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor) -> None:
        n = int(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, weight)
        else:  # BatchNorm counts its batches
            torch._foreach_copy_(averages, currents)

    return update


def _parts(
    batch: Batch | dict[str, LabelledBatch | UnlabelledBatch],
) -> tuple[LabelledBatch, UnlabelledBatch | None]:
    """The labelled and the unlabelled part of a batch."""
    if isinstance(batch, dict):
        return batch["labelled"], batch.get("unlabelled")  # type: ignore[return-value]
    images, labels, names = batch
    certain = torch.full_like(labels, CERTAIN, dtype=torch.uint8)
    return LabelledBatch(images, labels, certain, names), None
