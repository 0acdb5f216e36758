# SPDX-License-Identifier: Apache-2.0
"""`python -m training calibrate`: labels are drawn at a known temperature, and it is found."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from scipy.special import softmax

from ctxseg_ros.inference.runtimes import open_runtime, open_vino
from ctxseg_ros.model.model_file import read_model_info
from tests.training.clusters.test_name_clusters import CENTRES, WIDTH, with_logits
from training.__main__ import main
from training.data.ground_truth import GroundTruth
from training.data.pairs import pair_files
from training.evaluation.labels import evaluate_labels
from training.evaluation.running import RunOptions

pytestmark = pytest.mark.slow

SIZE = (32, 48)
CLASSES = 5


@pytest.fixture
def model(model_factory) -> Path:
    """Five classes by brightness, as networks end."""
    source = {
        "scores": {"miou": 0.5},
        "precision": {"bf16_label_agreement": 0.5, "bf16_sure_agreement": 0.25, "fp32_score": 0.5},
    }
    options = {"name": "five", "size": SIZE, "source": source, "opset": 18}
    return model_factory(classes=CLASSES, edit=with_logits, **options)


def logits_of(rgb) -> np.ndarray:
    return -(((rgb.sum(2, dtype=float)[..., None] - CENTRES) / WIDTH) ** 2)


def write_set(root: Path, temperature, frames: int = 6, seed: int = 0) -> tuple[Path, Path]:
    """Images of noise, and labels drawn from the model's softmax; a void strip of 9."""
    rng = np.random.default_rng(seed)
    folders = root / "images", root / "labels"
    for folder in folders:
        folder.mkdir(parents=True)
    for i in range(frames):
        rgb = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        logits = logits_of(rgb)
        by_pixel = np.broadcast_to(temperature, CLASSES)[logits.argmax(-1)][..., None]
        shares = softmax(logits / by_pixel, axis=-1).cumsum(-1)
        truth = (rng.random((*SIZE, 1)) > shares[..., :-1]).sum(-1)
        truth[:, :4] = 9
        cv2.imwrite(str(folders[0] / f"{i}.png"), rgb)  # B + G + R is R + G + B
        cv2.imwrite(str(folders[1] / f"{i}.png"), truth.astype(np.uint8))
    return folders


def options(folders: tuple[Path, Path], *more) -> list[str]:
    return ["--images", str(folders[0]), "--labels", str(folders[1]), *map(str, more)]


def run(model: Path, out: Path, *given) -> int:
    return main(["calibrate", f"--model={model}", f"--out={out}", "--device=cpu", *given])


