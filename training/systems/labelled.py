# SPDX-License-Identifier: Apache-2.0
"""What the systems that train with labels share: loss, scores, optimiser, schedule."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from ctxseg_ros.command import CommandFailed
from ctxseg_ros.model_file import ClassInfo
from training.data.files import DataError
from training.data.label_sets import LABEL_SETS
from training.data.module import Batch, LabelledFrames
from training.data.own import OWN
from training.data.pairs import IGNORE
from training.losses.lovasz import lovasz_softmax
from training.networks.encoder import check_multiple
from training.scores import Scores

#: A label set's name, or name and colour (RGB) of each class.
Classes = str | list[tuple[str, tuple[int, int, int]]]


class TrainingDiverged(CommandFailed):
    """The loss became NaN or infinite. The message names the step and the batch."""


def finite(loss: Tensor, system: L.LightningModule, index: int, names: list[str]) -> Tensor:
    """``loss`` itself. Raises TrainingDiverged, naming the batch, where it is NaN or infinite."""
    if not torch.isfinite(loss):
        raise TrainingDiverged(
            f"loss is {loss.item()} at step {system.global_step} of epoch {system.current_epoch}, "
            f"batch {index}: {', '.join(names)}. Lower the learning rate, or use bf16 or fp32 in "
            "place of fp16; look at these frames if it happens at them again."
        )
    return loss


def poly(done: float) -> float:
    """Factor of the learning rate when ``done`` of the run, 0-1, is over."""
    return max(0.0, 1 - done) ** 0.9


class LabelledSystem(L.LightningModule):
    """A network [B, 3, H, W] uint8 -> logits [B, K, H, W], its loss and its optimiser.

    A subclass makes the network, calls ``save_hyperparameters`` and names these hyperparameters:

    - ``classes``: the label set, a key of ``training.data.label_sets.LABEL_SETS``; or name and
      colour of each class. In a configuration ``own`` stands for the classes of OwnLabels.
    - ``lovasz``: weight of the Lovász-softmax beside the cross entropy.
    - ``optimizer``: ``sgd`` (momentum 0.9) or ``adamw``; ``lr``, ``weight_decay``.
    - ``schedule``: ``poly`` decays by (1 - t)^0.9 over the run after ``warmup`` steps; ``plateau``
      divides by 10 when val mIoU has not risen for 10 validations.
    - ``size``: (height, width) that the exported model is meant for.
    - ``seed``: of dropout, set anew at each step so that a resumed run equals an unbroken one.
    """

    task = "semantic"
    network: nn.Module

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
        self.confusion = MulticlassConfusionMatrix(len(self.class_names), ignore_index=IGNORE)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser."""
        return decay_groups(self.network, self.hparams.lr, self.hparams.weight_decay)

    def on_fit_start(self) -> None:
        frames = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(frames, LabelledFrames):
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
        self.data = (frames.origin(), frames.labels.terms)

    def graph(self) -> nn.Module:
        """The network as it is deployed, see ``training.graphs``."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Float [B, K, H, W] of images uint8 [B, 3, H, W]; the greatest is the label."""
        return self.network(images)

    def class_infos(self) -> list[ClassInfo]:
        """The classes as the model file has them."""
        return self.classes

    def origin(self) -> tuple[str, str]:
        """What taught the network, and the terms of that data."""
        return self.data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["system"] = type(self).__name__
        checkpoint["data"] = list(self.data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        origin, terms = checkpoint["data"]
        self.data = (origin, terms)

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
        loss = finite(self.loss(self.network(images), labels, pixels), self, index, stems)
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
        for name, iou in zip(self.class_names, scores.iou, strict=True):
            self.log(f"val/iou_{name}", 0.0 if math.isnan(iou) else iou)

    def configure_optimizers(self) -> dict[str, Any]:
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


def check_data_size(size: tuple[int, int], patch: int) -> None:
    """Raise DataError, naming the nearest that fits, unless patches divide ``size``."""
    try:
        check_multiple(size, patch)
    except ValueError as error:
        raise DataError(f"--data.init_args.size: {error}") from error


def warmed_poly(
    optimizer: torch.optim.Optimizer, trainer: L.Trainer, warmup: int
) -> dict[str, Any]:
    """The optimiser for Lightning: its rates rise for ``warmup`` steps, then fall as ``poly``."""
    steps = int(trainer.estimated_stepping_batches)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return poly((step - warmup) / max(1, steps - warmup))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def decay_groups(module: torch.nn.Module, lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: weight matrices decay; biases, norms and tokens do not."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        tokens = name.endswith(("class_tokens", "cls_token", "reg_token", "pos_embed"))
        (others if parameter.ndim < 2 or tokens else matrices).append(parameter)
    return [
        {"params": matrices, "lr": lr, "weight_decay": decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
