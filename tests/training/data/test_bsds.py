# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from training.data.bsds import bsds_pairs, check, check_pairs, pair_truths, read_truths
from training.data.files import DataError
from training.data.pairs import Pair

TRUTHS = [np.repeat([[1, 2, 2]], 4, 0), np.repeat([[1, 1, 3, 2]], 3, 0).T]


def write_truths(path: Path, truths, kind=np.uint16) -> None:
    """A file as BSDS500's: a 1xN cell of structs with Segmentation and Boundaries."""
    cell = np.empty((1, len(truths)), object)
    for i, truth in enumerate(truths):
        cell[0, i] = {"Segmentation": np.asarray(truth, kind), "Boundaries": np.asarray(truth) > 1}
    scipy.io.savemat(path, {"groundTruth": cell})


def write_image(path: Path, height: int = 4, width: int = 3) -> None:
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


@pytest.fixture
def root(tmp_path):
    """Two splits of two images of 4x3."""
    for split in ("train", "val"):
        for part in ("images", "groundTruth"):
            (tmp_path / split / part).mkdir(parents=True)
        for name in ("12", "34"):
            write_image(tmp_path / split / "images" / f"{name}.png")
            write_truths(tmp_path / split / "groundTruth" / f"{name}.mat", TRUTHS)
    return tmp_path


def test_files_of_a_mac_are_left_out(root):
    for path in (*root.rglob("*.png"), *root.rglob("*.mat")):
        (path.parent / f"._{path.name}").write_bytes(b"Mac OS X")
    check(root)


@pytest.mark.parametrize("kind", [np.uint16, np.float64])
def test_segmentations_come_back(tmp_path, kind):
    write_truths(tmp_path / "a.mat", TRUTHS, kind)
    found = read_truths(tmp_path / "a.mat")
    assert [t.dtype for t in found] == [np.int32, np.int32]
    assert [t.tolist() for t in found] == [t.tolist() for t in TRUTHS]


def test_both_layouts(root, tmp_path_factory):
    published = tmp_path_factory.mktemp("published")
    for part in ("images", "groundTruth"):
        (published / part).mkdir()
        (root / "val" / part).rename(published / part / "val")
    assert [p.label.name for p in bsds_pairs(root, "train")] == ["12.mat", "34.mat"]
    assert [p.image.name for p in bsds_pairs(published, "val")] == ["12.png", "34.png"]
    check(published)


def test_a_good_set_passes_the_check(root):
    check(root)


def struct(**fields):
    cell = np.empty((1, 1), object)
    cell[0, 0] = fields
    return cell


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a .mat file"),
        (b"MATLAB 5.0 but cut short", "cannot be read as a .mat file"),
        ({"truth": np.ones((4, 3))}, "no groundTruth in it"),
        ({"groundTruth": np.ones((4, 3))}, "groundTruth is no cell"),
        ({"groundTruth": np.empty((1, 0), object)}, "groundTruth is no cell"),
        ({"groundTruth": struct(Boundaries=np.ones((4, 3)))}, "{1} is no struct with a Seg"),
        ({"groundTruth": struct(Segmentation="text")}, "{1}.Segmentation is no matrix"),
        ({"groundTruth": struct(Segmentation=np.ones((4, 3, 2)))}, "{1}.Segmentation is no mat"),
        ({"groundTruth": struct(Segmentation=np.full((4, 3), 1.5))}, "whole numbers from 1"),
        ({"groundTruth": struct(Segmentation=np.full((4, 3), np.nan))}, "whole numbers from 1"),
        ({"groundTruth": struct(Segmentation=np.zeros((4, 3)))}, "whole numbers from 1"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_files_are_named(tmp_path, content, said):
    path = tmp_path / "bad.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(DataError) as refused:
        read_truths(path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)


def test_segmentations_of_one_file_have_one_size(tmp_path):
    write_truths(tmp_path / "a.mat", [TRUTHS[0], TRUTHS[0][:3]])
    with pytest.raises(DataError, match=r"different sizes: 3x3, 3x4"):
        read_truths(tmp_path / "a.mat")


def test_check_names_every_broken_file(root):
    truths = root / "val" / "groundTruth"
    truths.joinpath("12.mat").write_bytes(b"no")
    write_image(root / "val" / "images" / "34.png", 3, 4)
    (root / "train" / "images" / "12.png").write_bytes(b"no")
    with pytest.raises(DataError) as refused:
        check(root)
    said = str(refused.value)
    assert "3 file(s)" in said
    assert f"{truths / '12.mat'}: cannot be read as a .mat" in said
    assert f"{truths / '34.mat'}: its segmentations are 3x4, their image 34.png is 4x3" in said
    assert f"{root / 'train' / 'images' / '12.png'}: cannot be read as an image" in said


def test_a_truth_that_is_not_there(root):
    with pytest.raises(DataError, match=r"12\.mat: cannot be read as a \.mat file"):
        check_pairs([Pair(root / "val/images/12.png", root / "none/12.mat")])


def test_missing_partners_and_folders(root, tmp_path_factory):
    images, truths = root / "val" / "images", root / "val" / "groundTruth"
    empty = tmp_path_factory.mktemp("empty")
    for left, right, said in (
        (empty, truths, "no image files"),
        (images, empty, "no .mat files"),
        (images, empty / "none", "no such folder"),
        (empty / "none", truths, "no such folder"),
    ):
        with pytest.raises(DataError, match=said):
            pair_truths(left, right)
    (images / "12.png").unlink()
    (truths / "34.mat").unlink()
    with pytest.raises(DataError) as refused:
        pair_truths(images, truths)
    assert "12.mat: no image of that name" in str(refused.value)
    assert "34.png: no label of that name" in str(refused.value)
    with pytest.raises(DataError, match="no train, val or test"):
        check(empty)
