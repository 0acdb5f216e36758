# SPDX-License-Identifier: Apache-2.0
"""One's own images, masks and class list: layouts, training, scores, the exported file."""

import json
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.model.model_file import read_model_info
from tests.training.conftest import ROOT, SMALL_VIT
from training.__main__ import main as train
from training.data.__main__ import main as check
from training.data.class_list_file import read_class_list
from training.data.files import DataError
from training.data.frames import open_frames
from training.data.module import OwnLabels
from training.data.own import find_label_set, own_pairs
from training.data.pairs import Pair, read_pair
from training.evaluation import evaluate
from training.export import checkpoint as export

pytestmark = pytest.mark.slow

#: Two colours are one class, and black is ignored.
CLASSES = """\
- {name: dark, colours: [[128, 0, 0], [0, 0, 128]]}
- {name: middle, colour: [64, 128, 64]}
- {name: bright, colour: [200, 200, 0]}
- {name: various, colour: [0, 0, 0], ignore: true}
"""
COLOURS = np.array([(128, 0, 0), (0, 0, 128), (64, 128, 64), (200, 200, 0)], np.uint8)


def write_mask(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])


@pytest.fixture(scope="session")
def own_data(tmp_path_factory, street_frames) -> Path:
    """Ten frames, 64x96, in RGB masks by brightness; one strip is black."""
    root = tmp_path_factory.mktemp("own")
    (root / "images").mkdir()
    for i in range(10):
        image = cv2.resize(street_frames[i % 6][:, 20 * i : 20 * i + 300], (96, 64))
        mask = COLOURS[cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 64]
        mask[:, :4] = 0
        cv2.imwrite(str(root / "images" / f"{i}.jpg"), image[..., ::-1])
        write_mask(root / "masks" / f"{i}_mask.png", mask)
    (root / "classes.yaml").write_text(CLASSES)
    return root


