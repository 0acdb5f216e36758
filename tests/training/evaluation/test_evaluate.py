# SPDX-License-Identifier: Apache-2.0
"""The command ``evaluate``: what it prints, writes and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from training.evaluation import evaluate
from training.evaluation.regions import LEVELS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


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


def test_command_matches_clusters(clustered, tmp_path):
    images, model, predicted = clustered
    labels = tmp_path / "labels"
    labels.mkdir()
    for i, label in enumerate(predicted // 2 + 5):
        cv2.imwrite(str(labels / f"{i}.png"), label)
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


def test_command_scores_objects(masked, tmp_path):
    root, model = masked
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


def test_command_refuses_what_objects_cannot_use(masked, tmp_path, monkeypatch, capsys):
    root, model = masked
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
