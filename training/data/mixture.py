# SPDX-License-Identifier: Apache-2.0
"""Several labelled data sets at once, each with its own classes, and frames without labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from training.data.augment import Hide, geometric, photographic
from training.data.class_maps import LabelTable, allowed_classes
from training.data.files import DataError, each_file
from training.data.frames import open_frames
from training.data.label_files import IGNORE, read_ids
from training.data.label_sets import LabelSet
from training.data.module import ScoredFrames, train_loader
from training.data.own import find_label_set
from training.data.pairs import LabelledFrame, Pair, PairSet, by_name
from training.data.unlabelled import CroppedFrames
from training.places import end, expanded

#: The confidence of labels that people drew.
CERTAIN = 255

#: Folder beside the images of a pseudo-labelled data set: how sure each label is, 0 to 255.
CONFIDENCE = "confidence"

#: File of such a data set that says who labelled it.
TEACHER = "teacher.json"


@dataclass
class Source:
    """A labelled data set, or a part of it.

    ``labels``: a name of ``training.data.label_sets.LABEL_SETS``, or the file of a class list.
    ``root``: its folder. ``splits``: those of its splits that are used. ``weight``: its share of
    the frames that are drawn, beside those of the other sources. ``classes``: by class of the data
    set, the classes of the model that it may be, see ``training.data.class_maps``; classes of one
    name need no entry. ``only``, ``without``: patterns (``*barcelona*``) of file names to use, or
    to leave out; None: all, none. ``fill``: a folder of ``python -m training pseudo-label`` for
    some or all of its frames, whose labels stand where the data set has none. ``name``: of the
    scores, where it validates.
    """

    labels: str
    root: str
    splits: list[str] = field(default_factory=lambda: ["train"])
    weight: float = 1.0
    classes: dict[str, list[str]] = field(default_factory=dict)
    only: list[str] | None = None
    without: list[str] | None = None
    fill: str = ""
    name: str = ""


class LabelledBatch(NamedTuple):
    """images uint8 [B, 3, H, W]; labels int64 [B, H, W], rows of ``Mixture.allowed`` or IGNORE;
    confidence uint8 [B, H, W]; names."""

    images: Tensor
    labels: Tensor
    confidence: Tensor
    names: list[str]


class UnlabelledBatch(NamedTuple):
    """The same part of frames uint8 [B, 3, H, W] twice: as it is, and distorted; names."""

    images: Tensor
    distorted: Tensor
    names: list[str]


class SourceFrames(Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]]):
    """The frames of a source: image, labels in those of a LabelTable, confidence, stem.

    Args:
        source: which. classes: names of the model's classes. table: gets the sets of allowed
            classes that the source needs.

    Raises:
        DataError: the data set is not there or cannot be read, every file at fault is named; its
            classes cannot be mapped; or the patterns leave no frame.
    """

    def __init__(self, source: Source, classes: Sequence[str], table: LabelTable) -> None:
        labels = find_label_set(source.labels)
        names = [name for name, _ in labels.classes]
        try:
            self._lookup = table.lookup(allowed_classes(names, classes, source.classes))
        except DataError as error:
            raise DataError(f"{source.root}: {error}") from error
        pairs = _chosen(source, labels)
        self.pairs = pairs
        self._frames = PairSet(pairs, labels.read, labels.in_memory)
        self._confidence = _confidence_files(pairs)
        self._fill = _Fill(source.fill, classes, table) if source.fill else None
        self.name = source.name or Path(source.root).name
        self.origin, self.terms = _origin(source.root, labels), labels.terms
        if source.fill:
            self.origin += f", its gaps {_origin(source.fill, labels)}"

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        image, label, stem = self._frames[index]
        sure = self._confidence[index]
        confidence = np.full_like(label, CERTAIN) if sure is None else _read_confidence(sure)
        label = self._lookup[label]
        if self._fill is not None:
            self._fill(stem, label, confidence)
        return image, label, confidence, stem


class _Fill:
    """Labels and confidence of a teacher for the pixels that a data set has no labels for.

    Args:
        root: see ``Source.fill``. classes, table: see SourceFrames.

    Raises:
        DataError: as SourceFrames; or two of its frames have one name.
    """

    def __init__(self, root: str, classes: Sequence[str], table: LabelTable) -> None:
        file = expanded(root) / "classes.yaml"
        frames = SourceFrames(Source(str(file), root, ["train", "val"]), classes, table)
        # As ``pseudo-label`` writes them: a number, _ and the stem.
        stems = [pair.image.stem.partition("_")[2] for pair in frames.pairs]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise DataError(f"{root}: several frames are called {', '.join(twice)}")
        self._frames, self._index = frames, {stem: i for i, stem in enumerate(stems)}
        self._root = root

    def __call__(self, stem: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """Fill the gaps of a frame's label and confidence, in place."""
        index = self._index.get(stem)
        if index is None:
            return
        _, filling, sure, _ = self._frames[index]
        if filling.shape != label.shape:
            raise DataError(f"{self._root}: labels of {stem} are not of the frame's size")
        gaps = label == IGNORE
        label[gaps], confidence[gaps] = filling[gaps], sure[gaps]


