# SPDX-License-Identifier: Apache-2.0
"""Calibration error and thresholds against slow oracles, pixel by pixel."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.reliability import BINS, CANDIDATES, Reliability, recommended

#: Pixels: a byte of confidence, and whether the label is right.
PIXELS = st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=60)


def counted(pixels, unlabelled=0) -> Reliability:
    confidence = np.array([c for c, _ in pixels], np.uint8)
    return Reliability.count(confidence, np.array([r for _, r in pixels], bool), unlabelled)


def bin_of(byte: int) -> int:
    """The bin whose interval (i / BINS, (i + 1) / BINS] has byte / 255; 0 is in the first."""
    confidence = Fraction(byte, 255)
    for i in range(BINS):
        if confidence <= Fraction(i + 1, BINS):
            return i
    raise AssertionError(byte)


def slow_ece(pixels) -> Fraction:
    error = Fraction(0)
    for i in range(BINS):
        inside = [(Fraction(c, 255), r) for c, r in pixels if bin_of(c) == i]
        if inside:
            accuracy = Fraction(sum(r for _, r in inside), len(inside))
            confidence = sum(c for c, _ in inside) / len(inside)
            error += Fraction(len(inside), len(pixels)) * abs(accuracy - confidence)
    return error


@given(PIXELS)
@settings(deadline=None)
def test_calibration_error_is_that_of_the_pixels(pixels):
    found = counted(pixels).ece
    if not pixels:
        assert found is None
    else:
        assert found == pytest.approx(float(slow_ece(pixels)), abs=1e-6)


@given(PIXELS)
@settings(deadline=None)
def test_bins_hold_the_pixels(pixels):
    for i, found in enumerate(counted(pixels).bins()):
        inside = [(c, r) for c, r in pixels if bin_of(c) == i]
        assert found["pixels"] == len(inside)
        assert (found["above"], found["to"]) == pytest.approx((i / 15, (i + 1) / 15), abs=1e-6)
        if inside:
            mean = np.mean(inside, axis=0)
            assert found["confidence"] == pytest.approx(mean[0] / 255, abs=1e-6)
            assert found["accuracy"] == pytest.approx(mean[1], abs=1e-6)
        else:
            assert found["confidence"] is found["accuracy"] is None


def test_a_model_that_knows_itself_has_no_error_and_one_that_boasts_has():
    """Of 255 pixels with a confidence of c / 255, c are right."""
    honest = [(c, k < c) for c in (51, 102, 204, 255) for k in range(255)]
    assert counted(honest).ece == 0
    assert counted([(255, k < 60) for k in range(100)]).ece == pytest.approx(0.4)
    assert counted([(51, True)] * 9).ece == pytest.approx(0.8)


@given(PIXELS, st.integers(0, 20), st.sampled_from(CANDIDATES))
@settings(deadline=None)
def test_a_threshold_keeps_what_the_node_keeps(pixels, unlabelled, threshold):
    if not pixels and not unlabelled:
        return
    kept = [r for c, r in pixels if c >= ceil(threshold * 255)]
    found = counted(pixels, unlabelled).at(threshold)
    assert found["labelled"] == pytest.approx(len(kept) / (len(pixels) + unlabelled), abs=1e-6)
    if kept:
        assert found["accuracy"] == pytest.approx(np.mean(kept), abs=1e-6)
    else:
        assert found["accuracy"] is None


@given(st.lists(st.tuples(PIXELS.filter(bool), st.integers(0, 9)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_the_recommended_threshold_has_most_right_less_wrong_labels(sets):
    def gain(threshold):
        total = Fraction(0)
        for pixels, unlabelled in sets:
            kept = [r for c, r in pixels if c >= ceil(threshold * 255)]
            total += Fraction(2 * sum(kept) - len(kept), len(pixels) + unlabelled)
        return total

    found = recommended([counted(*each) for each in sets])
    assert gain(found) == pytest.approx(float(max(map(gain, CANDIDATES))), abs=1e-9)


def test_sets_are_added():
    one, other = [(3, True), (200, False)], [(200, True)]
    both, expected = counted(one, 2) + counted(other, 1), counted(one + other, 3)
    assert (both.right == expected.right).all() and (both.wrong == expected.wrong).all()
    assert both.unlabelled == 3
