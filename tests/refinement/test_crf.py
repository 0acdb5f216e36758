# SPDX-License-Identifier: Apache-2.0
"""The dense CRF against a slow one, and what it may be given."""

import sys

import numpy as np
import pytest

from ctxseg_ros.refinement.crf import refine


def mean_field(image, labels, confidence, classes):
    """The same CRF in float64, every pixel with every other: [classes, H, W]."""
    height, width = labels.shape
    rows, columns = np.mgrid[:height, :width]
    places = np.stack((rows, columns), -1).reshape(-1, 2).astype(float)
    colours = image.reshape(-1, 3).astype(float)
    apart = ((places[:, None] - places) ** 2).sum(-1)
    unlike = ((colours[:, None] - colours) ** 2).sum(-1)
    pull = 0
    for kernel, weight in (
        (np.exp(-apart / (2 * 3**2)), 3),
        (np.exp(-apart / (2 * 70**2) - unlike / (2 * 10**2)), 5),
    ):
        scale = 1 / np.sqrt(kernel.sum(1))
        pull = pull + weight * scale[:, None] * kernel * scale
    share = np.empty((len(places), classes))
    for pixel, (label, value) in enumerate(zip(labels.flat, confidence.flat, strict=True)):
        if label == 255:
            share[pixel] = 1 / classes
        else:
            top = min(max(value / 255, 1 / classes), 0.99)
            share[pixel] = (1 - top) / (classes - 1)
            share[pixel, label] = top
    energy, found = -np.log(share), share
    for _ in range(10):
        odds = np.exp(pull @ found - energy)
        found = odds / odds.sum(1, keepdims=True)
    return found.T.reshape(classes, height, width)


def two_halves(step, classes=3, seed=0, size=(12, 14)):
    """A noisy image whose halves differ by `step` [3], and labels of which a third is wrong."""
    rng = np.random.default_rng(seed)
    half = (np.arange(size[1]) < size[1] // 2)[None].repeat(size[0], 0)
    image = np.where(half[..., None], 100, 100 + np.array(step)) + rng.integers(0, 6, (*size, 3))
    wrong = rng.random(size) < 0.33
    labels = np.where(wrong, rng.integers(0, classes, size), np.where(half, 0, 1))
    labels[rng.random(size) < 0.05] = 255
    confidence = rng.integers(90, 256, size)
    return image.astype(np.uint8), labels.astype(np.uint8), confidence.astype(np.uint8)


@pytest.mark.parametrize("step", [(25, 0, 0), (0, 25, 0), (0, 0, 25), (15, 15, 15)])
@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_mean_field_of_all_pairs(step, classes):
    given = two_halves(step, classes)
    off = np.abs(refine(*given, classes) - mean_field(*given, classes))
    # pydensecrf approximates the kernels: a few undecided pixels are off by some 0.05. A channel
    # left out is 0.002 to 0.5 off on average, a weight or a scale 30 % wrong at least 0.001.
    assert off.mean() < 9e-4


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_each_channel_keeps_labels_apart(channel):
    step = np.zeros(3, int)
    step[channel] = 60
    image, labels, confidence = two_halves(step, 2, size=(24, 24))
    clean = refine(image, labels, confidence, 2).argmax(0)
    assert (clean[:, :12] == 0).all() and (clean[:, 12:] == 1).all()


def test_the_probabilities_are_float32_and_sum_to_one():
    found = refine(*two_halves((40, 0, 0)), 3)
    assert found.dtype == np.float32 and found.shape == (3, 12, 14)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_classes_may_come_in_any_order():
    image, labels, confidence = two_halves((20, 10, 0))
    order = np.array([2, 0, 1])
    renamed = np.where(labels == 255, 255, order[np.minimum(labels, 2)]).astype(np.uint8)
    found = refine(image, renamed, confidence, 3)
    np.testing.assert_allclose(found[order], refine(image, labels, confidence, 3), atol=1e-4)


def test_the_same_input_gives_the_same_output():
    given = two_halves((20, 10, 0))
    assert (refine(*given, 3) == refine(*given, 3)).all()


def test_unlabelled_pixels_take_the_label_of_their_surroundings():
    image, labels, confidence = np.full((20, 20, 3), 80, np.uint8), np.ones((20, 20), np.uint8), 230
    labels[8:12, 8:12] = 255
    found = refine(image, labels, np.full((20, 20), confidence, np.uint8), 3)
    assert (found.argmax(0) == 1).all()


def test_nothing_known_stays_nothing_known():
    empty = np.full((6, 7), 255, np.uint8)
    found = refine(np.zeros((6, 7, 3), np.uint8), empty, empty, 4)
    np.testing.assert_allclose(found, 0.25, atol=1e-4)


def test_no_confidence_is_certain_or_hopeless():
    image, labels = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), np.uint8)
    for value in (0, 255):
        assert np.isfinite(refine(image, labels, np.full((3, 3), value, np.uint8), 2)).all()


def test_one_class_is_certain():
    image, plane = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8)
    found = refine(image, plane, plane, 1)
    assert found.dtype == np.float32 and (found == np.ones((1, 2, 3))).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3)])
def test_small_images(size):
    image, labels = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint8)
    found = refine(image, labels, np.full(size, 200, np.uint8), 254)
    assert found.shape == (254, *size) and (found.argmax(0) == 1).all()


def test_slices_of_larger_arrays_are_read_right():
    image, labels, confidence = two_halves((40, 0, 0))
    found = refine(image[:, ::-1, ::-1][:, ::-1, ::-1], labels.T.copy().T, confidence, 3)
    assert (found == refine(image, labels, confidence, 3)).all()


IMAGE, PLANE = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((IMAGE.astype(np.float32), PLANE, PLANE, 2), "image is float32"),
        ((IMAGE[..., :2], PLANE, PLANE, 2), r"image is uint8 \[4, 5, 2\]"),
        ((PLANE, PLANE, PLANE, 2), "RGB"),
        ((IMAGE[:0], PLANE[:0], PLANE[:0], 2), "no pixels"),
        ((IMAGE, PLANE[:3], PLANE, 2), r"labels are uint8 \[3, 5\]"),
        ((IMAGE, PLANE.astype(np.int64), PLANE, 2), "labels are int64"),
        ((IMAGE, PLANE, PLANE[:, 1:], 2), "confidence"),
        ((IMAGE, PLANE, PLANE, 0), "0 classes"),
        ((IMAGE, PLANE, PLANE, 256), "256 classes"),
        ((IMAGE, PLANE + np.uint8(2), PLANE, 2), "id 2, there are 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        refine(*given)


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match=r"pip install 'ctxseg_ros\[refine\]'"):
        refine(IMAGE, PLANE, PLANE, 2)
