# SPDX-License-Identifier: Apache-2.0
"""Frames of any size through a model; the public Python API."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ctxseg_ros
from ctxseg_ros.image.resize import resized
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info


@pytest.fixture(scope="module")
def runtime(model_factory):
    runtime = open_runtime(read_model_info(model_factory()), (32, 48), "cpu")
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def segmenter(runtime):
    return Model(runtime)


def frame(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_frame_of_the_models_size_passes_unchanged(segmenter, runtime):
    rgb = frame(32, 48)
    found, expected = segmenter.segment(rgb), runtime.run(rgb)
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.confidence, expected.confidence)
    assert found.attention is None


@given(height=st.integers(1, 100), width=st.integers(1, 100))
@settings(deadline=None)
def test_result_has_the_frames_size_and_the_models_ids(segmenter, height, width):
    found = segmenter.segment(frame(height, width, height * width))
    for plane in (found.labels, found.confidence):
        assert plane.shape == (height, width) and plane.dtype == np.uint8
    assert found.labels.max() < 4


def test_labels_land_where_they_were_seen(segmenter):
    """Each quarter of the frame has one brightness, and so one label."""
    rgb = np.zeros((64, 96, 3), np.uint8)
    rgb[:32, 48:], rgb[32:, :48], rgb[32:, 48:] = 85, 150, 255
    expected = np.zeros((64, 96), np.uint8)
    expected[:32, 48:], expected[32:, :48], expected[32:, 48:] = 1, 2, 3
    assert np.array_equal(segmenter.segment(rgb).labels, expected)


@pytest.mark.parametrize("size", [(64, 144), (20, 60)])
def test_frame_is_resized_as_promised(segmenter, runtime, size):
    rgb = frame(*size)
    expected = runtime.run(resized(rgb, (32, 48))).confidence
    expected = cv2.resize(expected, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(segmenter.segment(rgb).confidence, expected)


@pytest.mark.parametrize("size", [(32, 48), (40, 60)])
def test_strides_do_not_matter(segmenter, size):
    height, width = size
    rgb = frame(height, width)
    expected = segmenter.segment(rgb).confidence
    padded = np.zeros((height, width * 3 + 17), np.uint8)
    rows = np.lib.stride_tricks.as_strided(padded, rgb.shape, (padded.strides[0], 3, 1))
    rows[:] = rgb
    reversed_channels = rgb[..., ::-1].copy()[..., ::-1]
    upside_down = rgb[::-1].copy()[::-1]
    for view in (rows, reversed_channels, upside_down):
        assert not view.flags.c_contiguous
        assert np.array_equal(segmenter.segment(view).confidence, expected)


@pytest.mark.parametrize("size", [(32, 48), (40, 60)])
def test_results_are_not_overwritten_by_the_next_frame(segmenter, size):
    first = segmenter.segment(frame(*size, seed=1))
    labels, confidence = first.labels.copy(), first.confidence.copy()
    segmenter.segment(frame(*size, seed=2))
    assert np.array_equal(first.labels, labels)
    assert np.array_equal(first.confidence, confidence)


def test_read_only_frames_are_taken(segmenter):
    for size in ((32, 48), (40, 60)):
        rgb = frame(*size)
        rgb.flags.writeable = False
        assert segmenter.segment(rgb).labels.shape == size


def test_attention_stays_on_the_patch_grid(model_factory):
    info = read_model_info(model_factory(task="attention"))
    found = Model(open_runtime(info, (32, 48), "cpu")).segment(frame(100, 120))
    assert found.labels is None and found.confidence is None
    assert found.attention.shape == (3, 2, 3)


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((32, 48), np.uint8),
        np.zeros((32, 48, 4), np.uint8),
        np.zeros((0, 48, 3), np.uint8),
        np.zeros((32, 48, 3), np.float32),
    ],
)
def test_what_is_no_frame_is_refused(segmenter, rgb):
    with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\], not"):
        segmenter.segment(rgb)


def test_public_api_gives_the_runtimes_labels_in_the_frames_size(model_factory):
    path = model_factory()
    rgb = frame(64, 96)
    with ctxseg_ros.load_model(path, size=(32, 48), device="cpu") as model:
        assert (model.info.path, model.device) == (path, "cpu")
        assert model.class_names == ("class 0", "class 1", "class 2", "class 3")
        found = model.segment(rgb)
        expected = model.runtime.run(cv2.resize(rgb, (48, 32), interpolation=cv2.INTER_AREA))
        grown = np.kron(expected.labels, np.ones((2, 2), np.uint8))
        assert np.array_equal(found.labels, grown)
        assert model.colours[found.labels].shape == (64, 96, 3)
        assert isinstance(found, ctxseg_ros.Prediction)
    with pytest.raises(RuntimeError):
        model.segment(rgb)


def test_public_api_knows_shipped_models_by_name():
    with ctxseg_ros.load_model("wnet", device="cpu") as model:
        assert len(model.class_names) == 9
        assert model.segment(frame(50, 70)).labels.shape == (50, 70)
    with pytest.raises(ValueError, match="no model is called"):
        ctxseg_ros.load_model("wnett")


def test_importing_the_package_waits_for_no_library():
    code = "import sys, ctxseg_ros; print(*{'cv2', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
