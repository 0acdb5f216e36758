# SPDX-License-Identifier: Apache-2.0
import shutil

import cv2
import numpy as np
import pytest
import torch

from training.data.augment import train_transform
from training.data.camvid import VOID, camvid_pairs, read_camvid
from training.data.module import AugmentedFrames, EpochSampler
from training.data.pairs import IGNORE, DataError, PairSet, pair_files, read_label

pytestmark = pytest.mark.slow


@pytest.fixture
def camvid(small_camvid, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(small_camvid, tmp_path / "camvid")


def test_both_layouts_give_the_same_pairs(camvid, tmp_path):
    tutorial = tmp_path / "SegNet"
    shutil.copytree(camvid / "train" / "images", tutorial / "train")
    shutil.copytree(camvid / "train" / "labels", tutorial / "trainannot")
    ours, theirs = camvid_pairs(camvid, "train"), camvid_pairs(tutorial, "train")
    assert [p.image.name for p in ours] == [p.image.name for p in theirs] != []
    assert theirs[0].label.parent.name == "trainannot"


def test_real_camvid_is_whole(data_dir):
    frames = PairSet(camvid_pairs(data_dir / "camvid", "val"), read_camvid)
    assert len(frames) == 101
    image, label, _ = frames[0]
    assert image.shape == (360, 480, 3) and label.shape == (360, 480)
    assert set(np.unique(label)) <= {*range(11), IGNORE}
    # Sky is class 0: where it is labelled, the frame is bright and not red, so RGB is RGB.
    sky = image[label == 0].mean(0)
    assert sky.min() > 150 and sky[2] >= sky[0] - 10


def test_pairs_run_through_sub_folders(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part / "drive").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / part / "drive" / "1.png"), np.zeros((4, 4), np.uint8))
    assert len(pair_files(tmp_path / "images", tmp_path / "labels")) == 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_broken_file_is_named_at_once(camvid, in_memory):
    train = camvid / "train"
    (train / "images" / "000.png").write_bytes(b"no image")
    cv2.imwrite(str(train / "labels" / "001.png"), np.zeros((10, 20), np.uint8))
    cv2.imwrite(str(train / "labels" / "002.png"), np.full((64, 96), 12, np.uint8))
    cv2.imwrite(str(train / "labels" / "003.png"), np.full((64, 96, 3), (1, 2, 3), np.uint8))
    cv2.imwrite(str(train / "labels" / "004.png"), np.full((64, 96), 300, np.uint16))
    with pytest.raises(DataError) as caught:
        PairSet(camvid_pairs(camvid, "train"), read_camvid, in_memory)
    message = str(caught.value)
    assert message.startswith("5 file(s)")
    assert "000.png: cannot be read as an image" in message
    assert "001.png: labels are 20x10, their image 001.png is 96x64" in message
    assert "002.png: CamVid has no id 12 on 6144 pixels; its ids are 0 to 11" in message
    assert "003.png: CamVid has no colour (3, 2, 1) on 6144 pixels" in message
    assert "004.png: CamVid has no id 300 on 6144 pixels" in message


def test_files_without_a_partner_are_named(camvid):
    (camvid / "train" / "labels" / "005.png").unlink()
    (camvid / "train" / "images" / "006.png").unlink()
    with pytest.raises(DataError, match=r"(?s)005.png: no label.*006.png: no image"):
        camvid_pairs(camvid, "train")


@pytest.mark.parametrize("split", ["test", "nowhere"])
def test_missing_folder_is_named(camvid, split):
    with pytest.raises(DataError, match=f"{split}: no such folder"):
        camvid_pairs(camvid, split)


def test_empty_folder_and_ambiguous_stems_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no image files"):
        pair_files(tmp_path / "images", tmp_path / "images")
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(tmp_path / "images" / f"a.{suffix}"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"a\.png and .*a\.jpg"):
        pair_files(tmp_path / "images", tmp_path / "images")


def test_void_becomes_ignore(tmp_path):
    path = tmp_path / "label.png"
    cv2.imwrite(str(path), np.array([[0, 10, 11, 255]], np.uint8))
    assert read_label(path, 11, VOID).tolist() == [[0, 10, IGNORE, IGNORE]]


def test_a_set_that_is_not_kept_reads_its_files_when_asked(camvid):
    pairs = camvid_pairs(camvid, "train")
    kept, lazy = PairSet(pairs, read_camvid), PairSet(pairs, read_camvid, in_memory=False)
    assert len(lazy) == len(kept) == 8 and lazy.items == [None] * 8
    for ours, theirs in zip(lazy, kept, strict=True):
        assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]
    cv2.imwrite(str(pairs[3].label), np.full((64, 96), 7, np.uint8))
    assert (lazy[3][1] == 7).all() and not (kept[3][1] == 7).all()


def augmented(root, seed=0):
    frames = PairSet(camvid_pairs(root, "train"), read_camvid)
    return AugmentedFrames(frames, train_transform((48, 80), (0.5, 2.0), True), seed)


def test_augmentation_depends_on_seed_epoch_and_frame_only(small_camvid):
    frames = augmented(small_camvid)
    image, label, stem = frames[(3, 5)]
    assert image.dtype == torch.uint8 and image.shape == (3, 48, 80)
    assert label.dtype == torch.int64 and label.shape == (48, 80)
    assert stem == "005"
    before = torch.random.get_rng_state()
    torch.rand(100)
    again, _, _ = frames[(3, 5)]
    assert torch.equal(image, again)
    torch.random.set_rng_state(before)
    frames[(3, 5)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(image, frames[(4, 5)][0])
    assert not torch.equal(image, augmented(small_camvid, seed=1)[(3, 5)][0])


def test_augmentation_moves_labels_with_the_image(small_camvid):
    """The labels are a function of brightness, so without jitter they can be read off the image."""
    frames = augmented(small_camvid)
    frames.transform = train_transform((48, 80), (1.0, 2.0), False)
    for epoch in range(4):
        image, label, _ = frames[(epoch, epoch)]
        grey = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
        expected = (grey // 24).clip(0, 10)
        valid = label.numpy() != IGNORE
        # Interpolation and the nearest label differ by about one level at edges.
        assert np.abs(expected[valid].astype(int) - label.numpy()[valid]).mean() < 0.6


def test_what_lies_outside_a_frame_is_ignored(small_camvid):
    frames = augmented(small_camvid)
    frames.transform = train_transform((64, 96), (0.5, 0.5), False)
    _, label, _ = frames[(0, 0)]
    assert (label == IGNORE).float().mean() >= 0.75


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_batches_of_one(small_camvid, world):
    frames = augmented(small_camvid)

    def epoch(count, rank):
        sampler = EpochSampler(frames, count, rank, seed=7, drop_last=True)
        sampler.set_epoch(5)
        return list(sampler)

    single = epoch(1, 0)
    assert sorted(single) == [(5, i) for i in range(8)]
    shares = [epoch(world, rank) for rank in range(world)]
    # Process r takes every world-th frame, so the first batches together are the first batch.
    assert [key for keys in zip(*shares, strict=True) for key in keys] == single
