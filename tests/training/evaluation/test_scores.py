# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.scores import Scores


@given(st.integers(1, 6), st.integers(1, 80), st.integers(0, 2**31))
@settings(deadline=None)
def test_scores_are_those_of_the_sets(classes, pixels, seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, classes, (2, pixels))
    confusion = np.zeros((classes, classes), int)
    for t, p in zip(truth, predicted, strict=True):
        confusion[t, p] += 1
    found = Scores(confusion)
    ious, recalls = [], []
    for c in range(classes):
        a, b = {*np.flatnonzero(truth == c)}, {*np.flatnonzero(predicted == c)}
        if not a | b:
            assert math.isnan(found.iou[c])
            continue
        ious.append(len(a & b) / len(a | b))
        assert found.iou[c] == pytest.approx(ious[-1])
        if a:
            recalls.append(len(a & b) / len(a))
    assert found.miou == pytest.approx(np.mean(ious))
    assert found.class_accuracy == pytest.approx(np.mean(recalls))
    assert found.pixel_accuracy == pytest.approx((truth == predicted).mean())


def test_scores_of_nothing_are_nan():
    found = Scores(np.zeros((3, 3), int))
    assert math.isnan(found.miou)
    assert math.isnan(found.pixel_accuracy)
    assert math.isnan(found.class_accuracy)
