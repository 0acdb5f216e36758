# SPDX-License-Identifier: Apache-2.0
"""Temperatures are recovered from labels that were drawn with known ones."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.calibration.temperature import (
    FOLDS,
    LogitSet,
    classes_that_pay,
    fit_temperature,
    held_out_confidence,
)

CLASSES = 4


def drawn(true: NDArray[np.float64] | float, frames: int = 10, seed: int = 0) -> LogitSet:
    """Logits, and labels drawn from their softmax at temperature ``true`` ([] or by class)."""
    rng = np.random.default_rng(seed)
    pixels = 600
    logits = rng.normal(0, 3, (frames * pixels, CLASSES)).astype(np.float32)
    temperature = np.broadcast_to(true, CLASSES)[logits.argmax(1)][:, None]
    shares = torch.from_numpy(logits / temperature).softmax(1)
    truth = torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(seed))
    return LogitSet(
        logits,
        truth[:, 0].numpy().astype(np.uint8),
        np.repeat(np.arange(frames), pixels),
        np.eye(CLASSES, dtype=bool),
    )


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_one_temperature_is_recovered(true):
    found = fit_temperature([drawn(true)])
    assert found.shared == pytest.approx(true, rel=0.06)
    assert found.own == {}
    assert found.temperature(CLASSES).shape == ()


def test_losses_are_the_cross_entropy_of_the_scaled_logits():
    part = drawn(1.0, frames=2)
    truth = torch.from_numpy(part.truth).long()
    by_class = np.array([0.5, 1.0, 2.0, 4.0])
    for temperature, divisor in (
        (1.7, 1.7),
        (by_class, torch.from_numpy(by_class)[torch.from_numpy(part.logits).argmax(1)][:, None]),
    ):
        scaled = torch.from_numpy(part.logits).double() / divisor
        expected = torch.nn.functional.cross_entropy(scaled, truth, reduction="none")
        np.testing.assert_allclose(part.losses(temperature), expected, atol=1e-5)
        confidence = (255 * scaled.softmax(1).amax(1)).numpy()
        assert np.abs(part.confidence(temperature) - confidence).max() < 0.51


def test_truth_that_may_be_several_classes_has_their_summed_probability():
    part = drawn(1.0, frames=1)
    members = np.array([[True, False, False, True], [False, True, False, False]])
    truth = np.array([0, 1, 1, 0], np.uint8)
    mapped = LogitSet(part.logits[:4], truth, part.frame[:4], members)
    shares = torch.from_numpy(part.logits[:4]).double().softmax(1).numpy()
    expected = [-np.log(shares[i, members[t]].sum()) for i, t in enumerate(truth)]
    np.testing.assert_allclose(mapped.losses(1.0), expected, atol=1e-5)
    labels = part.logits[:4].argmax(1)
    assert mapped.right().tolist() == [
        bool(members[t, k]) for t, k in zip(truth, labels, strict=True)
    ]


def test_a_class_gets_its_own_temperature_only_where_that_pays():
    true = np.array([1.0, 1.0, 3.0, 1.0])
    sets = [drawn(true)]
    assert 2 in classes_that_pay(sets)
    found = fit_temperature(sets, [2])
    assert found.own[2] == pytest.approx(3, rel=0.1)
    assert found.temperature(CLASSES) == pytest.approx(
        [found.shared] * 2 + [found.own[2], found.shared]
    )
    assert found.shared == pytest.approx(1, rel=0.06)
    # Of classes that all have the same, most gain nothing beyond chance.
    assert sum(len(classes_that_pay([drawn(1.7, seed=seed)])) for seed in range(4)) <= 6


def test_a_class_without_pixels_has_the_shared_temperature():
    part = drawn(1.0)
    part = part.take(part.labels != 3)
    found = fit_temperature([part], [3])
    assert found.own == {}
    assert found.shared == pytest.approx(1, rel=0.06)
    assert 3 not in classes_that_pay([part])


def test_each_set_weighs_the_same_however_large():
    large, small = drawn(1.0, frames=40), drawn(4.0, frames=5)
    both = fit_temperature([large, small]).shared
    assert both == pytest.approx(fit_temperature([drawn(1.0, frames=5), small]).shared, rel=0.05)
    assert 1.3 < both < 3.5


def test_held_out_frames_are_those_of_their_own_fold():
    """The frames of one fold are labelled at another temperature: they must not see it."""
    parts = [drawn(1.0, frames=8), drawn(6.0, frames=2)]
    part = LogitSet(
        np.concatenate([each.logits for each in parts]),
        np.concatenate([each.truth for each in parts]),
        np.repeat(np.arange(10), 600),
        np.eye(CLASSES, dtype=bool),
    )
    assert np.unique(part.fold[part.frame >= 8]).tolist() == [FOLDS - 1]
    (found,) = held_out_confidence([part], [])
    last = part.take(part.fold == FOLDS - 1)
    others = part.take(part.fold != FOLDS - 1)
    expected = last.confidence(fit_temperature([others]).shared)
    np.testing.assert_array_equal(found[part.fold == FOLDS - 1], expected)
    assert found[part.fold == 0].mean() < part.take(part.fold == 0).confidence(1.0).mean()


@pytest.mark.parametrize("frames", [5, 7, 23])
def test_folds_are_runs_of_frames_of_nearly_equal_length(frames):
    fold = drawn(1.0, frames=frames).fold.reshape(frames, -1)
    assert (fold == fold[:, :1]).all()
    lengths = np.bincount(fold[:, 0], minlength=FOLDS)
    assert (np.diff(fold[:, 0]) >= 0).all() and lengths.max() - lengths.min() <= 1
