# SPDX-License-Identifier: Apache-2.0
"""One's own labels: a folder of images, one of masks, and a class list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ctxseg_ros.image.image_file import ALL_BITS
from training.data.class_list_file import read_class_list
from training.data.evenly import evenly
from training.data.files import DataError, image_files
from training.data.label_files import LABEL_SUFFIXES
from training.data.label_sets import LABEL_SETS, LabelSet
from training.data.pairs import Pair, pair_files, pair_up
from training.places import expanded

#: The name that own labels have among the label sets.
OWN = "own"

CLASSES_HELP = f"class list of the labels, or one of {', '.join(LABEL_SETS)}"

_IMAGES = ("images", "JPEGImages", "imgs", "img")
_MASKS = (
    "labels",
    "masks",
    "annotations",
    "SegmentationClass",
    "SegmentationClassPNG",
    "masks_machine",
    "label",
    "mask",
)
_MASK = "_mask"
_BESIDE = ("_labels", "_masks", "annot")
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


def own_label_set(classes: str | Path, val_share: float = 0.2, bits: int = ALL_BITS) -> LabelSet:
    """The label set of a class list. Arguments and errors: see ``OwnLabels``."""
    listed = read_class_list(classes)
    return LabelSet(
        OWN,
        listed.classes,
        "own labels",
        "those of the data set's owner",
        partial(own_pairs, val_share=val_share, bits=bits),
        listed.read,
        in_memory=False,
    )


def find_label_set(classes: str) -> LabelSet:
    """A label set by its name, a key of LABEL_SETS, or by the file of its class list.

    Raises:
        DataError: it is neither, or the class list cannot be used.
    """
    if classes in LABEL_SETS:
        return LABEL_SETS[classes]
    if not Path(classes).suffix:
        raise DataError(
            f"no label set {classes!r}: give {', '.join(LABEL_SETS)}, or the file of a class list"
        )
    return own_label_set(classes)


def check_seen(names: Sequence[str], seen: np.ndarray, root: str | Path) -> list[str]:
    """The names of the classes that no mask has.

    Args:
        names: of the classes. seen: bool [256], which labels the masks have.

    Raises:
        DataError: the masks have fewer than two classes, although the list has more.
    """
    there = [name for name, is_seen in zip(names, seen, strict=False) if is_seen]
    if len(there) < 2 <= len(names):
        what = f"every labelled pixel is {there[0]!r}" if there else "no pixel is labelled"
        raise DataError(
            f"{root}: {what} in all training masks, so there is nothing to learn; if masks hold 0 "
            "and 255, give the class of 255 the id 255 or the colour [255, 255, 255]"
        )
    return [name for name in names if name not in there]


def own_pairs(
    root: str | Path, split: str, val_share: float = 0.2, bits: int = ALL_BITS
) -> list[Pair]:
    """Image and label files of a split.

    Args:
        root: a folder with ``images`` (or JPEGImages, imgs, img) and ``labels`` (or masks,
            annotations, SegmentationClass, SegmentationClassPNG, masks_machine, label, mask), in
            upper or lower case. Below both, or above both, there may be the folders ``train`` and
            ``val`` (or training; valid, validation); or they are ``train`` and ``train_labels`` (or
            train_masks, trainannot), likewise for ``val``; or ``ImageSets/Segmentation`` has
            ``train.txt`` and ``val.txt`` with the names of the images (PASCAL VOC). Images and
            masks may also be in one folder, ``X.jpg`` and ``X_mask.png`` (Roboflow). Without a
            division, ``val_share`` of the
            images are for validation, evenly spread over their names. Frames of one video look
            alike: give those that are to validate a folder of their own.
        split: ``train`` or ``val``.
        val_share: above 0, below 1.
        bits: that images of 16 bits use, 8 to 16.

    Raises:
        DataError: a folder is missing or there are two for one thing, an image has no label, or
            a label no image.
    """
    root = expanded(root)
    if not 0 < val_share < 1:
        raise DataError(f"val_share is {val_share}: give a share above 0 and below 1")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (beside := _beside(root, split)) is not None:
        return pair_files(*beside, bits)
    above = _split_folder(root, split)
    if (pairs := _in_one_folder(above or root, bits)) is not None:
        return pairs if above else _divided(pairs, split, val_share, root)
    images, masks = (_one_of(above or root, names) for names in (_IMAGES, _MASKS))
    if above is None and (below := _split_folder(images, split)) is not None:
        masks_below = _split_folder(masks, split)
        if masks_below is None:
            raise DataError(f"{masks}: no folder {' or '.join(_SPLITS[split])}, as in {images}")
        return pair_files(below, masks_below, bits)
    if above is None and (names := _listed(root, split)) is not None:
        return pair_files(images, masks, bits, names)
    pairs = pair_files(images, masks, bits)
    return pairs if above else _divided(pairs, split, val_share, images)


def _beside(root: Path, split: str) -> tuple[Path, Path] | None:
    """Folders such as ``train`` and ``train_labels``."""
    folders = _folders(root)
    for name in _SPLITS[split]:
        for ending in _BESIDE:
            if name in folders and f"{name}{ending}".lower() in folders:
                return folders[name], folders[f"{name}{ending}".lower()]
    return None


def _in_one_folder(folder: Path, bits: int) -> list[Pair] | None:
    """The pairs of a folder with images and masks; None where it is not such a folder."""
    if any(name.lower() in _folders(folder) for name in _IMAGES):
        return None
    if not any(path.stem.endswith(_MASK) for path in folder.iterdir() if path.is_file()):
        return None
    files = image_files(folder, LABEL_SUFFIXES)
    masks = {s.removesuffix(_MASK): path for s, path in files.items() if s.endswith(_MASK)}
    images = {s: path for s, path in files.items() if not s.endswith(_MASK)}
    return [replace(pair, bits=bits) for pair in pair_up(images, masks, folder, folder)]


def _listed(root: Path, split: str) -> list[str] | None:
    """The names of a split's images by the lists of PASCAL VOC; None where they are not there."""
    lists = {name: root / "ImageSets" / "Segmentation" / f"{name}.txt" for name in _SPLITS}
    if not all(path.is_file() for path in lists.values()):
        return None
    try:
        return lists[split].read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{lists[split]}: cannot be read as a list of names ({error})") from error


