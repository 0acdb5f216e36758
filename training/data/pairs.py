# SPDX-License-Identifier: Apache-2.0
"""Images paired with label images: found by file stem, checked one by one, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

#: The label of pixels that neither train nor score, everywhere after the files were read.
IGNORE = 255

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}


class DataError(ValueError):
    """A data set that cannot be used as it is. The message names every file at fault."""


@dataclass(frozen=True)
class Pair:
    """One frame: its image file and its label file."""

    image: Path
    label: Path


def image_files(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their path within it, less the suffix, sorted.

    Raises:
        DataError: there is no such folder, it holds no image, or two files share a stem.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise DataError(f"{path} and {found[stem]} share a stem: which is meant?")
            found[stem] = path
    if not found:
        raise DataError(f"{folder}: no image files in it")
    return found


def pair_files(images: Path, labels: Path) -> list[Pair]:
    """Pair the files of two folders by stem, through sub-folders.

    Raises:
        DataError: a folder is missing or empty, or files have no partner; all are named.
    """
    left, right = image_files(images), image_files(labels)
    alone = [f"{left[s]}: no label of that name in {labels}" for s in left.keys() - right.keys()]
    alone += [f"{right[s]}: no image of that name in {images}" for s in right.keys() - left.keys()]
    if alone:
        raise DataError(_several(alone))
    return [Pair(left[s], right[s]) for s in left]


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3], RGB; grey and alpha are converted.

    Raises:
        DataError: the file is missing or unreadable.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: cannot be read as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path, classes: int, ignore: int | None) -> np.ndarray:
    """A label image as uint8 [H, W], with ``ignore`` turned into IGNORE.

    Raises:
        DataError: unreadable, not one 8-bit channel, or an id outside the classes.
    """
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label is None:
        raise DataError(f"{path}: cannot be read as an image")
    if label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(
            f"{path}: labels must be one 8-bit channel, not {label.dtype} {list(label.shape)}"
        )
    if ignore is not None:
        label = np.where(label == ignore, np.uint8(IGNORE), label)
    outside = sorted(set(np.unique(label).tolist()) - set(range(classes)) - {IGNORE})
    if outside:
        raise DataError(
            f"{path}: ids {outside} are outside the {classes} classes (0 to {classes - 1}"
            f"{'' if ignore is None else f', void {ignore}'})"
        )
    return label


class PairSet(Sequence[tuple[np.ndarray, np.ndarray, str]]):
    """Frames and labels of a data set that fits into memory, read and checked at once.

    Item i is (image uint8 [H, W, 3] RGB, label uint8 [H, W] with IGNORE, stem).

    Raises:
        DataError: any file is missing, unreadable, of another size than its partner, or holds ids
            outside the classes. All such files are named, so one run finds them all.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int, ignore: int | None) -> None:
        self.items: list[tuple[np.ndarray, np.ndarray, str]] = []
        wrong: list[str] = []
        for pair in pairs:
            try:
                image = read_image(pair.image)
                label = read_label(pair.label, classes, ignore)
                if image.shape[:2] != label.shape:
                    raise DataError(
                        f"{pair.label}: labels are {label.shape[1]}x{label.shape[0]}, their image "
                        f"{pair.image.name} is {image.shape[1]}x{image.shape[0]}"
                    )
                self.items.append((image, label, pair.image.stem))
            except DataError as error:
                wrong.append(str(error))
        if wrong:
            raise DataError(_several(wrong))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.items[index]


def _several(lines: list[str]) -> str:
    shown = "\n  ".join(sorted(lines)[:50])
    more = f"\n  ... and {len(lines) - 50} more" if len(lines) > 50 else ""
    return f"{len(lines)} file(s) cannot be used:\n  {shown}{more}"
