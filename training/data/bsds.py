# SPDX-License-Identifier: Apache-2.0
"""BSDS500: natural images, each with several segmentations by hand (Arbelaez et al. 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray

from training.data.files import DataError, each_file, files_below, image_files
from training.data.pairs import Pair, pair_up
from training.places import expanded

SPLITS = ("train", "val", "test")


def bsds_pairs(root: str | Path, split: str) -> list[Pair]:
    """Images of a split and their ``.mat`` files, in either layout that BSDS500 has.

    Args:
        root: a folder with ``val/images`` and ``val/groundTruth``, or, as published, with
            ``images/val`` and ``groundTruth/val``; likewise for the other splits.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DataError: neither layout is there, or files have no partner.
    """
    root = expanded(root)
    if (root / "images" / split).is_dir():
        return pair_truths(root / "images" / split, root / "groundTruth" / split)
    return pair_truths(root / split / "images", root / split / "groundTruth")


def pair_truths(images: Path, truths: Path) -> list[Pair]:
    """Pair images with the ``.mat`` files of another folder by stem, through sub-folders.

    Raises:
        DataError: a folder is missing or empty, or files have no partner; all are named.
    """
    left = image_files(images)
    found = files_below(truths, {".mat"})
    right = {path.relative_to(truths).with_suffix("").as_posix(): path for path in found}
    if not right:
        raise DataError(f"{truths}: no .mat files in it")
    return pair_up(left, right, images, truths)


def read_truths(path: Path) -> list[NDArray[np.int32]]:
    """The segmentations of one image, int32 [H, W] each, region ids from 1.

    Raises:
        DataError: unreadable, or ``groundTruth`` is no cell of structs with a ``Segmentation``
            of whole numbers from 1, all of one size.
    """
    try:
        cells = scipy.io.loadmat(str(path)).get("groundTruth")
    except Exception as error:  # a damaged file raises whatever the reader stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a .mat file: {reason}") from error
    if cells is None:
        raise DataError(f"{path}: no groundTruth in it")
    if cells.dtype != object or not cells.size:
        raise DataError(f"{path}: groundTruth is no cell of segmentations")
    truths = [_segmentation(path, i, cell) for i, cell in enumerate(cells.flat, 1)]
    sizes = sorted({f"{t.shape[1]}x{t.shape[0]}" for t in truths})
    if len(sizes) > 1:
        raise DataError(f"{path}: its segmentations have different sizes: {', '.join(sizes)}")
    return truths


def _segmentation(path: Path, number: int, cell: NDArray[np.void]) -> NDArray[np.int32]:
    where = f"{path}: groundTruth{{{number}}}"
    if not cell.dtype.names or "Segmentation" not in cell.dtype.names or cell.size != 1:
        raise DataError(f"{where} is no struct with a Segmentation")
    values = cell["Segmentation"].item()
    if values.ndim != 2 or not values.size or values.dtype.kind not in "uif":
        raise DataError(f"{where}.Segmentation is no matrix: {values.dtype} {list(values.shape)}")
    in_range = (values >= 1) & (values < 2**31)
    if not in_range.all() or (values.astype(np.int32) != values).any():
        raise DataError(f"{where}.Segmentation must hold whole numbers from 1")
    return values.astype(np.int32)


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Read every image and truth once.

    Raises:
        DataError: any is unreadable or malformed, or the sizes differ. All such files are named.
    """
    each_file(_check_pair, pairs, "images and segmentations")


def _check_pair(pair: Pair) -> None:
    height, width = pair.rgb().shape[:2]
    truth = read_truths(pair.label)[0]
    if truth.shape != (height, width):
        raise DataError(
            f"{pair.label}: its segmentations are {truth.shape[1]}x{truth.shape[0]}, their image "
            f"{pair.image.name} is {width}x{height}"
        )


def check(root: str | Path) -> None:
    """Read every file of the splits that are there.

    Raises:
        DataError: there is no split, or files are missing or broken. All such files are named.
    """
    root = expanded(root)
    splits = [s for s in SPLITS if (root / s).is_dir() or (root / "images" / s).is_dir()]
    if not splits:
        raise DataError(f"{root}: no train, val or test of BSDS500 in it")
    check_pairs([pair for split in splits for pair in bsds_pairs(root, split)])
