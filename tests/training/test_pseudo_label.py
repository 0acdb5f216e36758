# SPDX-License-Identifier: Apache-2.0
"""A teacher labels frames: mapped classes, averaged views, a folder that trains."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ctxseg_ros.model.model_file import ClassInfo, read_model_info
from ctxseg_ros.model.prediction import Prediction
from training.__main__ import main
from training.data.class_maps import LabelTable
from training.data.mixture import CERTAIN, CONFIDENCE, Source, SourceFrames
from training.data.own import find_label_set
from training.data.pairs import IGNORE, PairSet
from training.pseudo_label import Teacher, soft_labels, student_classes

pytestmark = pytest.mark.slow

#: Names that CamVid has not, but for the last.
NAMES = ["person", "van", "lorry", "sky"]
MAP = {"person": ["pedestrian"], "van": ["car"], "lorry": ["car"]}


@pytest.fixture
def model(model_factory) -> Path:
    """Brightness in four steps; see tests.conftest.tiny_model."""
    classes = [ClassInfo(i, name, (50 * i, 0, 0)) for i, name in enumerate(NAMES)]
    return model_factory(name="oracle", classes=classes)


@pytest.fixture
def frames(tmp_path, street_frames) -> Path:
    folder = tmp_path / "frames"
    (folder / "drive").mkdir(parents=True)
    for i, frame in enumerate(street_frames[:3]):
        cv2.imwrite(str(folder / "drive" / f"f{i}.png"), frame[:96, : 144 - 16 * i, ::-1])
    return folder


def command(model, frames, out, *more):
    changes = [f"{name}={targets[0]}" for name, targets in MAP.items()]
    return [
        "pseudo-label",
        f"--model={model}",
        f"--source={frames}",
        f"--out={out}",
        "--classes=camvid",
        "--map",
        *changes,
        *more,
        "--device=cpu",
    ]


def test_shares_are_those_of_the_formula():
    info = None
    teacher = Teacher(info, (("a", (0, 0, 0)), ("b", (1, 1, 1))), np.array([1, 0, 1, 2]))
    rng = np.random.default_rng(0)
    total = np.zeros((3, 5, 7), np.float32)
    expected = np.zeros((3, 5, 7))
    for _ in range(3):
        labels = rng.integers(0, 4, (5, 7)).astype(np.uint8)
        sure = rng.integers(64, 256, (5, 7)).astype(np.uint8)
        teacher.add(total, Prediction(labels, sure))
        for y, x in np.ndindex(5, 7):
            for theirs, ours in enumerate([1, 0, 1, 2]):
                c = sure[y, x] / 255
                expected[ours, y, x] += c if theirs == labels[y, x] else (1 - c) / 3
    np.testing.assert_allclose(total, expected, atol=1e-5)
    np.testing.assert_allclose(total.sum(0), 3, atol=1e-5)


class Fake:
    """A runtime that labels the left half of any image 0 and the right half 1."""

    def __init__(self, size):
        self.size = size

    def run(self, image):
        assert image.shape == (*self.size, 3) and image.flags.c_contiguous
        labels = np.zeros(self.size, np.uint8)
        labels[:, self.size[1] // 2 :] = 1
        return Prediction(labels, np.full(self.size, 204, np.uint8))


def test_mirrored_views_and_sizes_are_averaged():
    """A model that knows left from right contradicts itself in the mirror."""
    teacher = Teacher(None, (("a", (0, 0, 0)), ("b", (1, 1, 1))), np.array([0, 1]))
    frame = np.zeros((40, 60, 3), np.uint8)
    labels, confidence = soft_labels(teacher, [Fake((32, 48)), Fake((16, 32))], frame)
    assert labels.shape == confidence.shape == (40, 60)
    assert set(np.unique(confidence).tolist()) == {128}  # (0.8 + 0.2) / 2


def test_what_the_student_has_no_class_for_is_ignored():
    teacher = Teacher(None, (("a", (0, 0, 0)),), np.array([0, 1]))
    runtime = Fake((32, 48))
    runtime.run = lambda image: Prediction(
        np.ones((32, 48), np.uint8), np.full((32, 48), 255, np.uint8)
    )
    labels, _ = soft_labels(teacher, [runtime], np.zeros((32, 48, 3), np.uint8))
    assert (labels == IGNORE).all()


def test_folder_is_a_data_set_with_confidence(model, frames, tmp_path, capsys):
    out = tmp_path / "pseudo"
    assert main(command(model, frames, out, "--sizes", "96x144", "64x96")) == 0
    assert "3 frames labelled" in capsys.readouterr().out
    labels = find_label_set(str(out / "classes.yaml"))
    assert [name for name, _ in labels.classes] == [
        name for name, _ in find_label_set("camvid").classes
    ]
    pairs = labels.pairs(out, "train") + labels.pairs(out, "val")
    names = [name for name, _ in labels.classes]
    allowed = {names.index(name) for name in ("sky", "car", "pedestrian")}
    for image, label, stem in PairSet(pairs, labels.read):
        original = cv2.imread(str(frames / "drive" / f"{stem.split('_')[1]}.png"))
        assert np.abs(image[..., ::-1].astype(int) - original).mean() < 4
        assert set(np.unique(label).tolist()) <= allowed
        confidence = cv2.imread(str(out / CONFIDENCE / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        assert confidence.shape == label.shape and confidence.max() < CERTAIN
        steps = (image.astype(int).sum(-1)[..., None] > np.array([191, 382, 573])).sum(-1)
        expected = np.array([names.index(MAP.get(name, [name])[0]) for name in NAMES])[steps]
        assert (label == expected).mean() > 0.9
    record = json.loads((out / "teacher.json").read_text())
    assert record["model"] == "oracle" and record["frames"] == 3
    source = Source(str(out / "classes.yaml"), str(out), ["train", "val"])
    frames = SourceFrames(source, names, LabelTable(len(names)))
    assert len(frames) == 3 and frames.origin == "labelled by oracle"


def test_unfinished_folder_is_finished_and_another_runs_is_refused(model, frames, tmp_path, capsys):
    out = tmp_path / "pseudo"
    assert main(command(model, frames, out)) == 0
    files = sorted(file for file in out.rglob("*.png") if file.parent.name == CONFIDENCE)
    before = files[1].read_bytes()
    files[1].unlink()
    capsys.readouterr()
    assert main(command(model, frames, out)) == 0
    assert "1 frames labelled, 2 were labelled before" in capsys.readouterr().out
    assert files[1].read_bytes() == before
    assert main(command(model, frames, out, "--sizes", "64x96")) == 2
    assert "another teacher, source or setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--map", "person=pedestrian"], "'van' has no namesake in the model"),
        (["--map", "sky"], "write CLASS=CLASS"),
        (["--map", "skyy=sky"], "did you mean 'sky'?"),
        (["--sizes", "65x96"], "65x96"),
        (["--classes", "cambrid"], "no label set 'cambrid'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    more, message, model, frames, tmp_path, capsys
):
    out = tmp_path / "pseudo"
    assert main(command(model, frames, out, *more)) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_only_a_semantic_model_teaches(model_factory):
    info = read_model_info(model_factory(task="attention"))
    with pytest.raises(ValueError, match="a model of task attention"):
        student_classes(info, "camvid", {})