class _ScoredSource(Sequence[LabelledFrame]):
    """A source's frames with the labels that can be scored: certain ones, of one class."""

    def __init__(self, source: SourceFrames, classes: int) -> None:
        self.source, self.classes = source, classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        image, label, confidence, stem = self.source[index]
        scored = (label < self.classes) & (confidence == CERTAIN)
        return image, np.where(scored, label, np.uint8(IGNORE)), stem


def _origin(root: str, labels: LabelSet) -> str:
    """Who labelled a folder: a teacher, see ``training.pseudo_label``, or the set's authors."""
    record = expanded(root) / TEACHER
    if not record.exists():
        return labels.origin
    try:
        return f"labelled by {json.loads(record.read_text())['model']}"
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{record}: damaged; label the frames again") from error


def _chosen(source: Source, labels: LabelSet) -> list[Pair]:
    pairs = [pair for split in source.splits for pair in labels.pairs(source.root, split)]
    try:
        return by_name(pairs, source.only, source.without)
    except DataError as error:
        raise DataError(f"{source.root}: {error}") from error


def _confidence_files(pairs: Sequence[Pair]) -> list[Path | None]:
    """The confidence of each pair's labels, where the folder of that name exists beside them.

    Raises:
        DataError: one is missing, cannot be read, or has another size than its labels.
    """
    files = [pair.label.parent.with_name(CONFIDENCE) / pair.label.name for pair in pairs]
    if not any(file.exists() for file in files):
        return [None] * len(files)

    def checked(index: int) -> Path:
        file = files[index]
        confidence, label = read_ids(file), read_ids(pairs[index].label)
        if confidence.shape != label.shape or confidence.max() > CERTAIN:
            raise DataError(
                f"{file}: confidence must be 0 to {CERTAIN} at the size of the labels, "
                f"{label.shape[1]}x{label.shape[0]}"
            )
        return file

    return list(each_file(checked, range(len(files)), CONFIDENCE))


def _read_confidence(file: Path) -> np.ndarray:
    return read_ids(file).astype(np.uint8)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """``total`` divided by ``weights``, in whole numbers that differ from it by less than 1."""
    exact = np.array(weights) * total / sum(weights)
    counts = np.floor(exact).astype(int)
    # The largest remainders are rounded up; equal ones from the first.
    for i in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[i] += 1
    return counts.tolist()


def drawn(
    counts: Sequence[int], sizes: Sequence[int], seed: int, epoch: int, index: int
) -> tuple[int, int]:
    """Which source and which of its frames is draw ``index`` of an epoch: (source, frame).

    Each source is gone through from end to end in a random order, then in another one, whatever
    share of it an epoch takes: so all its frames are seen equally often. The result depends on the
    arguments only, so a resumed run and several processes draw what an unbroken run in one draws.

    Args:
        counts: draws of each source in an epoch. sizes: frames of each.
        index: 0 to sum(counts) - 1; the first counts[0] are of source 0, and so on.
    """
    ends = np.cumsum(counts)
    source = int(np.searchsorted(ends, index, side="right"))
    place = epoch * counts[source] + index - int(ends[source] - counts[source])
    turn, place = divmod(place, sizes[source])
    order = np.random.default_rng((seed, source, turn)).permutation(sizes[source])
    return source, int(order[place])


