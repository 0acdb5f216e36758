# SPDX-License-Identifier: Apache-2.0
"""Scores against label images, counted anew from the model's predictions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info
from training.data.files import DataError, read_image
from training.data.ground_truth import GroundTruth
from training.data.own import find_label_set
from training.data.pairs import IGNORE, pair_files
from training.evaluation.labels import count_pixels, evaluate_labels
from training.evaluation.running import RunOptions
from training.evaluation.scores import Scores

pytestmark = pytest.mark.slow

SMALL = RunOptions((32, 48), "cpu")


def test_scores_are_counted_at_the_truths_size(labelled):
    root, model, predicted, truth = labelled
    pairs = pair_files(root / "images", root / "labels")
    found = evaluate_labels(read_model_info(model), pairs, GroundTruth(7), run=SMALL)
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


def test_confidence_is_compared_with_what_is_right(labelled):
    root, model, predicted, truth = labelled
    info = read_model_info(model)
    pairs = pair_files(root / "images", root / "labels")
    found = evaluate_labels(info, pairs, GroundTruth(7), run=SMALL)
    segmenter = Model(open_runtime(info, (32, 48), "cpu"))
    confidence = np.array([segmenter.segment(pair.rgb()).confidence for pair in pairs]) / 255
    counted, right = truth != 7, truth == predicted
    error = 0.0
    for i, each in enumerate(found["reliability"]):
        inside = counted & (confidence > i / 15) & (confidence <= (i + 1) / 15)
        inside |= counted & (confidence == 0) if i == 0 else False
        assert each["pixels"] == inside.sum()
        if inside.any():
            assert each["accuracy"] == pytest.approx(right[inside].mean(), abs=1e-6)
            assert each["confidence"] == pytest.approx(confidence[inside].mean(), abs=1e-6)
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.sum() * gap / counted.sum()
    assert found["ece"] == pytest.approx(error, abs=1e-6)
    assert len(found["reliability"]) == 15 and found["ece"] > 0.05
    for each in found["min_confidence"]:
        kept = counted & (confidence >= each["min_confidence"])
        assert each["labelled"] == pytest.approx(kept.sum() / counted.sum(), abs=1e-6)
        if kept.any():
            assert each["accuracy"] == pytest.approx(right[kept].mean(), abs=1e-6)


def test_truth_of_another_size_than_its_frame(labelled, tmp_path):
    """Labels at half the frame's size: the prediction is brought to the truth, not the reverse."""
    root, model, _, _ = labelled
    (tmp_path / "half").mkdir()
    info = read_model_info(model)
    runtime = open_runtime(info, (32, 48), "cpu")
    for i in range(3):
        frame = read_image(root / "images" / f"{i}.png")
        full = Model(runtime).segment(frame).labels
        half = cv2.resize(full, (320, 136), interpolation=cv2.INTER_NEAREST_EXACT)
        cv2.imwrite(str(tmp_path / "half" / f"{i}.png"), half)
    found = evaluate_labels(info, pair_files(root / "images", tmp_path / "half"), run=SMALL)
    assert found["miou"] == 1


def test_unlabelled_predictions_count_as_wrong():
    truth = np.array([[0, 0, 1, IGNORE]], np.uint8)
    labels = np.array([[0, 255, 1, 255]], np.uint8)
    scores = Scores(count_pixels(truth, labels, 2))
    assert scores.iou.tolist() == [0.5, 1]
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    assert scores.class_accuracy == 0.75


def write_labels(folder: Path, labels) -> Path:
    folder.mkdir()
    for i, label in enumerate(labels):
        cv2.imwrite(str(folder / f"{i}.png"), label.astype(np.uint8))
    return folder


def score_clusters(clustered, labels: Path, match: str, ignore: int | None = None):
    images, model, _ = clustered
    pairs = pair_files(images, labels)
    return evaluate_labels(read_model_info(model), pairs, GroundTruth(ignore), match, SMALL)


def test_renamed_clusters_are_found(clustered, tmp_path):
    """Ids far apart, as many as clusters: each cluster is one class, whatever its id."""
    names = np.array([40, 3, 254, 0])
    labels = write_labels(tmp_path / "labels", names[clustered[2]])
    for match in ("hungarian", "majority"):
        found = score_clusters(clustered, labels, match)
        assert found["match"] == match
        assert found["matching"] == {"0": "40", "1": "3", "2": "254", "3": "0"}
        assert found["iou"] == {"0": 1, "3": 1, "40": 1, "254": 1}
        assert found["miou"] == found["pixel_accuracy"] == found["class_accuracy"] == 1
        assert found["images"] == 3


