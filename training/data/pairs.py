# SPDX-License-Identifier: Apache-2.0
"""Images paired with label files: found by file stem, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from ctxseg_ros.image.image_file import ALL_BITS
from ctxseg_ros.system.files import shown
from training.data.files import BrokenFiles, DataError, each_file, image_files, read_image
from training.data.label_files import IGNORE, LABEL_SUFFIXES, read_ids

#: A label file as uint8 [H, W], IGNORE where there is no class. Raises DataError.
LabelReader = Callable[[Path], np.ndarray]

#: image uint8 [H, W, 3] RGB, label uint8 [H, W] with IGNORE, stem
LabelledFrame = tuple[np.ndarray, np.ndarray, str]


@dataclass(frozen=True)
class Pair:
    """One frame: its image file and its label file; ``bits`` that an image of 16 bits uses."""

    image: Path
    label: Path
    bits: int = ALL_BITS

    def rgb(self) -> np.ndarray:
        """The image, see ``read_image``."""
        return read_image(self.image, self.bits)


def pair_files(
    images: Path, labels: Path, bits: int = ALL_BITS, only: Sequence[str] | None = None
) -> list[Pair]:
    """Pair the image files of two folders by stem, through sub-folders.

    The stems of the labels may all end in something that the images' do not, such as ``_L``.

    Args:
        bits: that images of 16 bits use, 8 to 16.
        only: stems, with their sub-folders; other files may lack a partner. None takes all.

    Raises:
        DataError: a folder is missing or empty, a stem of ``only`` has no image, or files have no
            partner; all are named.
    """
    left, right = image_files(images), image_files(labels, LABEL_SUFFIXES)
    right = _without_ending(right, left)
    if only is not None:
        if missing := [stem for stem in only if stem not in left]:
            raise BrokenFiles([f"{stem}: no image of that name in {images}" for stem in missing])
        left, right = (
            {stem: side[stem] for stem in only if stem in side} for side in (left, right)
        )
    pairs = pair_up(left, right, images, labels)
    return [replace(pair, bits=bits) for pair in pairs]


def _without_ending(labels: dict[str, Path], images: Mapping[str, Path]) -> dict[str, Path]:
    """``labels`` by their stems less the ending that all share, where none has an image's stem."""
    if labels.keys() & images.keys():
        return labels
    first = next(iter(labels))
    owner = max((stem for stem in images if first.startswith(stem)), key=len, default=first)
    ending = first[len(owner) :]
    # Of frame_10 and frame_20 the 0 is part of a number: they are not labels of frame_1 and 2.
    if not ending or ending[0].isdigit() or not all(stem.endswith(ending) for stem in labels):
        return labels
    return {stem[: -len(ending)]: path for stem, path in labels.items()}


def pair_up(
    left: Mapping[str, Path], right: Mapping[str, Path], images: Path, labels: Path
) -> list[Pair]:
    """Pair the files of ``images`` and of ``labels`` by their keys, in the order of ``left``.

    Raises:
        DataError: files have no partner; all are named.
    """
    alone = [f"{shown(left[s])}: no label of that name in {labels}" for s in left if s not in right]
    alone += [
        f"{shown(right[s])}: no image of that name in {images}" for s in right if s not in left
    ]
    if alone:
        raise BrokenFiles(alone)
    return [Pair(left[s], right[s]) for s in left]


def by_name(
    pairs: Sequence[Pair], only: Sequence[str] | None, without: Sequence[str] | None
) -> list[Pair]:
    """The pairs whose image's file name matches one of ``only`` and none of ``without``.

    Args:
        only, without: patterns such as ``*barcelona*``; None: all, none.

    Raises:
        DataError: none is left.
    """
    kept = [
        pair
        for pair in pairs
        if (only is None or _matches(pair, only)) and not _matches(pair, without or [])
    ]
    if not kept:
        raise DataError(
            f"none of the {len(pairs)} frames is left by only {only} and without {without}"
        )
    return kept


def _matches(pair: Pair, patterns: Sequence[str]) -> bool:
    return any(fnmatch(pair.image.name, pattern) for pattern in patterns)


def read_label(path: Path, classes: int, ignore: int | None) -> np.ndarray:
    """A label image as uint8 [H, W], with ``ignore`` turned into IGNORE.

    Raises:
        DataError: unreadable or in colours, see ``read_ids``; or an id outside the classes.
    """
    label = read_ids(path)
    if ignore is not None:
        label = np.where(label == ignore, IGNORE, label)
    outside = (label >= classes) & (label != IGNORE)
    if outside.any():
        void = "" if ignore is None else f", void {ignore}"
        ids, pixels = np.unique(label[outside]).tolist(), np.count_nonzero(outside)
        raise DataError(
            f"{shown(path)}: ids {ids} are outside the {classes} classes (0 to {classes - 1}"
            f"{void}): {pixels} of {label.size} pixels"
        )
    return label.astype(np.uint8)


def read_pair(pair: Pair, read: LabelReader) -> LabelledFrame:
    """One frame and its labels.

    Raises:
        DataError: a file is missing, unreadable, of another size than its partner, or holds ids
            outside the classes.
    """
    image, label = pair.rgb(), read(pair.label)
    if image.shape[:2] != label.shape:
        turned = (
            "; if the image was turned upright by its EXIF orientation after the labels were "
            "drawn, turn the labels too"
            if image.shape[1::-1] == label.shape
            else "; export the labels in the size of the image"
        )
        raise DataError(
            f"{shown(pair.label)}: labels are {label.shape[1]}x{label.shape[0]}, their image "
            f"{shown(pair.image.name)} is {image.shape[1]}x{image.shape[0]}{turned}"
        )
    return image, label, pair.image.stem


class PairSet(Sequence[LabelledFrame]):
    """Frames and labels of a data set, every file read and checked at once.

    Args:
        pairs: the files. read: reads a label file.
        in_memory: keep what was read; otherwise an item is read again when it is asked for.

    ``seen``: bool [256], which labels occur, IGNORE included.

    Raises:
        DataError: any file cannot be used, see ``read_pair``. All such files are named, so one
            run finds them all.
    """

    def __init__(self, pairs: Sequence[Pair], read: LabelReader, in_memory: bool = True) -> None:
        self.pairs, self.read = pairs, read
        self.seen = np.zeros(256, bool)

        def checked(pair: Pair) -> LabelledFrame | None:
            frame = read_pair(pair, read)
            self.seen[frame[1]] = True
            return frame if in_memory else None

        self.items = each_file(checked, pairs, "frames and labels")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.items[index] or read_pair(self.pairs[index], self.read)
