# SPDX-License-Identifier: Apache-2.0
"""Batches of frames without labels, for the systems that train on any footage."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ctxseg_ros.image.resize import resized
from training.data.evenly import evenly
from training.data.files import DataError
from training.data.frames import FrameList, FrameOptions, holds_bag, open_frames
from training.data.module import train_loader
from training.places import end

#: images uint8 [B, 3, H, W], names
UnlabelledBatch = tuple[Tensor, list[str]]

#: What taught a system that has not been trained yet.
NOTHING = "nothing yet"

_VAL_BATCH = 8
_NAMED = 5


def crop(
    frame: np.ndarray, size: tuple[int, int], scale: float, place: tuple[float, float]
) -> np.ndarray:
    """A part of a frame, resized. It lies within the frame: nothing is padded.

    A padded border would look like an edge to a loss that compares neighbours.

    Args:
        frame: uint8 [H, W, 3].
        size: (height, width) of the result.
        scale: 1 takes the largest part of that shape, 2 one of half its height and width.
        place: of the part, from (0, 0), the top left, to (1, 1), the bottom right.

    Returns:
        uint8 [height, width, 3], C-contiguous.
    """
    (height, width), (rows, columns) = frame.shape[:2], size
    factor = max(rows / height, columns / width) * scale
    part = max(1, min(height, round(rows / factor))), max(1, min(width, round(columns / factor)))
    top, left = round(place[0] * (height - part[0])), round(place[1] * (width - part[1]))
    return resized(frame[top : top + part[0], left : left + part[1]], size)


class CroppedFrames(Dataset):
    """Random parts of frames, mirrored or not, that (seed, epoch, index) determine."""

    def __init__(
        self, frames: FrameList, size: tuple[int, int], scale: tuple[float, float], seed: int
    ) -> None:
        self.frames, self.size, self.scale, self.seed = frames, size, scale, seed

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, str]:
        epoch, index = key
        random = np.random.default_rng((self.seed, epoch, index))
        scale, place = random.uniform(*self.scale), (random.random(), random.random())
        image = crop(self.frames[index], self.size, scale, place)
        if random.random() < 0.5:
            image = image[:, ::-1]
        return _to_tensor(image), self.frames.names[index]


class CentredFrames(Dataset):
    """The largest part of a frame around its centre that has the shape of ``size``."""

    def __init__(self, frames: FrameList, size: tuple[int, int]) -> None:
        self.frames, self.size = frames, size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        image = crop(self.frames[index], self.size, 1.0, (0.5, 0.5))
        return _to_tensor(image), self.frames.names[index]


def and_now(before: str, now: str) -> str:
    """In words, what taught a system ``before`` (at first NOTHING) and what does ``now``.

    A run that is resumed on other frames has learnt from both.
    """
    if before == NOTHING:
        return now
    return before if now in before.split("; then ") else f"{before}; then {now}"


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class Frames(L.LightningDataModule):
    """Frames of images, videos and ROS 2 bags: random parts to train on, a few to look at.

    Training batches are (images uint8 [B, 3, height, width], names). Validation batches have the
    centres of evenly chosen frames, the same in every process.

    Args:
        source: see ``training.data.frames.open_frames``; or several.
        size: (height, width) that the network sees. A smaller frame is enlarged.
        batch_size: frames of a batch over all processes.
        topic: of the images in bags, also in those of ``val_source``; may be left out where a bag
            has only one.
        stride: take every stride-th training frame.
        val_source: where the frames to look at are from; None: the training frames.
        val_frames: how many of them are looked at, at most.
        scale: range of the random scale. At 1 the part is the largest that fits into the frame,
            whatever its resolution; at 2 it has half that height and width. At least 1.
        workers: processes that load; 0 loads in the training process.
        seed: of the order of frames and of the parts.
        encoding, bits: what frames do not say themselves, see ``encodings.Reading``.
    """

    def __init__(
        self,
        source: str | list[str],
        size: tuple[int, int] = (224, 224),
        batch_size: int = 10,
        topic: str | None = None,
        stride: int = 1,
        val_source: str | list[str] | None = None,
        val_frames: int = 8,
        scale: tuple[float, float] = (1.0, 2.0),
        workers: int = 1,
        seed: int = 0,
        encoding: str = "",
        bits: int = 16,
    ) -> None:
        super().__init__()
        self.source, self.val_source, self.val_frames = source, val_source, val_frames
        self.size, self.batch_size = (size[0], size[1]), batch_size  # no list
        self.workers, self.seed = workers, seed
        self.scale = (scale[0], scale[1])
        try:
            self.options = FrameOptions(topic, stride, encoding, bits)
        except ValueError as error:
            raise DataError(f"--data.{error}") from error
        self.train: FrameList | None = None
        self.val: FrameList | None = None
        if not 1 <= self.scale[0] <= self.scale[1]:
            raise DataError(f"scale {list(scale)}: give two numbers of 1 or more, the lower first")
        if val_frames < 1:
            raise DataError(f"val_frames {val_frames}: give 1 or more")

    def setup(self, stage: str) -> None:
        """Read and check every file. Raises DataError before training starts."""
        if self.train is None and (stage == "fit" or self.val_source is None):
            self.train = open_frames(self.source, self.options)
            self._warn(self.train)
        if self.val is None:
            self.val = self._open_val(self.val_source) if self.val_source else self.train

    def _open_val(self, source: str | list[str]) -> FrameList:
        # open_frames rejects a topic where no bag can have it.
        topic = self.options.topic if holds_bag(source) else None
        return open_frames(source, replace(self.options, topic=topic, stride=1))

    def _warn(self, frames: FrameList) -> None:
        small = [
            name
            for name, frame in zip(frames.names, frames.sizes, strict=True)
            if frame[0] < self.size[0] or frame[1] < self.size[1]
        ]
        height, width = self.size
        for what, names in (
            ("frames have one colour and teach nothing", frames.one_colour),
            (f"frames are smaller than {width}x{height} and are enlarged", small),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                rank_zero_warn(f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}")

    @property
    def summary(self) -> str:
        """What a model trained on these frames says of its data."""
        assert self.train is not None
        sources = [self.source] if isinstance(self.source, str) else self.source
        return f"{len(self.train)} frames of {', '.join(map(end, sources))}, without labels"

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None and self.trainer is not None
        frames = CroppedFrames(self.train, self.size, self.scale, self.seed)
        return train_loader(frames, self.trainer, self.batch_size, self.workers, self.seed)

    def val_dataloader(self) -> DataLoader:
        assert self.val is not None
        chosen = evenly(len(self.val), self.val_frames)
        return DataLoader(Subset(CentredFrames(self.val, self.size), chosen), _VAL_BATCH)