def test_the_temperature_is_found_and_the_labels_stay(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(open_vino, "capabilities", lambda: ["FP32", "BF16"])
    folders, out = write_set(tmp_path / "street" / "val", 3.0), tmp_path / "out.onnx"
    picture = tmp_path / "reliability.png"
    assert run(model, out, *options(folders, "--ignore", 9), "--picture", str(picture)) == 0

    info, before = read_model_info(out), read_model_info(model)
    entry = info.source["calibration"]
    assert entry["temperature"] == pytest.approx(3, rel=0.1)
    (row,) = entry["data"]
    assert (row["data"], row["frames"]) == ("street/val", 6)
    pairs = pair_files(*folders)
    truth, on_cpu = GroundTruth(9), RunOptions(device="cpu")
    for each, when in ((before, "before"), (info, "after")):
        assert row["ece"][when] == evaluate_labels(each, pairs, truth, run=on_cpu)["ece"]
    assert row["ece"]["before"] > 0.1
    assert row["ece"]["after"] < 0.02
    assert row["ece"]["held_out"] < 0.03
    kept = {k: row["at_min_confidence"][k] for k in ("min_confidence", "labelled", "accuracy")}
    assert kept["min_confidence"] == entry["min_confidence"]
    assert kept["accuracy"] > evaluate_labels(before, pairs, truth, run=on_cpu)["pixel_accuracy"]
    assert 0 < kept["labelled"] < 1

    frame = pairs[0].rgb()
    one, other = (open_runtime(each, SIZE, "cpu").run(frame) for each in (before, info))
    np.testing.assert_array_equal(one.labels, other.labels)
    scaled = logits_of(frame) / entry["temperature"]
    if not entry["by_class"]:
        expected = 255 * softmax(scaled, axis=-1).max(-1)
        assert np.abs(other.confidence - expected).max() < 1
    # What bf16 changes is judged by the confidence: it was measured anew; the scores are of labels.
    assert info.source["scores"] == {"miou": 0.5}
    assert info.source["precision"]["bf16_sure_agreement"] > 0.9
    assert info.source["precision"]["fp32_score"] == 0.5
    assert (info.name, info.classes, info.stride) == (before.name, before.classes, before.stride)
    assert cv2.imread(str(picture)).std() > 5
    printed = capsys.readouterr().out
    assert f"{100 * row['ece']['after']:.2f}" in printed


def test_without_bf16_there_is_no_record_of_it_that_could_be_wrong(model, tmp_path, monkeypatch):
    monkeypatch.setattr(open_vino, "capabilities", lambda: ["FP32"])
    out = tmp_path / "out.onnx"
    assert run(model, out, *options(write_set(tmp_path, 2.0), "--ignore", 9)) == 0
    assert read_model_info(out).source["precision"] == {}


def test_a_class_that_is_surer_than_right_gets_its_own(model, tmp_path):
    folders = write_set(tmp_path, np.array([1, 1, 5.0, 1, 1]), frames=10)
    out = tmp_path / "out.onnx"
    assert run(model, out, *options(folders, "--ignore", 9)) == 0
    info = read_model_info(out)
    entry = info.source["calibration"]
    temperatures = [
        entry["by_class"].get(f"class {k}", entry["temperature"]) for k in range(CLASSES)
    ]
    assert temperatures == pytest.approx([1, 1, 5, 1, 1], rel=0.2)
    assert "class 2" in entry["by_class"]
    frame = pair_files(*folders)[0].rgb()
    found = open_runtime(info, SIZE, "cpu").run(frame)
    logits = logits_of(frame)
    values = np.array(temperatures)[logits.argmax(-1)][..., None]
    np.testing.assert_array_equal(found.labels, logits.argmax(-1))
    expected = 255 * softmax(logits / values, axis=-1).max(-1)
    assert np.abs(found.confidence - expected).max() < 1


def test_a_calibrated_file_is_calibrated_anew(model, tmp_path):
    hot, cold = write_set(tmp_path / "hot", 3.0), write_set(tmp_path / "cold", 0.5)
    first, again, direct = (tmp_path / f"{i}.onnx" for i in range(3))
    assert run(model, first, *options(hot, "--ignore", 9)) == 0
    assert run(first, again, *options(cold, "--ignore", 9)) == 0
    assert run(model, direct, *options(cold, "--ignore", 9)) == 0
    entries = [read_model_info(path).source["calibration"] for path in (again, direct)]
    assert entries[0] == entries[1]
    assert len(onnx.load(again).graph.node) == len(onnx.load(direct).graph.node)
    assert run(first, first, *options(cold, "--ignore", 9)) == 0  # in its own place
    assert read_model_info(first).source["calibration"] == entries[0]


def test_several_sets_each_with_its_own_classes(model, tmp_path):
    """The second names the model's classes otherwise, and holds twice as much; a third is half."""
    one, other = write_set(tmp_path / "a" / "x", 1.0), write_set(tmp_path / "b" / "x", 4.0, 12, 1)
    rows = [{"name": f"kind {i}", "id": i} for i in range(CLASSES)]
    listed = tmp_path / "classes.json"
    listed.write_text(json.dumps([*rows, {"name": "void", "id": 9, "ignore": True}]))
    mapping = [f"kind {i}=class {i}" for i in range(CLASSES)]
    second = options(other, "--classes", listed, "--map", *mapping)
    out = tmp_path / "out.onnx"
    given = [*options(one, "--ignore", 9), *second, *second, "--only", "[0-4].png"]
    assert run(model, out, *given) == 0
    entry = read_model_info(out).source["calibration"]
    assert [(row["data"], row["frames"]) for row in entry["data"]] == [
        ("a/x", 6),
        ("b/x (1)", 12),
        ("b/x (2)", 5),
    ]
    low, high, _ = (row["ece"] for row in entry["data"])
    assert low["before"] < 0.03 < high["before"]
    assert high["after"] < high["before"]
    assert 1 < entry["temperature"] < 4


def refused(capsys, model, out, *given) -> str:
    try:
        code = run(model, out, *given)
    except SystemExit as exit:  # argparse
        code = exit.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert not out.exists()
    return said


def test_what_cannot_be_calibrated_is_refused_and_nothing_written(
    model, model_factory, tmp_path, capsys
):
    folders, out = write_set(tmp_path, 1.0), tmp_path / "out.onnx"
    good = options(folders, "--ignore", 9)
    clusters = model_factory(task="clusters", classes=CLASSES, edit=with_logits, opset=18)
    assert "task clusters" in refused(capsys, clusters, out, *good)
    assert "does not end in a softmax" in refused(capsys, model_factory(classes=5), out, *good)
    assert "4 frames" in refused(capsys, model, out, *good, "--only", "[0-3].png")
    assert "ids [9] are outside" in refused(capsys, model, out, *options(folders))
    assert "--labels" in refused(capsys, model, out, *good, "--images", str(folders[0]))
    assert "--images" in refused(capsys, model, out)
    missing = tmp_path / "nowhere" / "out.onnx"
    assert "does not exist" in refused(capsys, model, missing, *good)
    for path in sorted(folders[1].iterdir())[:2]:
        cv2.imwrite(str(path), np.full(SIZE, 9, np.uint8))
    assert "4 frames with a label that counts" in refused(capsys, model, out, *good)
