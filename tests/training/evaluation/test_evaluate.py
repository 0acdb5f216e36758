# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import skimage

from ctxseg_ros.image.attention import mask_image, mass_mask
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.merging import hierarchy
from training.data.bsds import pair_truths, read_truths
from training.data.files import DataError, read_image
from training.data.own import find_label_set
from training.data.pairs import IGNORE, Pair, pair_files
from training.evaluation import evaluate
from training.evaluation.evaluate import (
    count_pixels,
    evaluate_labels,
    evaluate_objects,
    evaluate_regions,
)
from training.evaluation.objects import centre_prior, random_vit
from training.evaluation.regions import LEVELS, score_hierarchy, score_image, score_set
from training.evaluation.scores import Scores

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


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
        predicted = Model(runtime).segment(frame).labels
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


def test_confidence_is_compared_with_what_is_right(labelled):
    root, model, predicted, truth = labelled
    info = read_model_info(model)
    pairs = pair_files(root / "images", root / "labels")
    found = evaluate_labels(info, pairs, 7, (32, 48), "cpu")
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
    assert f"{100 * report['ece']:.2f}" in done.stdout


def test_command_refuses_in_one_line(labelled, call, capsys):
    root, model, _, _ = labelled
    common = ("labels", "--images", root / "images", "--labels", root / "labels")
    for args, said in (
        (("--model", "nobody"), "no model is called 'nobody'"),
        (("--model", model), "ids [7] are outside the 4 classes"),
        (("--model", model, "--ignore", 7, "--size", "33x48"), "Nearest: 32x48 or 48x48"),
        (("--model", model, "--ignore", 7, "--device", "tensorrt"), "cannot run on tensorrt"),
    ):
        assert call(evaluate, *common, *args) == 2
        assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def clustered(tmp_path_factory, labelled, model_factory):
    """Three real frames and what a model of four clusters makes of them, [3, H, W]."""
    root, _, predicted, _ = labelled
    return root / "images", model_factory(task="clusters"), predicted


def write_labels(folder: Path, labels) -> Path:
    folder.mkdir()
    for i, label in enumerate(labels):
        cv2.imwrite(str(folder / f"{i}.png"), label.astype(np.uint8))
    return folder


def score_clusters(clustered, labels: Path, match: str, ignore: int | None = None):
    images, model, _ = clustered
    pairs = pair_files(images, labels)
    return evaluate_labels(read_model_info(model), pairs, ignore, (32, 48), "cpu", match)


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
        evaluate_labels(read_model_info(model), pair_files(root / "images", labels), device="cpu")


def test_match_must_fit_the_task(clustered, labelled):
    images, model, _ = clustered
    pairs = pair_files(images, labelled[0] / "labels")
    with pytest.raises(ValueError, match=r"not classes: match them by hungarian \(.*or majority"):
        evaluate_labels(read_model_info(model), pairs)
    with pytest.raises(ValueError, match="classes of its own"):
        evaluate_labels(read_model_info(labelled[1]), pairs, match="hungarian")


