# SPDX-License-Identifier: Apache-2.0
"""Images paired with label files: found by file stem, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from training.data.files import BrokenFiles, DataError, decoded, each_file, image_files, read_image

#: The label of pixels that neither train nor score, everywhere after the files were read.
IGNORE = 255

#: A label file as uint8 [H, W], IGNORE where there is no class. Raises DataError.
LabelReader = Callable[[Path], np.ndarray]

#: image uint8 [H, W, 3] RGB, label uint8 [H, W] with IGNORE, stem
LabelledFrame = tuple[np.ndarray, np.ndarray, str]


@dataclass(frozen=True)
class Pair:
    """One frame: its image file and its label file."""

    image: Path
    label: Path


def pair_files(images: Path, labels: Path) -> list[Pair]:
    """Pair the image files of two folders by stem, through sub-folders.

    Raises:
        DataError: a folder is missing or empty, or files have no partner; all are named.
    """
    return pair_up(image_files(images), image_files(labels), images, labels)


def pair_up(
    left: Mapping[str, Path], right: Mapping[str, Path], images: Path, labels: Path
) -> list[Pair]:
    """Pair the files of ``images`` and of ``labels`` by their keys, in the order of ``left``.

    Raises:
        DataError: files have no partner; all are named.
    """
    alone = [f"{left[s]}: no label of that name in {labels}" for s in left.keys() - right.keys()]
    alone += [f"{right[s]}: no image of that name in {images}" for s in right.keys() - left.keys()]
    if alone:
        raise BrokenFiles(alone)
    return [Pair(left[s], right[s]) for s in left]


def read_label(path: Path, classes: int, ignore: int | None) -> np.ndarray:
    """A label image as uint8 [H, W], with ``ignore`` turned into IGNORE.

    Raises:
        DataError: unreadable, not one 8-bit channel, or an id outside the classes.
    """
    label = read_ids(path)
    if ignore is not None:
        label = np.where(label == ignore, np.uint8(IGNORE), label)
    outside = sorted(set(np.unique(label).tolist()) - set(range(classes)) - {IGNORE})
    if outside:
        raise DataError(
            f"{path}: ids {outside} are outside the {classes} classes (0 to {classes - 1}"
            f"{'' if ignore is None else f', void {ignore}'})"
        )
    return label


def read_ids(path: Path) -> np.ndarray:
    """A label image as uint8 [H, W], as it is.

    Raises:
        DataError: unreadable, see ``decoded``, or not one 8-bit channel.
    """
    label = decoded(path, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(
            f"{path}: labels must be one 8-bit channel, not {label.dtype} {list(label.shape)}"
        )
    return label


def read_pair(pair: Pair, read: LabelReader) -> LabelledFrame:
    """One frame and its labels.

    Raises:
        DataError: a file is missing, unreadable, of another size than its partner, or holds ids
            outside the classes.
    """
    image, label = read_image(pair.image), read(pair.label)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{pair.label}: labels are {label.shape[1]}x{label.shape[0]}, their image "
            f"{pair.image.name} is {image.shape[1]}x{image.shape[0]}"
        )
    return image, label, pair.image.stem


class PairSet(Sequence[LabelledFrame]):
    """Frames and labels of a data set, every file read and checked at once.

    Args:
        pairs: the files. read: reads a label file.
        in_memory: keep what was read; otherwise an item is read again when it is asked for.

    Raises:
        DataError: any file cannot be used, see ``read_pair``. All such files are named, so one
            run finds them all.
    """

    def __init__(self, pairs: Sequence[Pair], read: LabelReader, in_memory: bool = True) -> None:
        self.pairs, self.read = pairs, read

        def checked(pair: Pair) -> LabelledFrame | None:
            frame = read_pair(pair, read)
            return frame if in_memory else None

        self.items = each_file(checked, pairs, "frames and labels")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.items[index] or read_pair(self.pairs[index], self.read)
