# SPDX-License-Identifier: Apache-2.0
"""Several views of each frame, for self-distillation: large parts and small ones."""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from training.data.files import DataError
from training.data.frames import FrameList
from training.data.module import train_loader
from training.data.unlabelled import Frames

#: global views uint8 [B, 2, 3, G, G], local views uint8 [B, n, 3, L, L], names
CropsBatch = tuple[Tensor, Tensor, list[str]]

_NAMED = 5


def view(size: int, scale: tuple[float, float], blur: float, solarise: float = 0.0) -> nn.Module:
    """A random view of an image uint8 [3, H, W], uint8 [3, size, size], as DINO publishes it.

    A part of the image, resized (bicubic) and mirrored or not; then, each with its probability:
    colour jitter 0.8, grey 0.2, Gaussian blur of 0.1 to 2 pixels, solarisation above 128.

    Args:
        scale: range of the part's share of the image's area; its sides are as 3:4 to 4:3.
        blur, solarise: probabilities.
    """
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(
            size, scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        ),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        # 13 pixels hold three standard deviations at the strongest.
        v2.RandomApply([v2.GaussianBlur(13, sigma=(0.1, 2.0))], p=blur),
    ]
    if solarise:
        steps.append(v2.RandomSolarize(threshold=128, p=solarise))
    return v2.Compose(steps)


class CroppedViews(Dataset):
    """Views of frames that (seed, epoch, index) determine; asked for by (epoch, index).

    Args:
        views: the transforms of the global views. local, count: that of the local ones, how many.
    """

    def __init__(
        self, frames: FrameList, views: list[nn.Module], local: nn.Module, count: int, seed: int
    ) -> None:
        self.frames, self.views, self.local = frames, views, local
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        epoch, index = key
        image = torch.from_numpy(self.frames[index]).permute(2, 0, 1)
        seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            large = torch.stack([change(image) for change in self.views])
            small = torch.stack([self.local(image) for _ in range(self.count)])
        return large, small, self.frames.names[index]


class Crops(L.LightningDataModule):
    """Two global and several local views of frames of images, videos and ROS 2 bags.

    Training batches are (global views uint8 [B, 2, 3, G, G], local views uint8 [B, n, 3, L, L],
    names). The one validation batch is that of ``training.data.unlabelled.Frames``.

    Args:
        source, topic, stride, val_source, workers, seed, encoding, bits: see
            ``training.data.unlabelled.Frames``.
        batch_size: frames, not views, of a batch over all processes.
        global_size, local_size: pixels on a side of the views.
        global_scale, local_scale: ranges of the views' share of the frame's area.
        local_crops: local views of a frame, at least 1.
    """

    def __init__(
        self,
        source: str | list[str],
        batch_size: int = 64,
        topic: str | None = None,
        stride: int = 1,
        val_source: str | list[str] | None = None,
        global_size: int = 224,
        local_size: int = 96,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        local_crops: int = 8,
        workers: int = 1,
        seed: int = 0,
        encoding: str = "",
        bits: int = 16,
    ) -> None:
        super().__init__()
        for name, scale in (("global_scale", global_scale), ("local_scale", local_scale)):
            if not 0 < scale[0] <= scale[1] <= 1:
                raise DataError(
                    f"{name} {list(scale)}: give two shares of a frame's area, above 0 and up to "
                    "1, the lower first"
                )
        if local_crops < 1:
            raise DataError(f"local_crops is {local_crops}: it must be 1 or more")
        if local_size > global_size:
            raise DataError(
                f"local_size {local_size} is above global_size {global_size}: local views are the "
                "small ones"
            )
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.global_size, self.local_size = global_size, local_size
        self.local_crops = local_crops
        # The published pair: one view is always blurred, the other seldom, and solarised at times.
        self.views = [
            view(global_size, (global_scale[0], global_scale[1]), 1.0),
            view(global_size, (global_scale[0], global_scale[1]), 0.1, solarise=0.2),
        ]
        self.local = view(local_size, (local_scale[0], local_scale[1]), 0.5)
        self.frames = Frames(
            source,
            (global_size, global_size),
            batch_size,
            topic,
            stride,
            val_source,
            workers=workers,
            seed=seed,
            encoding=encoding,
            bits=bits,
        )

    def setup(self, stage: str) -> None:
        """Read and check every file, before training starts.

        Raises:
            DataError: see ``open_frames``; or a training frame's short side is below the local
                views'. Frames smaller than the global views are enlarged, with a warning.
        """
        self.frames.setup(stage)
        if stage == "fit":
            self._check(self.frames.train)

    def _check(self, frames: FrameList | None) -> None:
        assert frames is not None
        small = [
            f"{name} ({width}x{height})"
            for name, (height, width) in zip(frames.names, frames.sizes, strict=True)
            if min(height, width) < self.local_size
        ]
        if small:
            more = f" and {len(small) - _NAMED} more" if len(small) > _NAMED else ""
            raise DataError(
                f"{len(small)} frames are smaller than the local views of {self.local_size} "
                f"pixels: {', '.join(small[:_NAMED])}{more}. Leave them out, or set "
                "--data.local_size (and --data.global_size) lower"
            )

    @property
    def summary(self) -> str:
        """What a model trained on these frames says of its data."""
        return self.frames.summary

    def train_dataloader(self) -> DataLoader:
        assert self.frames.train is not None and self.trainer is not None
        views = CroppedViews(self.frames.train, self.views, self.local, self.local_crops, self.seed)
        return train_loader(views, self.trainer, self.batch_size, self.workers, self.seed)

    def val_dataloader(self) -> DataLoader:
        return self.frames.val_dataloader()