@pytest.fixture
def own(own_data, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(own_data, tmp_path / "own")


def stems(root: Path, split: str) -> list[str]:
    return [pair.image.stem for pair in own_pairs(root, split)]


def test_a_folder_without_split_is_divided_evenly(own):
    assert stems(own, "val") == ["2", "7"]
    assert stems(own, "train") == ["0", "1", "3", "4", "5", "6", "8", "9"]
    assert [p.label.name for p in own_pairs(own, "val")] == ["2_mask.png", "7_mask.png"]


@given(st.integers(2, 40), st.floats(0.001, 0.999))
def test_every_frame_is_in_one_split_and_neither_is_empty(tmp_path_factory, count, share):
    root = tmp_path_factory.mktemp("split")
    for part in ("images", "labels"):
        (root / part).mkdir()
        for i in range(count):
            (root / part / f"{i}.png").touch()
    train, val = (own_pairs(root, split, share) for split in ("train", "val"))
    assert train and val and len({p.image for p in train + val}) == count == len(train + val)
    assert abs(len(val) - share * count) <= 1


@pytest.mark.parametrize("masks", ["labels", "masks", "annotations", "SegmentationClass"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
@pytest.mark.parametrize("above", [True, False])
def test_folders_divide_the_frames(tmp_path, masks, val, above):
    for split, stem in (("train", "a"), (val, "b"), ("test", "c")):
        for part in ("images", masks):
            folder = tmp_path / split / part if above else tmp_path / part / split
            folder.mkdir(parents=True)
            (folder / f"{stem}.png").touch()
    assert stems(tmp_path, "train") == ["a"] and stems(tmp_path, "val") == ["b"]


@pytest.mark.parametrize("ending", ["_labels", "_masks", "annot"])
def test_folders_of_masks_beside_those_of_images(tmp_path, ending):
    for split, stem in (("train", "a"), ("val", "b")):
        for folder, name in (
            (tmp_path / split, stem),
            (tmp_path / f"{split}{ending}", f"{stem}_L"),
        ):
            folder.mkdir()
            (folder / f"{name}.png").touch()
    assert stems(tmp_path, "train") == ["a"] and stems(tmp_path, "val") == ["b"]


@pytest.mark.parametrize(
    "folders", [("Images", "Masks"), ("IMG", "masks_machine"), ("JpegImages", "segmentationclass")]
)
@pytest.mark.parametrize("split", ["", "Train", "VALID"])
def test_the_case_of_folders_does_not_matter(tmp_path, folders, split):
    """Windows and macOS take Images and images for one folder."""
    for i in range(2):
        for folder, suffix in zip(folders, (".JPG", ".PNG"), strict=True):
            write_mask(tmp_path / split / folder / f"{i}{suffix}", np.zeros((4, 4, 3), np.uint8))
    assert len(own_pairs(tmp_path, "val" if split == "VALID" else "train")) == (2 if split else 1)


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_that_a_mac_wrote_are_the_same_name(tmp_path, forms):
    for folder, form in zip(("images", "masks"), forms, strict=True):
        for name in ("Stra\xdfe \xfc", "\xe9t\xe9", "\ud55c"):
            stem = unicodedata.normalize(form, name)
            write_mask(tmp_path / folder / f"{stem}.png", np.zeros((4, 4, 3), np.uint8))
    assert len(own_pairs(tmp_path, "train") + own_pairs(tmp_path, "val")) == 3


@pytest.mark.parametrize("split", ["", "train", "valid"])
def test_images_and_masks_in_one_folder(tmp_path, split):
    """As Roboflow exports them; a mask without image is named."""
    folder = tmp_path / split
    for i in range(3):
        for name in (f"a{i}_jpg.rf.1c{i}.jpg", f"a{i}_jpg.rf.1c{i}_mask.png"):
            write_mask(folder / name, np.zeros((4, 4, 3), np.uint8))
    (folder / "_classes.csv").write_text("Pixel Value, Class\n0, a\n1, b\n")
    pairs = own_pairs(tmp_path, "val" if split == "valid" else "train")
    assert len(pairs) == (3 if split else 2)
    assert all(pair.label.name == f"{pair.image.stem}_mask.png" for pair in pairs)
    pairs[0].image.unlink()
    with pytest.raises(DataError, match=f"{pairs[0].label.name}: no image"):
        own_pairs(tmp_path, "val" if split == "valid" else "train")


def test_a_stray_picture_beside_the_folders_does_not_matter(own):
    shutil.copy(own / "masks" / "1_mask.png", own / "preview_mask.png")
    assert len(own_pairs(own, "train")) == 8


def test_the_lists_of_pascal_voc_divide_its_images(tmp_path):
    """Most of its images have no mask."""
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for i in range(6):
        write_mask(tmp_path / "JPEGImages" / f"2007_{i}.jpg", np.zeros((4, 4, 3), np.uint8))
        if i in (1, 3, 4):
            write_mask(tmp_path / "SegmentationClass" / f"2007_{i}.png", np.zeros((4, 4, 3)))
    (lists / "train.txt").write_text("2007_3\n2007_1\n")
    (lists / "val.txt").write_text("2007_4\n")
    splits = {s: [p.image.stem for p in own_pairs(tmp_path, s)] for s in ("train", "val")}
    assert splits == {"train": ["2007_3", "2007_1"], "val": ["2007_4"]}
    (lists / "val.txt").write_text("2007_4\n2007_5\n")
    with pytest.raises(DataError, match=r"2007_5.jpg: no label"):
        own_pairs(tmp_path, "val")
    (lists / "val.txt").write_text("2007_9\n")
    with pytest.raises(DataError, match="2007_9: no image"):
        own_pairs(tmp_path, "val")


def test_a_number_is_not_the_beginning_of_another(tmp_path):
    """frame_10 is not the label of frame_1, although all labels end in 0."""
    for i in (1, 2, 3):
        write_mask(tmp_path / "images" / f"frame_{i}.png", np.zeros((4, 4, 3), np.uint8))
        write_mask(tmp_path / "masks" / f"frame_{10 * i}.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"frame_1.png: no label"):
        own_pairs(tmp_path, "train")


def test_home_is_the_home_folder(own, monkeypatch):
    monkeypatch.setenv("HOME", str(own.parent))
    assert len(own_pairs("~/own", "train")) == 8
    assert find_label_set("~/own/classes.yaml").classes
    assert len(open_frames("~/own/images")) == 10
    with pytest.raises(DataError, match="~nobody_has_this_name"):
        own_pairs("~nobody_has_this_name/own", "train")


@pytest.mark.parametrize(
    ("size", "fix"), [((96, 64), "EXIF"), ((32, 48), "size of the image"), ((64, 95), "size")]
)
def test_masks_of_another_size_are_refused_with_a_fix(own, size, fix):
    write_mask(own / "masks" / "3_mask.png", np.zeros((*size, 3), np.uint8))
    pair = Pair(own / "images" / "3.jpg", own / "masks" / "3_mask.png")
    with pytest.raises(DataError, match=f"3_mask.png: labels are {size[1]}x{size[0]}.*{fix}"):
        read_pair(pair, read_class_list(own / "classes.yaml").read)


def test_folders_that_are_missing_or_doubled_are_named(own):
    (own / "labels").mkdir()
    with pytest.raises(DataError, match="both labels and masks"):
        own_pairs(own, "train")
    (own / "labels").rmdir()
    (own / "images" / "train").mkdir()
    with pytest.raises(DataError, match=r"images: no folder val .*beside train"):
        own_pairs(own, "val")
    (own / "images" / "val").mkdir()
    with pytest.raises(DataError, match=r"masks: no folder train"):
        own_pairs(own, "train")
    shutil.rmtree(own / "images")
    with pytest.raises(DataError, match=r"own: it has none of the folders"):
        own_pairs(own, "train")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        own_pairs(own / "nowhere", "train")


def test_files_without_partner_are_all_named(own):
    (own / "masks" / "3_mask.png").unlink()
    (own / "images" / "5.jpg").unlink()
    with pytest.raises(DataError, match=r"(?s)3\.jpg: no label.*5_mask\.png: no image"):
        own_pairs(own, "train")


def test_the_check_shows_the_classes(own, capsys):
    assert check(["labels", str(own), "--classes", str(own / "classes.yaml")]) == 0
    out = capsys.readouterr().out
    assert "3 of 3" in out and "middle" in out and "4.2 %" in out and "various" not in out


def test_bits_of_a_sensor_brighten_the_images(own):
    for path in (own / "images").rglob("*.*"):
        deep = cv2.imread(str(path)).astype(np.uint16) * 16
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), deep)
    frames = [OwnLabels(str(own), str(own / "classes.yaml"), bits=bits) for bits in (16, 12)]
    for data in frames:
        data.setup("fit")
    dark, bright = (data.train[0][0] for data in frames)
    assert dark.max() <= 16 and bright.max() > 200
    with pytest.raises(DataError, match="bits is 7"):
        OwnLabels(str(own), str(own / "classes.yaml"), bits=7)


def test_the_check_names_every_broken_file(own, capsys):
    write_mask(own / "masks" / "1_mask.png", np.full((64, 96, 3), (128, 0, 1), np.uint8))
    write_mask(own / "masks" / "2_mask.png", np.zeros((10, 20, 3), np.uint8))
    image = cv2.imread(str(own / "masks" / "4_mask.png"))
    cv2.imwrite(str(own / "masks" / "4_mask.jpg"), image)
    (own / "masks" / "4_mask.png").unlink()
    (own / "masks" / "7_mask.png").write_bytes(b"x")
    assert check(["labels", str(own), "--classes", str(own / "classes.yaml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    for part in (
        "1_mask.png: ",
        "(128, 0, 1) on 6144 pixels (did you mean dark, (128, 0, 0)?)",
        "2_mask.png: labels are 20x10",
        "4_mask.jpg: labels in a JPEG",
        "7_mask.png: cannot be read",
        "4 broken",
    ):
        assert any(part in line for line in lines), part


def test_the_check_names_a_file_without_partner_once(own, capsys):
    (own / "masks" / "3_mask.png").unlink()
    assert check(["labels", str(own), "--classes", str(own / "classes.yaml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "3.jpg: no label" in lines[0]


def test_masks_of_one_class_are_refused(own):
    """0 and 255, with names alone: the second class would be void everywhere."""
    for path in (own / "masks").iterdir():
        mask = np.zeros((64, 96), np.uint8)
        mask[20:40] = 255
        cv2.imwrite(str(path), mask)
    (own / "classes.txt").write_text("background\ncrack\n")
    data = OwnLabels(str(own), str(own / "classes.txt"), workers=0)
    with pytest.raises(DataError, match=r"'background' in all.*255"):
        data.setup("fit")
    (own / "classes.csv").write_text("id,name\n0,background\n255,crack\n")
    OwnLabels(str(own), str(own / "classes.csv"), workers=0).setup("fit")


def test_classes_that_no_mask_has_are_told(own, caplog):
    with (own / "classes.yaml").open("a") as file:
        file.write("- {name: boat, colour: [1, 2, 3]}\n")
    data = OwnLabels(str(own), str(own / "classes.yaml"), workers=0)
    data.setup("fit")
    assert "boat" in caplog.text
    assert data.origin() == "own, own labels, 8 training frames"


def test_a_label_set_by_name_or_file(own):
    assert find_label_set("camvid").name == "camvid"
    assert find_label_set(str(own / "classes.yaml")).classes[1] == ("middle", (64, 128, 64))
    with pytest.raises(DataError, match=r"'camvidd'.*camvid"):
        find_label_set("camvidd")


def test_real_labels_in_colour(data_dir):
    """LabelMeFacade, as its authors give it."""
    root = data_dir / "labelmefacade"
    labels = find_label_set(str(root / "classes.yaml"))
    names = ["building", "car", "door", "pavement", "road", "sky", "vegetation", "window"]
    assert [name for name, _ in labels.classes] == names
    pairs = labels.pairs(root, "val")
    assert len(pairs) == 129 and len(labels.pairs(root, "train")) == 517
    label = labels.read(pairs[0].label)
    assert label.shape == cv2.imread(str(pairs[0].image)).shape[:2]
    assert set(np.unique(label)) <= {*range(8), 255}


SYSTEMS = {
    "segmenter_tiny_own": {
        "model.backbone": SMALL_VIT,
        "model.pretrained": "false",
        "model.decoder_dim": 64,
        "model.subpatch": 2,
    },
    "unet_camvid": {
        "model.width": 0.0625,
        "model.classes": "own",
        "data": "training.data.module.OwnLabels",
    },
}


@pytest.mark.parametrize("recipe", SYSTEMS)
def test_from_masks_to_a_scored_model_file(recipe, own_data, tmp_path, call):
    options = {
        "config": ROOT / "training" / "configs" / f"{recipe}.yaml",
        **SYSTEMS[recipe],
        "model.size": "[64, 96]",
        "data.root": own_data,
        "data.classes": own_data / "classes.yaml",
        "data.size": "[64, 96]",
        "data.batch_size": 4,
        "data.workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.logger": "false",
        "trainer.default_root_dir": tmp_path,
        "trainer.callbacks": "lightning.pytorch.callbacks.ModelCheckpoint",
        "trainer.callbacks.dirpath": tmp_path,
        "trainer.callbacks.filename": "last",
    }
    assert train(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0

    frames = ("--labels", own_data / "masks", "--classes", own_data / "classes.yaml")
    model, scores = tmp_path / "mine.onnx", tmp_path / "scores.json"
    images = own_data / "images"
    checkpoint = tmp_path / "last.ckpt"
    assert call(export, checkpoint, "--out", model, "--frames", images, *frames) == 0
    # In the precision that the file's own score was measured in.
    options = ("--size", "64x96", "--precision", "fp32", "--json", scores)
    assert call(evaluate, "labels", "--model", model, "--images", images, *frames, *options) == 0
    info = read_model_info(model)
    listed = read_class_list(own_data / "classes.yaml").classes
    assert tuple((item.name, item.colour) for item in info.classes) == listed
    assert info.source["data"] == f"{own_data.name}, own labels, 8 training frames"
    result = json.loads(scores.read_text())
    assert list(result["iou"]) == ["dark", "middle", "bright"] and result["images"] == 10
    assert result["miou"] == pytest.approx(info.source["scores"]["miou"], abs=1e-6)


def test_own_classes_need_own_labels(config, small_camvid, capfd):
    assert train(config("run", model__init_args__classes="own")) != 0
    assert "OwnLabels" in capfd.readouterr().err
