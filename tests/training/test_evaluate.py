# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ctxseg_ros.model_file import read_model_info
from ctxseg_ros.pipeline import FrameSegmenter
from ctxseg_ros.runtimes import open_runtime
from training.data.pairs import IGNORE, pair_files, read_image
from training.evaluate import count_pixels, evaluate_labels
from training.scores import Scores

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, street_frames, model_factory):
    """Three real frames, what the tiny model says of them, and a truth that partly differs."""
    root = tmp_path_factory.mktemp("labelled")
    model = model_factory()
    runtime = open_runtime(read_model_info(model), (32, 48), "cpu")
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part).mkdir()
    predictions, truths = [], []
    for i, frame in enumerate(street_frames[:3]):
        cv2.imwrite(str(root / "images" / f"{i}.png"), frame[..., ::-1])
        predicted = FrameSegmenter(runtime).segment(frame).labels
        truth = predicted.copy()
        noise = rng.random(truth.shape)
        truth[noise < 0.3] = 1
        truth[noise > 0.9] = 7  # the id to ignore
        cv2.imwrite(str(root / "labels" / f"{i}.png"), truth)
        predictions.append(predicted)
        truths.append(truth)
    return root, model, np.array(predictions), np.array(truths)


def test_scores_are_counted_at_the_truths_size(labelled):
    root, model, predicted, truth = labelled
    found = evaluate_labels(
        read_model_info(model), pair_files(root / "images", root / "labels"), 7, (32, 48), "cpu"
    )
    counted = truth != 7
    ious = {}
    for c in range(4):
        union = counted & ((truth == c) | (predicted == c))
        both = counted & (truth == c) & (predicted == c)
        ious[f"class {c}"] = both.sum() / union.sum() if union.any() else None
    assert found["images"] == 3
    for name, iou in ious.items():
        assert found["iou"][name] == (None if iou is None else pytest.approx(iou, abs=1e-6))
    there = [v for v in ious.values() if v is not None]
    assert found["miou"] == pytest.approx(np.mean(there), abs=1e-6)
    accuracy = (truth == predicted)[counted].mean()
    assert found["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_truth_of_another_size_than_its_frame(labelled, tmp_path):
    """Labels at half the frame's size: the prediction is brought to the truth, not the reverse."""
    root, model, _, _ = labelled
    (tmp_path / "half").mkdir()
    info = read_model_info(model)
    runtime = open_runtime(info, (32, 48), "cpu")
    for i in range(3):
        frame = read_image(root / "images" / f"{i}.png")
        full = FrameSegmenter(runtime).segment(frame).labels
        half = cv2.resize(full, (320, 136), interpolation=cv2.INTER_NEAREST_EXACT)
        cv2.imwrite(str(tmp_path / "half" / f"{i}.png"), half)
    found = evaluate_labels(
        info, pair_files(root / "images", tmp_path / "half"), None, (32, 48), "cpu"
    )
    assert found["miou"] == 1


def test_unlabelled_predictions_count_as_wrong():
    truth = np.array([[0, 0, 1, IGNORE]], np.uint8)
    labels = np.array([[0, 255, 1, 255]], np.uint8)
    scores = Scores(count_pixels(truth, labels, 2))
    assert scores.iou.tolist() == [0.5, 1]
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    assert scores.class_accuracy == 0.75


def run(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "training.evaluate", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_command_prints_and_writes(labelled, tmp_path):
    root, model, _, _ = labelled
    out = tmp_path / "out.json"
    done = run(
        *("labels", "--model", model, "--images", root / "images", "--labels", root / "labels"),
        *("--ignore", 7, "--size", "32x48", "--device", "cpu", "--json", out),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report.keys() >= {
        *("miou", "iou", "pixel_accuracy", "class_accuracy", "images", "machine", "commit")
    }
    assert f"{100 * report['miou']:.2f}" in done.stdout
    assert all(name in done.stdout for name in report["iou"])


def test_command_refuses_in_one_line(labelled, tmp_path):
    root, model, _, _ = labelled
    common = ("labels", "--images", root / "images", "--labels", root / "labels")
    for args, said in (
        (("--model", "nobody"), "no model is called 'nobody'"),
        (("--model", model), "ids [7] are outside the 4 classes"),
        (("--model", model, "--ignore", 7, "--size", "33x48"), "Nearest: 32x48 or 48x48"),
        (("--model", model, "--ignore", 7, "--device", "tensorrt"), "cannot run on tensorrt"),
    ):
        done = run(*common, *args)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_attention_models_have_no_labels_to_score(model_factory, labelled):
    root = labelled[0]
    info = read_model_info(model_factory(task="attention"))
    with pytest.raises(ValueError, match="task attention"):
        evaluate_labels(info, pair_files(root / "images", root / "labels"))
