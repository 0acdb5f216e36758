# SPDX-License-Identifier: Apache-2.0
"""Stanford Background: 8 classes of outdoor scenes, 715 images (Gould et al. 2009)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data.files import DataError, files_below, image_files
from training.data.label_files import IGNORE
from training.data.pairs import Pair, pair_up
from training.places import expanded

#: Name and colour (RGB) of the classes, by label. The data set sets no colours: where CamVid has
#: the class these are CamVid's. A negative label in the files is unknown.
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (128, 128, 128)),
    ("tree", (128, 128, 0)),
    ("road", (128, 64, 128)),
    ("grass", (0, 160, 0)),
    ("water", (0, 128, 192)),
    ("building", (128, 0, 0)),
    ("mountain", (160, 96, 32)),
    ("foreground object", (64, 0, 128)),
)

ORIGIN = "Stanford Background, four fifths of its 715 images (Gould et al. 2009)"
TERMS = "Stanford Background: research use, cite Gould et al. 2009"

_SUFFIX = ".regions.txt"


def stanford_pairs(root: str | Path, split: str) -> list[Pair]:
    """Image and label files of a split.

    The data set has none of its own: published figures are means over five random ones of 572
    and 143 images. Here every fifth image, in the order of their names, is in ``val``: 143 too.

    Args:
        root: the folder iccv09Data, with ``images/NAME.jpg`` and ``labels/NAME.regions.txt``.
        split: ``train`` or ``val``.

    Raises:
        DataError: a folder is missing, or an image has no label, or a label no image.
    """
    root = expanded(root)
    images, labels = root / "images", root / "labels"
    files = image_files(images)
    found = files_below(labels, {".txt"})
    regions = {p.name.removesuffix(_SUFFIX): p for p in found if p.name.endswith(_SUFFIX)}
    if not regions:
        raise DataError(f"{labels}: no *{_SUFFIX} in it")
    pairs = pair_up(files, regions, images, labels)
    return [pair for i, pair in enumerate(pairs) if (i % 5 == 4) == (split == "val")]


def read_stanford(path: Path) -> np.ndarray:
    """A regions file, rows of integers as text, as uint8 [H, W], unknown as IGNORE.

    Raises:
        DataError: missing, empty, not integers, rows of different lengths, or an id above 7.
    """
    try:
        lines = path.read_text("ascii").split("\n")
        if not any(map(str.strip, lines)):
            raise ValueError("the file is empty")
        ids = np.loadtxt(lines, np.int16, comments=None, ndmin=2)
    except (OSError, ValueError) as error:
        reason = str(error).partition(";")[0]
        raise DataError(f"{path}: no rows of integers of equal length ({reason})") from error
    if ids.max() >= len(CLASSES):
        outside = np.unique(ids[ids >= len(CLASSES)]).tolist()
        raise DataError(
            f"{path}: ids {outside} are outside the {len(CLASSES)} classes (0 to "
            f"{len(CLASSES) - 1}, negative: unknown)"
        )
    return np.where(ids < 0, IGNORE, ids).astype(np.uint8)
