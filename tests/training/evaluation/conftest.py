# SPDX-License-Identifier: Apache-2.0
"""Real frames with labels, segmentations and masks, and what the tiny model makes of them."""

import cv2
import numpy as np
import pytest
import scipy.io
import skimage

from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info


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


@pytest.fixture(scope="module")
def clustered(tmp_path_factory, labelled, model_factory):
    """Three real frames and what a model of four clusters makes of them, [3, H, W]."""
    root, _, predicted, _ = labelled
    return root / "images", model_factory(task="clusters"), predicted


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


@pytest.fixture(scope="module")
def masked(tmp_path_factory, street_frames, model_factory):
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