class DrawnFrames(Dataset):
    """Augmented frames of several sources; item (epoch, index) is a function of it and the seed.

    Args:
        sources: the frames. counts: draws of each in an epoch, see ``drawn``.
        size: (height, width) of the items. scale: range of the random scale.
    """

    def __init__(
        self,
        sources: Sequence[SourceFrames],
        counts: Sequence[int],
        size: tuple[int, int],
        scale: tuple[float, float],
        seed: int,
    ) -> None:
        self.sources, self.counts, self.seed = sources, counts, seed
        self.geometric, self.photographic = geometric(size, scale), photographic()

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, key: tuple[int, int]) -> LabelledBatch:
        epoch, index = key
        sizes = [len(source) for source in self.sources]
        source, frame = drawn(self.counts, sizes, self.seed, epoch, index)
        image, label, confidence, stem = self.sources[source][frame]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_item_seed(self.seed, epoch, index))
            image, label, confidence = self.geometric(
                tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
                tv_tensors.Mask(torch.from_numpy(label)),
                tv_tensors.Mask(torch.from_numpy(confidence)),
            )
            image = self.photographic(image.as_subclass(Tensor))
        label = label.as_subclass(Tensor).long()
        return LabelledBatch(image, label, confidence.as_subclass(Tensor), stem)


class DistortedFrames(Dataset):
    """Parts of unlabelled frames, as they are and distorted; drawn as DrawnFrames are.

    Args:
        frames: parts of them by (epoch, index), see CroppedFrames. count: draws in an epoch.
    """

    def __init__(self, frames: CroppedFrames, count: int, seed: int) -> None:
        self.frames, self.count, self.seed = frames, count, seed
        self.distort = v2.Compose([photographic(), Hide()])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> UnlabelledBatch:
        epoch, index = key
        _, frame = drawn([self.count], [len(self.frames)], self.seed, epoch, index)
        # Within an epoch a frame may be drawn twice: its parts must not be the same.
        image, name = self.frames[epoch * self.count + index, frame]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_item_seed(self.seed, epoch, index))
            # The loader makes a list of the names.
            return UnlabelledBatch(image, self.distort(image), cast(list[str], name))


def _item_seed(seed: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0])


