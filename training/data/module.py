# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled frames for the supervised systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import tv_tensors

from ctxseg_ros.image.encodings import BITS
from ctxseg_ros.image.image_file import ALL_BITS
from training.data.augment import eval_transform, train_transform
from training.data.evenly import evenly
from training.data.files import DataError, warn
from training.data.label_sets import LABEL_SETS, LabelSet
from training.data.own import check_seen, own_label_set
from training.data.pairs import LabelledFrame, PairSet
from training.places import expanded

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
    """Labelled frames resized for the network, with labels at their own size."""

    def __init__(self, frames: Sequence[LabelledFrame], size: tuple[int, int]) -> None:
        self.frames, self.transform = frames, eval_transform(size)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        image, label, stem = self.frames[index]
        image = self.transform(torch.from_numpy(image).permute(2, 0, 1))
        return image, torch.from_numpy(label).long(), stem


def train_loader(
    frames: Dataset, trainer: L.Trainer, batch_size: int, workers: int, seed: int
) -> DataLoader:
    """Batches in an order that (seed, epoch) determine, split over the processes of ``trainer``.

    Args:
        frames: has a length; items are asked for by (epoch, index).
        batch_size: frames of a batch over all processes. workers: see LabelledFrames.

    Raises:
        DataError: a batch cannot be split evenly, or there are fewer frames than one needs.
    """
    assert isinstance(frames, Sized)
    world, rank = trainer.world_size, trainer.global_rank
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size}: give 1 or more")
    if batch_size % world:
        raise DataError(f"batch_size {batch_size} cannot be split over {world} processes")
    if len(frames) < batch_size:
        raise DataError(f"{len(frames)} training frames are fewer than one batch of {batch_size}")
    return DataLoader(
        frames,
        batch_size=batch_size // world,
        sampler=EpochSampler(frames, world, rank, seed=seed, drop_last=True),
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class LabelledFrames(L.LightningDataModule):
    """The train and val splits of a labelled data set; a subclass says which.

    Args:
        root: the data set's folder, see the ``pairs`` of its LabelSet and ``training.places``.
        size: (height, width) that the network sees.
        batch_size: frames of a batch over all processes.
        scale: range of the random scale. jitter: photometric distortion.
        share: of the training frames to use, above 0 to 1, evenly spread over their sorted names.
        workers: processes that load; 0 loads in the training process.
        seed: of the order of frames and of the augmentation.
    """

    labels: LabelSet

    def __init__(
        self,
        root: str,
        size: tuple[int, int] = (352, 480),
        batch_size: int = 8,
        scale: tuple[float, float] = (0.5, 2.0),
        jitter: bool = True,
        share: float = 1.0,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise DataError(f"share of the training frames is {share}: give one above 0, up to 1")
        self.root, self.share = expanded(root, "--data.init_args.root"), share
        self.size, self.batch_size = (size[0], size[1]), batch_size  # no list
        self.workers, self.seed = workers, seed
        self.transform = train_transform(self.size, (scale[0], scale[1]), jitter)
        self.train: PairSet | None = None
        self.val: PairSet | None = None

    def setup(self, stage: str) -> None:
        """Read and check every file. Raises DataError before training starts."""
        if stage == "fit" and self.train is None:
            self.train = self._read("train", self.share)
        if self.val is None:
            self.val = self._read("val")

    def origin(self) -> str:
        """The training frames in words, for the model file; once they are read."""
        assert self.train is not None
        return f"{self.labels.origin}, {len(self.train)} training frames"

    def terms(self) -> str:
        """The terms of the data, for the model file."""
        return self.labels.terms

    def _read(self, split: str, share: float = 1.0) -> PairSet:
        labels = self.labels
        pairs = labels.pairs(self.root, split)
        count = max(1, round(share * len(pairs)))
        chosen = [pairs[i] for i in evenly(len(pairs), count, middles=True)]
        return PairSet(chosen, labels.read, labels.in_memory)

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None and self.trainer is not None
        frames = AugmentedFrames(self.train, self.transform, self.seed)
        return train_loader(frames, self.trainer, self.batch_size, self.workers, self.seed)

    def val_dataloader(self) -> DataLoader:
        assert self.val is not None and self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        frames = ScoredFrames(self.val, self.size)
        # Batches of one: labels may differ in size from frame to frame. A rank takes every
        # world-th frame and none twice, so the pooled score is exact.
        return DataLoader(torch.utils.data.Subset(frames, range(rank, len(frames), world)))


class CamVid(LabelledFrames):
    """CamVid, held in memory. Arguments: see LabelledFrames."""

    labels = LABEL_SETS["camvid"]


class ADE20K(LabelledFrames):
    """ADE20K SceneParsing, read from its files as they are needed, once all were checked.

    Arguments: see LabelledFrames.
    """

    labels = LABEL_SETS["ade20k"]


class Stanford(LabelledFrames):
    """Stanford Background, held in memory. Arguments: see LabelledFrames."""

    labels = LABEL_SETS["stanford"]


class OwnLabels(LabelledFrames):
    """One's own images and masks, read from their files as they are needed.

    Args:
        root: see ``training.data.own.own_pairs``.
        classes: file of the class list, see ``training.data.class_list_file``.
        val_share: of the images for validation, where no folders divide them.
        bits: that images of 16 bits use, 8 to 16, such as 12: else they are nearly black.
        size, batch_size, scale, jitter, share, workers, seed: see LabelledFrames.

    Raises:
        DataError: the class list cannot be used; in ``setup``: a file cannot be used, or the
            masks have one class only.
    """

    def __init__(
        self,
        root: str,
        classes: str,
        val_share: float = 0.2,
        bits: int = ALL_BITS,
        size: tuple[int, int] = (352, 480),
        batch_size: int = 8,
        scale: tuple[float, float] = (0.5, 2.0),
        jitter: bool = True,
        share: float = 1.0,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(root, size, batch_size, scale, jitter, share, workers, seed)
        if bits not in BITS:
            raise DataError(f"bits is {bits}: give {BITS[0]} to {BITS[-1]}")
        self.labels = own_label_set(classes, val_share, bits)

    def setup(self, stage: str) -> None:
        """See LabelledFrames. Warns of classes that no training mask has."""
        super().setup(stage)
        if stage == "fit":
            assert self.train is not None
            names = [name for name, _ in self.labels.classes]
            if missing := check_seen(names, self.train.seen, self.root):
                warn(f"no pixel of the {len(self.train)} training masks is {', '.join(missing)}")

    def origin(self) -> str:
        return f"{self.root.resolve().name}, {super().origin()}"
