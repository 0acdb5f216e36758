# SPDX-License-Identifier: Apache-2.0
"""ADE20K and Stanford Background, as small sets in their true formats on disk."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from ctxseg_ros.model.label_groups import read_label_groups
from ctxseg_ros.model.model_file import ClassInfo
from training.data.ade20k import ade20k_pairs, read_ade20k
from training.data.label_sets import LABEL_SETS
from training.data.module import ADE20K, CamVid, Stanford
from training.data.pairs import IGNORE, DataError
from training.data.stanford import read_stanford, stanford_pairs

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).resolve().parents[3] / "config"


@pytest.fixture
def ade20k(tmp_path, street_frames):
    """ADEChallengeData2016 with 6 + 2 images; ids by brightness, 0 to 150."""
    root = tmp_path / "ADEChallengeData2016"
    for split, name, count in (("training", "train", 6), ("validation", "val", 2)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for i in range(count):
            frame = street_frames[i][: 120 + 4 * i, :160]
            ids = (street_frames[i][: 120 + 4 * i, :160, 1] * (150 / 255)).round().astype(np.uint8)
            stem = f"ADE_{name}_{i + 1:08}"
            cv2.imwrite(str(root / "images" / split / f"{stem}.jpg"), frame[..., ::-1])
            cv2.imwrite(str(root / "annotations" / split / f"{stem}.png"), ids)
    return root


@pytest.fixture
def stanford(tmp_path, street_frames):
    """iccv09Data with 11 images; labels by brightness, -1 to 7."""
    root = tmp_path / "iccv09Data"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i in range(11):
        frame = street_frames[i % 6][:60, 10 * i : 10 * i + 80]
        labels = frame[..., 1].astype(int) // 29 - 1
        stem = root / "labels" / f"{47 + i:07}"
        cv2.imwrite(str(root / "images" / f"{47 + i:07}.jpg"), frame[..., ::-1])
        for kind in ("regions", "surfaces", "layers"):
            np.savetxt(f"{stem}.{kind}.txt", labels, "%d")
    (root / "horizons.txt").write_text("0000047 80 60 30\n")
    return root


@pytest.mark.parametrize("name", LABEL_SETS)
def test_every_set_says_what_it_is(name):
    labels = LABEL_SETS[name]
    names = [n for n, _ in labels.classes]
    assert labels.name == name and len(set(names)) == len(names)
    assert all(n == n.strip() for n in names)
    assert all(0 <= part <= 255 for _, colour in labels.classes for part in colour)
    assert labels.origin and "cite" in labels.terms


def test_ade20k_has_the_benchmarks_names_and_colours():
    classes = LABEL_SETS["ade20k"].classes
    assert len(classes) == 150
    # objectInfo150.txt counts from 1.
    known = {1: "wall", 9: "windowpane", 13: "person", 90: "television receiver"}
    known |= {96: "bannister", 117: "minibike", 131: "screen", 142: "crt screen", 150: "flag"}
    assert {number: classes[number - 1][0] for number in known} == known
    colours = {"wall": (120, 120, 120), "sky": (6, 230, 230), "person": (150, 5, 61)}
    colours |= {"car": (0, 102, 200), "flag": (92, 0, 255), "tent": (112, 224, 255)}
    assert {name: dict(classes)[name] for name in colours} == colours
    # Only road and skyscraper share one.
    assert len({colour for _, colour in classes}) == 149


def test_the_label_groups_of_the_node_name_these_classes():
    classes = [ClassInfo(i, *item) for i, item in enumerate(LABEL_SETS["ade20k"].classes)]
    assert len(read_label_groups(CONFIG / "label_groups_ade20k.yaml", classes).classes) == 15


def test_ade20k_is_paired_and_shifted(ade20k):
    pairs = ade20k_pairs(ade20k, "train")
    assert [p.image.name for p in pairs] == [f"ADE_train_{i:08}.jpg" for i in range(1, 7)]
    assert all(p.label.stem == p.image.stem for p in pairs)
    assert len(ade20k_pairs(ade20k, "val")) == 2
    ids = cv2.imread(str(pairs[0].label), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read_ade20k(pairs[0].label)[ids > 0], ids[ids > 0] - 1)


def test_every_id_of_ade20k(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.arange(151, dtype=np.uint8)[None])
    assert read_ade20k(Path(path)).tolist() == [[IGNORE, *range(150)]]
    for bad in (151, 255):
        cv2.imwrite(path, np.full((2, 2), bad, np.uint8))
        with pytest.raises(DataError, match=rf"a\.png: ids \[{bad}\] are outside 0 .* to 150"):
            read_ade20k(Path(path))


def test_ade20k_stays_on_disk_and_its_broken_files_are_all_named(ade20k):
    data = ADE20K(str(ade20k), size=(64, 64), batch_size=2, workers=0)
    data.setup("fit")
    assert data.train.items == [None] * 6
    (ade20k / "images" / "training" / "ADE_train_00000002.jpg").write_bytes(b"x")
    broken = ade20k / "annotations" / "training" / "ADE_train_00000005.png"
    cv2.imwrite(str(broken), np.full((136, 160), 200, np.uint8))
    data = ADE20K(str(ade20k), size=(64, 64), batch_size=2, workers=0)
    with pytest.raises(DataError, match=r"(?s)2 file\(s\).*0005\.png: ids.*0002\.jpg: cannot"):
        data.setup("fit")


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_regions_are_read_as_they_were_written(tmp_path_factory, height, width, seed):
    path = tmp_path_factory.mktemp("regions") / "a.regions.txt"
    labels = np.random.default_rng(seed).integers(-2, 8, (height, width))
    path.write_text("\n".join(" ".join(map(str, row)) for row in labels) + "\n")
    read = read_stanford(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, np.where(labels < 0, 255, labels))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("1 2 3\n1 2\n", "columns changed from 3 to 2"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("1 sky\n", "could not convert string 'sky'"),
        ("1 2.5\n", "could not convert string '2.5'"),
        ("1 70000\n", "could not convert string '70000'"),
        ("0 8\n3 9\n", r"ids \[8, 9\] are outside the 8 classes"),
        (b"\xff\xfe\x00", "no rows of integers"),
        (None, "No such file"),
    ],
)
def test_bad_regions_are_refused_by_name(tmp_path, text, cause):
    path = tmp_path / "a.regions.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"(?s)a\.regions\.txt: .*{cause}"):
        read_stanford(path)


def test_stanfords_split_is_every_fifth_image(stanford):
    train, val = stanford_pairs(stanford, "train"), stanford_pairs(stanford, "val")
    assert [p.image.stem for p in val] == ["0000051", "0000056"]
    assert len(train) == 9 and not {p.image for p in train} & {p.image for p in val}
    assert all(p.label.name == f"{p.image.stem}.regions.txt" for p in train + val)


def test_stanfords_broken_files_are_all_named(stanford):
    labels = stanford / "labels"
    (labels / "0000047.regions.txt").write_text("0 1\n2 3\n")
    (labels / "0000048.regions.txt").write_text("9\n")
    (stanford / "images" / "0000049.jpg").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        Stanford(str(stanford), workers=0).setup("fit")
    message = str(caught.value)
    assert message.startswith("3 file(s)")
    assert "47.regions.txt: labels are 2x2, their image 0000047.jpg is 80x60" in message
    assert "0000048.regions.txt: ids [9]" in message and "0000049.jpg: cannot" in message


def test_stanfords_missing_files_are_named(stanford):
    (stanford / "labels" / "0000047.regions.txt").unlink()
    with pytest.raises(DataError, match=r"0000047\.jpg: no label of that name"):
        stanford_pairs(stanford, "train")
    for path in (stanford / "labels").glob("*.regions.txt"):
        path.unlink()
    with pytest.raises(DataError, match=r"labels: no \*\.regions\.txt in it"):
        stanford_pairs(stanford, "train")
    with pytest.raises(DataError, match="images: no such folder"):
        stanford_pairs(stanford / "labels", "train")


class Alone:
    """What the loaders ask of a trainer."""

    world_size, global_rank = 1, 0


@pytest.mark.parametrize(("module", "root"), [(ADE20K, "ade20k"), (Stanford, "stanford")])
def test_batches_of_the_modules(request, module, root):
    data = module(str(request.getfixturevalue(root)), size=(48, 64), batch_size=3, workers=0)
    data.trainer = Alone()
    data.setup("fit")
    classes = len(data.labels.classes)
    images, labels, names = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 48, 64) and len(names) == 3
    assert labels.dtype == torch.int64 and labels.shape == (3, 48, 64)
    assert set(labels.unique().tolist()) <= {*range(classes), IGNORE}
    scored = list(data.val_dataloader())
    assert [i.shape[1:] for i, _, _ in scored] == [(3, 48, 64)] * len(scored) and len(scored) == 2
    assert scored[0][1].shape[1:] != (48, 64)


@pytest.mark.parametrize("module", [CamVid, ADE20K, Stanford])
def test_every_argument_can_be_set_on_the_command_line(module):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    name = f"training.data.module.{module.__name__}"
    parsed = parser.parse_args(
        [f"--data={name}", "--data.root=x", "--data.size=[32, 64]", "--data.scale=[1, 2]"]
    )
    arguments = parsed.data.init_args.as_dict()
    data = module(**arguments)
    assert data.size == (32, 64) and data.root == Path("x") and arguments["scale"] == (1, 2)
