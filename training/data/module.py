# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled frames for the supervised systems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import tv_tensors

from training.data.augment import eval_transform, train_transform
from training.data.camvid import CLASSES, VOID, camvid_pairs
from training.data.pairs import DataError, PairSet

#: images uint8 [B, 3, H, W], labels int64 [B, h, w], stems
Batch = tuple[Tensor, Tensor, list[str]]


class EpochSampler(DistributedSampler):
    """Yields (epoch, index), so that augmentation can be a function of both.

    A run resumed from a checkpoint, or split over processes, then sees exactly the batches of an
    uninterrupted run in one process: nothing depends on the state of a random generator.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class AugmentedFrames(Dataset):
    """Frames of a PairSet under a random transform that (seed, epoch, index) determine."""

    def __init__(self, frames: PairSet, transform: nn.Module, seed: int) -> None:
        self.frames, self.transform, self.seed = frames, transform, seed

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        epoch, index = key
        image, label, stem = self.frames[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1_000_003 * epoch + index)
            image, label = self.transform(
                tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
                tv_tensors.Mask(torch.from_numpy(label)),
            )
        return image.as_subclass(Tensor), label.as_subclass(Tensor).long(), stem


class ScoredFrames(Dataset):
    """Frames of a PairSet resized for the network, with labels at their own size."""

    def __init__(self, frames: PairSet, size: tuple[int, int]) -> None:
        self.frames, self.transform = frames, eval_transform(size)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        image, label, stem = self.frames[index]
        image = self.transform(torch.from_numpy(image).permute(2, 0, 1))
        return image, torch.from_numpy(label).long(), stem


class CamVid(L.LightningDataModule):
    """CamVid's train and val splits, held in memory.

    Args:
        root: the data set's folder, see ``camvid_pairs``.
        size: (height, width) that the network sees.
        batch_size: frames of a batch over all processes.
        scale: range of the random scale. jitter: photometric distortion.
        workers: processes that load; 0 loads in the training process.
        seed: of the order of frames and of the augmentation.
    """

    def __init__(
        self,
        root: str,
        size: tuple[int, int] = (352, 480),
        batch_size: int = 8,
        scale: tuple[float, float] = (0.5, 2.0),
        jitter: bool = True,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.size, self.batch_size, self.workers, self.seed = tuple(size), batch_size, workers, seed
        self.transform = train_transform(self.size, tuple(scale), jitter)
        self.train: PairSet | None = None
        self.val: PairSet | None = None

    def setup(self, stage: str) -> None:
        """Read and check every file. Raises DataError before training starts."""
        if stage == "fit" and self.train is None:
            self.train = PairSet(camvid_pairs(self.root, "train"), len(CLASSES), VOID)
        if self.val is None:
            self.val = PairSet(camvid_pairs(self.root, "val"), len(CLASSES), VOID)

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None and self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.batch_size % world:
            raise DataError(f"batch_size {self.batch_size} cannot be split over {world} processes")
        if len(self.train) < self.batch_size:
            raise DataError(
                f"{len(self.train)} training frames are fewer than one batch of {self.batch_size}"
            )
        frames = AugmentedFrames(self.train, self.transform, self.seed)
        return DataLoader(
            frames,
            batch_size=self.batch_size // world,
            sampler=EpochSampler(frames, world, rank, seed=self.seed, drop_last=True),
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        assert self.val is not None and self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        frames = ScoredFrames(self.val, self.size)
        # Batches of one: labels may differ in size from frame to frame. A rank takes every
        # world-th frame and none twice, so the pooled score is exact.
        return DataLoader(torch.utils.data.Subset(frames, range(rank, len(frames), world)))