class Mixture(L.LightningDataModule):
    """Frames of several labelled data sets, and of footage without labels.

    Training batches are {"labelled": LabelledBatch} and, where there is footage without labels,
    also "unlabelled": UnlabelledBatch. Validation has one loader for each of ``val``, of (image,
    labels, names), one frame a batch, labels at their own size.

    Args:
        classes: the model's, a key of LABEL_SETS or the file of a class list.
        sources: the labelled training data.
        val: what scores are taken on, by labels that are certain and allow one class. The best
            epoch is chosen by the first.
        unlabelled: images, videos, bags or folders of them, see ``open_frames``.
        size: (height, width) that the network sees.
        frames: labelled frames in an epoch, a multiple of ``batch_size``.
        batch_size: labelled frames of a batch over all processes.
        unlabelled_batch: unlabelled frames beside them.
        scale: range of the random scale of labelled frames, see ``geometric``.
        unlabelled_scale: that of unlabelled ones, see ``training.data.unlabelled.crop``.
        workers: processes that load, for each of the two; 0 loads in the training process.
        seed: of draws and augmentation.
    """

    def __init__(
        self,
        sources: list[Source],
        val: list[Source],
        classes: str = "camvid",
        unlabelled: list[str] | None = None,
        size: tuple[int, int] = (352, 480),
        frames: int = 360,
        batch_size: int = 8,
        unlabelled_batch: int = 4,
        scale: tuple[float, float] = (0.6, 2.0),
        unlabelled_scale: tuple[float, float] = (1.0, 2.0),
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not sources or not val:
            raise DataError("sources and val: give at least one data set for each")
        if any(not source.weight > 0 for source in sources):
            raise DataError("the weight of each source must be above 0; leave out what is not used")
        if frames < batch_size or frames % batch_size:
            nearest = max(1, round(frames / batch_size)) * batch_size
            raise DataError(
                f"frames {frames} is not a multiple of batch_size {batch_size}: give {nearest}"
            )
        self.counts = shares([source.weight for source in sources], frames)
        if 0 in self.counts:
            source = sources[self.counts.index(0)]
            raise DataError(
                f"{source.root}: its weight {source.weight} is not one frame in an epoch of "
                f"{frames}; raise it, or frames"
            )
        self.labels = find_label_set(classes)
        self.classes, self.size = classes, (size[0], size[1])  # no list
        self.batch_size, self.unlabelled_batch = batch_size, unlabelled_batch
        self.workers, self.seed, self.frames = workers, seed, frames
        self.scale = (scale[0], scale[1])
        self.unlabelled_scale = (unlabelled_scale[0], unlabelled_scale[1])
        self.sources, self.val_sources, self.footage = sources, val, unlabelled or []
        self.table = LabelTable(len(self.labels.classes))
        self.train: list[SourceFrames] = []
        self.val: list[SourceFrames] = []
        self.unlabelled: CroppedFrames | None = None

    def setup(self, stage: str) -> None:
        """Read and check every file. Raises DataError before training starts."""
        names = [name for name, _ in self.labels.classes]
        if stage == "fit" and not self.train:
            self.train = [SourceFrames(source, names, self.table) for source in self.sources]
            if self.footage:
                footage = open_frames(self.footage)
                self.unlabelled = CroppedFrames(
                    footage, self.size, self.unlabelled_scale, self.seed
                )
        if not self.val:
            self.val = [SourceFrames(source, names, self.table) for source in self.val_sources]
            called = [source.name for source in self.val[1:]]
            if len(set(called)) < len(called):
                raise DataError(f"val: give each set a name of its own, not {', '.join(called)}")

    @property
    def allowed(self) -> Tensor:
        """bool [labels, classes]: the classes that each label of a training frame allows."""
        return torch.from_numpy(self.table.matrix())

    def origin(self) -> str:
        """The training frames in words, for the model file; once they are read."""
        parts = [f"{len(each)} frames of {each.name} ({each.origin})" for each in self.train]
        if self.unlabelled is not None:
            ends = [end(path, 2) for path in self.footage]
            parts.append(f"{len(self.unlabelled)} unlabelled frames of {', '.join(ends)}")
        return "; ".join(parts)

    def terms(self) -> str:
        """The terms of the data, for the model file."""
        return "; ".join(dict.fromkeys(each.terms for each in self.train))

    def train_dataloader(self) -> dict[str, DataLoader]:
        assert self.trainer is not None
        labelled = DrawnFrames(self.train, self.counts, self.size, self.scale, self.seed)
        loaders = {"labelled": self._loader(labelled, self.batch_size)}
        if self.unlabelled is not None:
            count = self.frames // self.batch_size * self.unlabelled_batch
            distorted = DistortedFrames(self.unlabelled, count, self.seed)
            loaders["unlabelled"] = self._loader(distorted, self.unlabelled_batch)
        return loaders

    def _loader(self, frames: Dataset, batch_size: int) -> DataLoader:
        assert self.trainer is not None
        return train_loader(frames, self.trainer, batch_size, self.workers, self.seed)

    def val_dataloader(self) -> list[DataLoader]:
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        loaders = []
        for source in self.val:
            frames = ScoredFrames(_ScoredSource(source, self.table.classes), self.size)
            loaders.append(DataLoader(Subset(frames, range(rank, len(frames), world))))
        return loaders
