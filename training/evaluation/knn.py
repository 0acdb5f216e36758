# SPDX-License-Identifier: Apache-2.0
"""k nearest neighbours: how well features tell classes apart that nobody taught them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from training.data.files import DataError
from training.data.frames import FrameList, open_frames
from training.data.unlabelled import crop
from training.places import expanded

#: Frames that are compared with all training frames at a time.
_CHUNK = 256
#: The part of a frame that is looked at: the middle 224 of 256 pixels.
_SCALE = 256 / 224


def knn_classes(
    features: Tensor, labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class of each query: a vote of its k nearest by cosine, weighted exp(cosine / T).

    Args:
        features: float [N, D] of known class, N >= k. labels: int64 [N], 0 or more.
        queries: float [M, D]. temperature: T, above 0.

    Returns:
        int64 [M].
    """
    features, queries = F.normalize(features, dim=-1), F.normalize(queries, dim=-1)
    classes = int(labels.max()) + 1
    found = []
    for chunk in queries.split(_CHUNK):
        near, index = (chunk @ features.T).topk(k)
        votes = chunk.new_zeros(len(chunk), classes)
        # By the nearest's weight, which changes no vote and keeps all of them finite.
        weights = ((near - near[:, :1]) / temperature).exp()
        found.append(votes.scatter_add_(1, labels[index], weights).argmax(1))
    return torch.cat(found)


class ClassFrames(Dataset):
    """The middles of frames, uint8 [3, size, size], each with the number of its class.

    Args:
        root: a folder with one folder of frames for each class, see ``open_frames``.
        size: pixels on a side.

    Raises:
        DataError: a frame is in no folder of a class; see also ``open_frames``.
    """

    def __init__(self, root: str | Path, size: int) -> None:
        root = expanded(root)
        self.frames: FrameList = open_frames(root)
        parts = [Path(name).relative_to(root).parts for name in self.frames.names]
        loose = [name for name, p in zip(self.frames.names, parts, strict=True) if len(p) < 2]
        if loose:
            raise DataError(
                f"{len(loose)} frames are in no folder of {root} that would name their class, "
                f"such as {loose[0]}"
            )
        folders = [p[0] for p in parts]
        self.size, self.classes = size, sorted(set(folders))
        self.labels = [self.classes.index(folder) for folder in folders]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        square = crop(self.frames[index], (self.size, self.size), _SCALE, (0.5, 0.5))
        return torch.from_numpy(square).permute(2, 0, 1), self.labels[index]


@runtime_checkable
class Embeds(Protocol):
    """A system that embeds images uint8 [B, 3, H, W] as features [B, D]."""

    def embed(self, images: Tensor) -> Tensor: ...


class KNN(L.Callback):
    """Logs ``val/knn``, the share of ``val`` that its nearest neighbours in ``train`` name rightly.

    For systems that embed images, see ``Embeds``. The processes share the frames out among them.

    Args:
        train, val: folders with one folder of frames for each class; the same classes in both.
        size: pixels on a side of what the network sees.
        k, temperature: see ``knn_classes``.
        batch_size: frames of a process at a time. workers: processes that load.
    """

    def __init__(
        self,
        train: str,
        val: str,
        size: int = 224,
        k: int = 20,
        temperature: float = 0.07,
        batch_size: int = 64,
        workers: int = 1,
    ) -> None:
        self.train, self.val, self.size = train, val, size
        self.k, self.temperature = k, temperature
        self.batch_size, self.workers = batch_size, workers
        self.sets: list[ClassFrames] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read and check every file. Raises DataError before training starts."""
        if self.sets:
            return
        train, val = (ClassFrames(root, self.size) for root in (self.train, self.val))
        if train.classes != val.classes:
            odd = sorted(set(train.classes) ^ set(val.classes))
            raise DataError(
                f"the classes of {self.train} and {self.val} differ: {', '.join(odd[:10])}"
                f"{' ...' if len(odd) > 10 else ''} in one of them only"
            )
        if not self.temperature > 0:
            raise DataError(
                f"the temperature of the neighbours' votes is {self.temperature}: give one above 0"
            )
        if not 1 <= self.k <= len(train):
            raise DataError(f"k is {self.k}: {self.train} has 1 to {len(train)} neighbours")
        self.sets = [train, val]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises DataError, in the sanity check already, if the system does not embed this size."""
        try:
            with torch.no_grad():
                blank = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
                _embed(pl_module, blank)
        except ValueError as error:
            raise DataError(f"size of the neighbours' frames: {error}") from error
        except NotImplementedError as error:
            raise DataError(f"no nearest neighbours: {error}") from error

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        known, asked = (self.features(frames, pl_module) for frames in self.sets)
        labels, truth = (torch.tensor(s.labels, device=known.device) for s in self.sets)
        found = knn_classes(known, labels, asked, self.k, self.temperature)
        # Each process has the features of all: the figures are the same.
        pl_module.log("val/knn", (found == truth).float().mean(), prog_bar=True, sync_dist=False)

    @torch.no_grad()
    def features(self, frames: ClassFrames, system: L.LightningModule) -> Tensor:
        """Features float32 [len(frames), D], in order, gathered from all processes."""
        world, rank = system.trainer.world_size, system.trainer.global_rank
        share = -(-len(frames) // world)
        # Frames of the beginning fill up what is missing at the end, so that all have as many.
        mine = [(i * world + rank) % len(frames) for i in range(share)]
        loader = DataLoader(
            Subset(frames, mine), batch_size=self.batch_size, num_workers=self.workers
        )
        parts = torch.cat([_embed(system, images).float() for images, _ in loader])
        gathered = torch.as_tensor(system.all_gather(parts)).reshape(world, share, -1)
        return gathered.transpose(0, 1).flatten(0, 1)[: len(frames)]


def _embed(system: L.LightningModule, images: Tensor) -> Tensor:
    assert isinstance(system, Embeds)
    return system.embed(images.to(system.device))