def test_command_matches_clusters(clustered, tmp_path):
    images, model, predicted = clustered
    labels = write_labels(tmp_path / "labels", predicted // 2 + 5)
    common = ("labels", "--model", model, "--images", images, "--labels", labels)
    out = tmp_path / "out.json"
    done = run(*common, "--match", "majority", "--size", "32x48", "--device", "cpu", "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["miou"] == 1
    assert report["match"] == "majority"
    assert report["other"]["match"] == "hungarian"
    assert "3 images, by majority" in done.stdout
    assert f"{100 * report['other']['miou']:.2f}" in done.stdout.split("mIoU by hungarian")[1]
    refused = run(*common)
    assert refused.returncode == 2
    assert "match them by hungarian" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, street_frames):
    """A landscape and a portrait image and two segmentations of each, in BSDS500's form."""
    root = tmp_path_factory.mktemp("segmented")
    for part in ("images", "truth"):
        (root / part).mkdir()
    for name, (height, width) in (("wide", (40, 70)), ("tall", (70, 40))):
        image = np.ascontiguousarray(street_frames[0][100 : 100 + height, 200 : 200 + width])
        cv2.imwrite(str(root / "images" / f"{name}.png"), image[..., ::-1])
        light = cv2.GaussianBlur(image.mean(2).astype(np.uint8), (9, 9), 3)
        cell = np.empty((1, 2), object)
        for i, step in enumerate((40, 90)):
            segmentation = skimage.measure.label(light // step + 1, connectivity=1).astype(
                np.uint16
            )
            cell[0, i] = {"Segmentation": segmentation, "Boundaries": segmentation > 1}
        scipy.io.savemat(root / "truth" / f"{name}.mat", {"groundTruth": cell})
    return root


@pytest.mark.parametrize("asked", [None, (32, 32)])
def test_regions_are_those_of_the_models_labels(segmented, model_factory, asked):
    info = read_model_info(model_factory(task="clusters"))
    found = evaluate_regions(
        info, pair_truths(segmented / "images", segmented / "truth"), asked, "cpu"
    )
    scores = {"plain": [], "crf": [], "merged": []}
    # The nearest multiples of 16 to 40x70: no image is turned or squeezed.
    for name, size in (("tall", (64, 32)), ("wide", (32, 64))):
        segmenter = Model(open_runtime(info, asked or size, "cpu"))
        image = read_image(segmented / "images" / f"{name}.png")
        truths = read_truths(segmented / "truth" / f"{name}.mat")
        said = segmenter.segment(image)
        refined = refine(image, said.labels, said.confidence, 4)
        tree = hierarchy(image, refined)
        scores["plain"].append(score_image(truths, said.labels))
        scores["crf"].append(score_image(truths, refined.argmax(0)))
        scores["merged"].append(score_hierarchy(truths, tree))
        for i in (0, 30, 98):
            cut = score_image(truths, tree.at(LEVELS[i]))
            assert scores["merged"][-1].pri[i] == pytest.approx(cut.pri[0])
    for kind, images in scores.items():
        expected = score_set(images, LEVELS if kind == "merged" else None)
        for measure, values in expected.items():
            assert found[kind][measure] == pytest.approx(values, abs=1e-9), (kind, measure)
    assert found["images"] == 2


def test_broken_truth_is_named_before_the_model_runs(
    segmented, model_factory, tmp_path, monkeypatch
):
    for name in ("wide", "tall"):
        (tmp_path / f"{name}.mat").write_bytes(b"no")
    monkeypatch.setattr(evaluate, "open_runtime", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(DataError) as refused:
        evaluate_regions(
            read_model_info(model_factory()), pair_truths(segmented / "images", tmp_path)
        )
    assert "wide.mat: cannot be read as a .mat file" in str(refused.value)
    assert "tall.mat: cannot be read as a .mat file" in str(refused.value)


def test_command_scores_regions(segmented, model_factory, tmp_path):
    out = tmp_path / "out.json"
    common = ("regions", "--model", model_factory(), "--images", segmented / "images")
    done = run(*common, "--segmentations", segmented / "truth", "--device", "cpu", "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    for kind in ("plain", "crf", "merged"):
        for measure in ("covering", "pri", "vi"):
            values = report[kind][measure]
            assert f"{values['ods']:.3f} / {values['ois']:.3f}" in done.stdout
            assert kind == "merged" or values["ods"] == values["ois"]
    assert report["merged"]["covering"]["level"] in LEVELS
    assert report["size"] == "nearest multiple of 16 to each image"
    assert report.keys() >= {"machine", "commit", "model", "images"}
    refused = run(*common, "--segmentations", tmp_path)
    assert refused.returncode == 2
    assert "no .mat files in it" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_attention_models_have_no_labels_to_score(model_factory, labelled):
    root = labelled[0]
    info = read_model_info(model_factory(task="attention"))
    with pytest.raises(ValueError, match="task attention"):
        evaluate_labels(info, pair_files(root / "images", root / "labels"))
    with pytest.raises(ValueError, match="task attention"):
        evaluate_regions(info, pair_files(root / "images", root / "labels"))


@pytest.fixture(scope="module")
def objects(tmp_path_factory, street_frames, model_factory):
    """Real frames in two sequences, one without an object; their masks; an attention model."""
    root = tmp_path_factory.mktemp("objects")
    rng = np.random.default_rng(0)
    stems = ("one/0", "one/1", "one/2", "two/0")
    for i, (stem, frame) in enumerate(zip(stems, street_frames, strict=False)):
        mask = np.zeros(frame.shape[:2], np.uint8)
        if stem != "one/1":
            top, left = rng.integers(100), rng.integers(300)
            mask[top : top + 90 + 40 * i, left : left + 200] = 1 + i
        for part, pixels in (("images", frame[..., ::-1]), ("masks", mask)):
            path = root / part / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return root, model_factory(task="attention", stride=8)


def object_scores(root: Path, attention):
    """scores(mass) -> Jaccard of the mean [frames with an object], of each head [frames, heads]."""
    truths, maps = [], []
    for stem in ("one/0", "one/2", "two/0"):
        truths.append(read_image(root / "masks" / f"{stem}.png").any(-1))
        maps.append(attention(read_image(root / "images" / f"{stem}.png")))

    def jaccard(plane, truth, mass):
        mask = mask_image(mass_mask(plane, mass), *truth.shape) > 0
        return (mask & truth).sum() / (mask | truth).sum()

    def scores(mass: float):
        both = list(zip(maps, truths, strict=True))
        heads = [[jaccard(head, truth, mass) for head in each] for each, truth in both]
        return (
            np.array([jaccard(each.mean(0), truth, mass) for each, truth in both]),
            np.array(heads),
        )

    return scores


def test_objects_are_scored_by_frame(objects):
    root, model = objects
    info = read_model_info(model)
    pairs = pair_files(root / "images", root / "masks")
    found = evaluate_objects(info, pairs, 0.4, (72, 160), "cpu")
    segmenter = Model(open_runtime(info, (72, 160), "cpu"))
    untaught = random_vit()
    for result, attention in (
        (found, lambda image: segmenter.segment(image).attention),
        (found["controls"]["random_vit"], lambda image: untaught(image, (9, 20))),
        (found["controls"]["centre_prior"], lambda _: centre_prior(9, 20)),
    ):
        scores = object_scores(root, attention)
        mean, heads = scores(0.4)
        assert result["jaccard_mean"] == pytest.approx(mean.mean(), abs=1e-6)
        assert result["jaccard_best_head"] == pytest.approx(heads.max(1).mean(), abs=1e-6)
        by_head = heads.mean(0)
        assert result["jaccard_fixed_head"] == pytest.approx(by_head.max(), abs=1e-6)
        assert result["fixed_head"] == by_head.argmax()
        curve = [scores(m / 20)[0].mean() for m in range(1, 20)]
        area = (sum(curve) - (curve[0] + curve[-1]) / 2) / 18
        assert result["mass_curve_area"] == pytest.approx(area, abs=1e-6)
    assert (found["images"], found["without_object"], found["mass"]) == (3, 1, 0.4)
    sequences = found["sequences"]
    assert [(name, each["images"]) for name, each in sequences.items()] == [("one", 2), ("two", 1)]
    for key in ("jaccard_mean", "jaccard_best_head"):
        mean = (2 * sequences["one"][key] + sequences["two"][key]) / 3
        assert mean == pytest.approx(found[key], abs=2e-6)
    for control in ("random_vit", "centre_prior"):
        mean = (2 * sequences["one"][control] + sequences["two"][control]) / 3
        assert mean == pytest.approx(found["controls"][control]["jaccard_mean"], abs=2e-6)


def test_one_folder_of_frames_is_one_sequence(objects):
    root, model = objects
    pairs = pair_files(root / "images" / "two", root / "masks" / "two")
    found = evaluate_objects(read_model_info(model), pairs, 0.6, (24, 48), "cpu")
    assert found["sequences"].keys() == {"two"}
    assert found["sequences"]["two"]["jaccard_mean"] == found["jaccard_mean"]


def test_objects_are_scored_at_each_frames_own_size(objects, tmp_path):
    root, model = objects
    info, pairs = read_model_info(model), []
    for i, (name, shape) in enumerate({"tall": (90, 50), "wide": (51, 93)}.items()):
        pair = pair_files(root / "images" / "one", root / "masks" / "one")[2 * i]
        for path in (pair.image, pair.label):
            small = cv2.resize(cv2.imread(str(path)), shape[::-1], interpolation=cv2.INTER_NEAREST)
            out = tmp_path / path.relative_to(root).parts[0] / f"{name}.png"
            out.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(out), small)
    pairs = pair_files(tmp_path / "images", tmp_path / "masks")
    found = evaluate_objects(info, pairs, 0.5, None, "cpu")
    each = [
        evaluate_objects(info, [pair], 0.5, size, "cpu")
        for pair, size in zip(pairs, ((88, 48), (48, 96)), strict=True)
    ]
    for part in (lambda r: r, lambda r: r["controls"]["random_vit"]):
        mean = np.mean([part(result)["jaccard_mean"] for result in each])
        assert part(found)["jaccard_mean"] == pytest.approx(mean, abs=2e-6)


def test_objects_are_checked_before_the_model_runs(objects, model_factory, tmp_path, monkeypatch):
    root, model = objects
    info = read_model_info(model)
    pairs = pair_files(root / "images", root / "masks")
    monkeypatch.setattr(evaluate, "open_runtime", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(ValueError, match="tiny is a model of task clusters: it has no attention"):
        evaluate_objects(read_model_info(model_factory(task="clusters")), pairs)
    for mass in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="mass must be above 0 and up to 1"):
            evaluate_objects(info, pairs, mass)
    empty = pair_files(root / "images" / "one", root / "masks" / "one")[1:2]
    with pytest.raises(DataError, match="no mask has an object"):
        evaluate_objects(info, empty)
    for stem in ("one/0", "two/0"):
        (tmp_path / stem).parent.mkdir()
        cv2.imwrite(str(tmp_path / f"{stem}.png"), np.ones((30, 40), np.uint8))
    broken = [Pair(p.image, tmp_path / p.label.relative_to(root / "masks")) for p in pairs[::3]]
    with pytest.raises(DataError) as refused:
        evaluate_objects(info, broken)
    for stem in ("one/0", "two/0"):
        assert f"{tmp_path / stem}.png: labels are 40x30, their image" in str(refused.value)


def test_command_scores_objects(objects, tmp_path):
    root, model = objects
    out = tmp_path / "out.json"
    common = ("objects", "--model", model, "--images", root / "images")
    done = run(
        *common, "--masks", root / "masks", "--size", "24x48", "--device", "cpu", "--json", out
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report.keys() >= {"machine", "commit", "model", "size", "mass", "images"}
    assert report["mass"] == 0.6
    assert "3 images, mass 0.6" in done.stdout
    assert "1 without an object left out" in done.stdout
    keys = ("jaccard_mean", "mass_curve_area")
    for each in (report, *report["controls"].values()):
        assert all(f"{each[key]:.3f}" in done.stdout for key in keys)
    assert "one (2)" in done.stdout


def test_command_refuses_what_objects_cannot_use(objects, tmp_path, monkeypatch, capsys):
    root, model = objects
    (tmp_path / "empty").mkdir()
    for masks, more, said in (
        (tmp_path / "empty", (), "empty: no image files in it"),
        (root / "masks", ("--size", "25x48"), "Nearest: 24x48 or 32x48"),
        (root / "masks", ("--mass", "60"), "mass must be above 0 and up to 1, not 60"),
    ):
        args = ("objects", "--model", model, "--images", root / "images", "--masks", masks, *more)
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args), "--json", str(out)])
        assert evaluate.main() == 2
        assert not out.exists()
        error = capsys.readouterr().err
        assert error.startswith("evaluate: ")
        assert said in error
    args = ("objects", "--model", model, "--images", root, "--masks", root, "--json", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args)])
    assert evaluate.main() == 2
    assert f"{tmp_path}: cannot be written" in capsys.readouterr().err


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
    found = evaluate_labels(
        read_model_info(model),
        pair_files(root / "images", root / "labels"),
        size=(32, 48),
        device="cpu",
        label_set=find_label_set(str(tmp_path / "classes.yaml")),
        changes=changes,
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
        evaluate_labels(
            read_model_info(model),
            pair_files(root / "images", root / "labels"),
            label_set=find_label_set(str(tmp_path / "classes.yaml")),
            changes={**changes, "mid2": ["class 1"]},
        )


def test_map_and_patterns_on_the_command_line(labelled, tmp_path, call, capsys):
    root, model, _, _ = labelled
    rows = [{"name": f"class {i}", "id": i} for i in range(3)]
    rows += [{"name": "top", "id": 3}, {"name": "gone", "id": 7}]
    (tmp_path / "classes.yaml").write_text(json.dumps(rows))
    arguments = [
        "labels",
        f"--model={model}",
        f"--images={root / 'images'}",
        f"--labels={root / 'labels'}",
        f"--classes={tmp_path / 'classes.yaml'}",
        "--device=cpu",
        f"--json={tmp_path / 'scores.json'}",
    ]
    chosen = ["--only", "[01].png", "--without", "1*", "--map", "top=class 3", "gone="]
    assert call(evaluate, *arguments, *chosen) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["images"] == 1 and len(found["iou"]) == 4
    assert call(evaluate, *arguments, "--only", "x*") == 2
    assert "none of the 3 frames is left" in capsys.readouterr().err