def test_more_clusters_than_classes(clustered, tmp_path):
    """Clusters 0 and 1 are class 0, 2 and 3 are class 1; id 9 does not count."""
    predicted = clustered[2]
    truth = np.where(predicted < 2, 0, 1)
    truth[:, :40] = 9
    labels = write_labels(tmp_path / "labels", truth)
    pixels = np.bincount(predicted[truth != 9], minlength=4)
    kept = [max(pixels[:2]), max(pixels[2:])]  # one to one: the larger cluster of each class
    found = score_clusters(clustered, labels, "hungarian", 9)
    assert found["pixel_accuracy"] == pytest.approx(sum(kept) / pixels.sum(), abs=1e-6)
    # Nothing is taken for a class that it is not, so IoU is the recall.
    assert found["iou"]["0"] == pytest.approx(kept[0] / pixels[:2].sum(), abs=1e-6)
    assert found["iou"]["1"] == pytest.approx(kept[1] / pixels[2:].sum(), abs=1e-6)
    assert sorted(map(str, found["matching"].values())) == ["0", "1", "None", "None"]
    other = found["other"]
    assert other["match"] == "majority"
    assert other["matching"] == {"0": "0", "1": "0", "2": "1", "3": "1"}
    assert other["miou"] == other["pixel_accuracy"] == 1


def test_fewer_clusters_than_classes(clustered, tmp_path):
    """Cluster 2 is split at a column into classes 2 and 5: the larger part gets it."""
    truth = clustered[2].copy()
    right = np.arange(truth.shape[2]) >= 500
    truth[(truth == 2) & right] = 5
    labels = write_labels(tmp_path / "labels", truth)
    large, small = ((truth == c).sum() for c in (2, 5))
    assert large > small > 0
    for match in ("hungarian", "majority"):
        found = score_clusters(clustered, labels, match)
        assert found["matching"]["2"] == "2"
        assert found["iou"]["5"] == 0
        assert found["iou"]["2"] == pytest.approx(large / (large + small), abs=1e-6)
        assert found["miou"] == pytest.approx((3 + large / (large + small)) / 5, abs=1e-6)
        assert found["class_accuracy"] == pytest.approx(4 / 5, abs=1e-6)


def test_truth_without_a_pixel_that_counts(clustered, tmp_path):
    labels = write_labels(tmp_path / "labels", np.full_like(clustered[2], 11))
    with pytest.raises(DataError, match="no pixel of the label images counts"):
        score_clusters(clustered, labels, "majority", 11)


def test_truth_of_a_semantic_model_without_a_pixel_that_counts(labelled, tmp_path):
    root, model, predicted, _ = labelled
    labels = write_labels(tmp_path / "labels", np.full_like(predicted, 255))
    with pytest.raises(DataError, match="no pixel of the label images counts"):
        evaluate_labels(read_model_info(model), pair_files(root / "images", labels), run=SMALL)


def test_match_must_fit_the_task(clustered, labelled):
    images, model, _ = clustered
    pairs = pair_files(images, labelled[0] / "labels")
    with pytest.raises(ValueError, match=r"not classes: match them by hungarian \(.*or majority"):
        evaluate_labels(read_model_info(model), pairs)
    with pytest.raises(ValueError, match="classes of its own"):
        evaluate_labels(read_model_info(labelled[1]), pairs, match="hungarian")


def test_truth_of_other_classes_is_scored_in_groups_of_the_models(labelled, tmp_path):
    root, model, predicted, truth = labelled
    rows = [{"name": n, "id": i} for n, i in (("low", 0), ("mid", 1), ("mid2", 2), ("high", 3))]
    rows.append({"name": "gone", "id": 7})
    (tmp_path / "classes.yaml").write_text(json.dumps(rows))
    changes = {
        "low": ["class 0"],
        "mid": ["class 1", "class 2"],
        "mid2": ["class 1", "class 2"],
        "high": [],
        "gone": [],
    }
    info, pairs = read_model_info(model), pair_files(root / "images", root / "labels")
    label_set = find_label_set(str(tmp_path / "classes.yaml"))
    found = evaluate_labels(
        info, pairs, GroundTruth(label_set=label_set, changes=changes), run=SMALL
    )
    counted = truth < 3
    expected = {}
    for name, ids in (("class 0", [0]), ("class 1|class 2", [1, 2])):
        true, said = np.isin(truth, ids), np.isin(predicted, ids)
        expected[name] = (true & said & counted).sum() / ((true | said) & counted).sum()
    assert found["iou"] == pytest.approx(expected, abs=1e-6)
    # Class 3, which no class of the truth may be, is wrong wherever it is given.
    right = np.isin(truth, [1, 2]) & np.isin(predicted, [1, 2]) | (truth == 0) & (predicted == 0)
    assert found["pixel_accuracy"] == pytest.approx(right[counted].mean(), abs=1e-6)
    bins = [each for each in found["reliability"] if each["pixels"]]
    assert sum(each["pixels"] for each in bins) == counted.sum()
    hits = sum(each["pixels"] * each["accuracy"] for each in bins)
    assert hits == pytest.approx(right[counted].sum(), rel=1e-4)
    with pytest.raises(DataError, match="has a class in common"):
        changes = {**changes, "mid2": ["class 1"]}
        evaluate_labels(info, pairs, GroundTruth(label_set=label_set, changes=changes))


def test_attention_models_have_no_labels_to_score(model_factory, labelled):
    root = labelled[0]
    info = read_model_info(model_factory(task="attention"))
    with pytest.raises(ValueError, match="task attention"):
        evaluate_labels(info, pair_files(root / "images", root / "labels"))