def _split_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split; None where the folder is not divided.

    Raises DataError where the other split has one and this has none.
    """
    folders = _folders(folder)
    found = {
        name: next((folders[each] for each in names if each in folders), None)
        for name, names in _SPLITS.items()
    }
    if any(found.values()) and found[split] is None:
        (there,) = filter(None, found.values())
        raise DataError(f"{folder}: no folder {' or '.join(_SPLITS[split])} beside {there.name}")
    return found[split]


def _folders(root: Path) -> dict[str, Path]:
    """The folders in a folder by their names in lower case."""
    return {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}


def _one_of(root: Path, names: tuple[str, ...]) -> Path:
    folders = _folders(root)
    found = [folders[name.lower()] for name in names if name.lower() in folders]
    if len(found) != 1:
        there = f"both {found[0].name} and {found[1].name}" if found else "none of the folders"
        choice = "keep one of them" if found else ", ".join(names)
        raise DataError(f"{root}: it has {there}: {choice}")
    return found[0]


def _divided(pairs: list[Pair], split: str, val_share: float, images: Path) -> list[Pair]:
    if len(pairs) < 2:
        raise DataError(f"{images}: one image; training and validation need one each")
    count = min(max(1, round(val_share * len(pairs))), len(pairs) - 1)
    chosen = set(evenly(len(pairs), count, middles=True))
    return [pair for i, pair in enumerate(pairs) if (i in chosen) == (split == "val")]
