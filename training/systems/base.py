# SPDX-License-Identifier: Apache-2.0
"""What every system has, whatever it learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

import lightning as L
import torch
from lightning.fabric.utilities.data import AttributeDict
from torch import Tensor

from ctxseg_ros.command import CommandFailed
from ctxseg_ros.model.model_file import ClassInfo
from training.data.files import DataError
from training.data.unlabelled import NOTHING, and_now
from training.networks.deployed import DeployedGraph
from training.networks.encoder import check_multiple


class TrainingDiverged(CommandFailed):
    """The loss became NaN or infinite. The message names the step and the batch."""


class System(L.LightningModule, ABC):
    """A network that is trained, and what its export needs to know.

    A subclass calls ``save_hyperparameters`` in ``__init__``. Its hyperparameters contain ``size``,
    the (height, width) in pixels that the exported model is meant for. If they contain ``seed``,
    random generators (dropout, stochastic depth) are seeded with it anew at each step, so that a
    resumed run equals an uninterrupted one.

    A system of task ``semantic`` or ``clusters`` implements ``logits``, one of task ``attention``
    implements ``embed``.
    """

    #: Of the model file, see ``ctxseg_ros.model.model_file``.
    task: ClassVar[Literal["semantic", "clusters", "attention"]]

    @property
    def hparams(self) -> AttributeDict:
        """The arguments of ``__init__`` by name, as attributes and as items."""
        return cast(AttributeDict, super().hparams)

    @property
    def frames(self) -> L.LightningDataModule:
        """The data of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @abstractmethod
    def graph(self) -> DeployedGraph:
        """The network as it is deployed, see ``training.networks.deployed``."""

    @abstractmethod
    def class_infos(self) -> list[ClassInfo]:
        """The classes or clusters for the model file, in the order of their ids."""

    @abstractmethod
    def origin(self) -> tuple[str, str]:
        """The training data in words, and its terms of use."""

    def logits(self, images: Tensor) -> Tensor:
        """Float [B, K, H, W] of images uint8 [B, 3, H, W]; the greatest is the label.

        Raises:
            NotImplementedError: the system is of task attention.
        """
        raise NotImplementedError(f"a {type(self).__name__} has no logits: its task is {self.task}")

    def embed(self, images: Tensor) -> Tensor:
        """Features float [B, D] of images uint8 [B, 3, H, W], one vector per image.

        Raises:
            NotImplementedError: the system is not of task attention.
        """
        raise NotImplementedError(
            f"a {type(self).__name__} has no features of whole images: its task is {self.task}"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which class of ``training.systems.registry`` the checkpoint belongs to."""
        checkpoint["system"] = type(self).__name__

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Seed the random generators for this step and process, see the class."""
        if "seed" in self.hparams:
            step = self.global_step * self.trainer.world_size + self.global_rank
            torch.manual_seed(self.hparams.seed + 1_000_003 * step)

    def finite(self, loss: Tensor, index: int, names: list[str]) -> Tensor:
        """``loss`` itself, if it is finite.

        Args:
            loss: a scalar. index: of the batch in its epoch. names: of the batch's frames.

        Raises:
            TrainingDiverged: the loss is NaN or infinite.
        """
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"loss is {loss.item()} at step {self.global_step} of epoch {self.current_epoch}, "
                f"batch {index}: {', '.join(names)}. Lower the learning rate, or use bf16 or fp32 "
                "in place of fp16; look at these frames if it happens at them again."
            )
        return loss

    def gathered(self, values: Tensor) -> Tensor:
        """A tensor of all processes, one after the other along a new first axis if several."""
        return cast(Tensor, self.all_gather(values))

    def log_now(self, figures: dict[str, float]) -> None:
        """Log figures at this step, which Lightning's ``log_every_n_steps`` may skip."""
        for logger in self.loggers:
            logger.log_metrics(figures, self.global_step)


class UnlabelledSystem(System):
    """A system that learns from frames without labels.

    Its checkpoints record the frames that it has learnt from, over all runs that continued it.
    """

    def __init__(self) -> None:
        super().__init__()
        #: The training frames in words.
        self.data = NOTHING

    def learn_from(self, frames: str) -> None:
        """Add ``frames``, in words, to those that the system has learnt from."""
        self.data = and_now(self.data, frames)

    def origin(self) -> tuple[str, str]:
        """See System."""
        return self.data, "those of the frames it was trained on"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See System; the training frames as well."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["data"] = self.data

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` recorded."""
        self.data = checkpoint["data"]


def check_data_size(size: tuple[int, int], patch: int) -> None:
    """Raise DataError, naming the nearest that fits, unless ``patch`` divides ``size``."""
    try:
        check_multiple(size, patch)
    except ValueError as error:
        raise DataError(f"--data.init_args.size: {error}") from error
