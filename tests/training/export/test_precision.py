# SPDX-License-Identifier: Apache-2.0
"""What bf16 changes and costs: measured, written into a model file, and judged."""

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from ctxseg_ros.inference.runtimes import open_runtime, open_vino
from ctxseg_ros.inference.runtimes.precision import cost, recorded
from ctxseg_ros.model.model_file import read_model_info
from ctxseg_ros.model.prediction import Prediction
from training.data.ground_truth import GroundTruth
from training.data.pairs import pair_files
from training.evaluation.labels import evaluate_labels
from training.evaluation.running import RunOptions
from training.export import precision, record_precision

pytestmark = pytest.mark.slow

SIZE = (32, 48)


@pytest.fixture
def bf16_processor(monkeypatch):
    """On one without bf16 OpenVINO then computes both in fp32: nothing changes, nothing is lost."""
    monkeypatch.setattr(open_vino, "capabilities", lambda: ["FP32", "BF16"])


@pytest.fixture
def labelled(tmp_path) -> tuple[Path, Path]:
    """Folders of five images and of their labels: thirds of the brightness, the fourth is void."""
    rng = np.random.default_rng(0)
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for i in range(5):
        rgb = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        cv2.imwrite(str(images / f"{i}.png"), rgb)
        cv2.imwrite(str(labels / f"{i}.png"), (rgb.sum(2) // 192).astype(np.uint8))
    return images, labels


@dataclass
class Scripted:
    """A runtime that gives these predictions, one for each frame."""

    task: str
    left: list[Prediction]

    @property
    def info(self):
        return self

    def run(self, image):
        return self.left.pop(0)


def test_changes_are_summed_over_frames():
    full = [
        Prediction(np.full((2, 2), i, np.uint8), np.array([[250, 90], [91, 250]], np.uint8))
        for i in range(2)
    ]
    lower = [Prediction(full[0].labels.copy(), None), Prediction(full[1].labels.copy(), None)]
    lower[0].labels[0, 1] = lower[1].labels[1, 0] = 7
    frames = [np.zeros((2, 2, 3), np.uint8)] * 2
    change = precision.total_change(Scripted("semantic", full), Scripted("semantic", lower), frames)
    assert change.measured() == {
        "label_agreement": 0.75,
        "sure_agreement": 1.0,
        "changed_confidence": pytest.approx(91 / 255, abs=1e-4),
    }


def test_correlations_are_kept_for_each_frame_and_head():
    rng = np.random.default_rng(0)
    maps = rng.random((2, 3, 4, 5), np.float32)
    found = precision.total_change(
        Scripted("attention", [Prediction(attention=m) for m in maps]),
        Scripted("attention", [Prediction(attention=m[::-1]) for m in maps]),
        [np.zeros((64, 80, 3), np.uint8)] * 2,
    )
    assert len(found) == 6 and found[1] == pytest.approx(1) and min(found) < 0.9


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["record_precision", *map(str, arguments)])
    return record_precision.main()


def test_record_is_what_both_precisions_give(
    model_factory, labelled, bf16_processor, monkeypatch, capsys
):
    images, labels = labelled
    path = model_factory(source={"data": "kept", "precision": {"bf16_label_agreement": 0.1}})
    graph = onnx.load(path).graph.SerializeToString(deterministic=True)
    assert run(monkeypatch, path, "--frames", images, "--truth", labels, "--ignore", 3) == 0
    info = read_model_info(path)
    assert onnx.load(path).graph.SerializeToString(deterministic=True) == graph
    assert info.source["data"] == "kept"
    entries = info.source["precision"]

    pairs = pair_files(images, labels)
    both = [open_runtime(info, SIZE, "openvino", precision=p) for p in ("fp32", "bf16")]
    frames = [cv2.imread(str(pair.image))[..., ::-1].copy() for pair in pairs]
    given = [[runtime.run(frame) for frame in frames] for runtime in both]
    full, lower = (np.stack([item.labels for item in items]) for items in given)
    sure = np.stack([item.confidence for item in given[0]]) >= 153
    assert entries["bf16_label_agreement"] == pytest.approx((full == lower).mean(), abs=1e-6)
    assert entries["bf16_sure_agreement"] == pytest.approx((full == lower)[sure].mean(), abs=1e-6)
    assert (entries["frames"], entries["score"]) == (5, "miou")
    for name in ("fp32", "bf16"):
        scores = evaluate_labels(
            info, pairs, GroundTruth(3), run=RunOptions(SIZE, "openvino", name)
        )
        assert entries[f"{name}_score"] == scores["miou"]
    assert cost(recorded(info), info.task, "bf16") is None
    assert "bf16 where that is faster" in capsys.readouterr().out


def test_attention_is_recorded_with_its_jaccard(
    model_factory, labelled, bf16_processor, monkeypatch
):
    images, masks = labelled
    path = model_factory(task="attention")
    assert run(monkeypatch, path, "--frames", images, "--truth", masks) == 0
    entries = read_model_info(path).source["precision"]
    assert entries["bf16_map_correlation"] > 0.99
    assert entries["score"] == "jaccard_mean"
    assert entries["fp32_score"] == pytest.approx(entries["bf16_score"], abs=0.02)


def test_processor_without_bf16_records_nothing(model_factory, labelled, monkeypatch, capsys):
    monkeypatch.setattr(open_vino, "capabilities", lambda: ["FP32"])
    path = model_factory()
    before = path.read_bytes()
    assert run(monkeypatch, path, "--frames", labelled[0]) == 1
    assert "the processor has no bf16" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert precision.bf16_change(read_model_info(path), [np.zeros((*SIZE, 3), np.uint8)]) == {}


@pytest.mark.parametrize("missing", ["model", "frames"])
def test_missing_input_is_one_line_and_exit_code_2(
    model_factory, labelled, bf16_processor, tmp_path, monkeypatch, capsys, missing
):
    model = tmp_path / "none.onnx" if missing == "model" else model_factory()
    frames = tmp_path / "none" if missing == "frames" else labelled[0]
    assert run(monkeypatch, model, "--frames", frames) == 2
    assert capsys.readouterr().err.count("\n") == 1
