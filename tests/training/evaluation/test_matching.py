# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.matching import NONE, match_clusters, matched_confusion

#: By [class, cluster]. Cluster 0 is mostly class 0, as is cluster 1, which class 1 needs.
PIXELS = np.array([[50, 30, 1], [5, 20, 0], [0, 0, 9]])


def test_matches_by_hand():
    # One to one: 50 + 20 + 9. By majority cluster 1 goes to class 0 too.
    assert match_clusters(PIXELS, "hungarian").tolist() == [0, 1, 2]
    assert match_clusters(PIXELS, "majority").tolist() == [0, 0, 2]


def test_clusters_without_pixels_are_matched_to_none():
    empty = np.array([[4, 0], [0, 0]])
    assert match_clusters(empty, "hungarian").tolist() == [0, NONE]
    assert match_clusters(empty, "majority").tolist() == [0, NONE]


def test_confusion_by_hand():
    """Clusters 0 and 1 both class 0, cluster 2 none; the fourth column was unlabelled."""
    pixels = np.array([[50, 30, 1, 2], [5, 20, 7, 3]])
    found = matched_confusion(pixels, np.array([0, 0, NONE]))
    assert found.tolist() == [[80, 0, 3], [25, 0, 10]]


def most_pixels(pixels):
    """The most pixels that agree over every one-to-one matching."""
    classes, clusters = pixels.shape
    if classes > clusters:
        return most_pixels(pixels.T)
    return max(
        sum(pixels[c, k] for c, k in enumerate(chosen))
        for chosen in itertools.permutations(range(clusters), classes)
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_no_matching_is_better(classes, clusters, seed):
    pixels = np.random.default_rng(seed).integers(0, 12, (classes, clusters))
    found = match_clusters(pixels, "hungarian")
    matched = found[found != NONE]
    assert len(set(matched.tolist())) == len(matched)
    agree = sum(pixels[c, k] for k, c in enumerate(found) if c != NONE)
    assert agree == most_pixels(pixels)
    many = match_clusters(pixels, "majority")
    for k, c in enumerate(many):
        assert pixels[:, k].max() == (0 if c == NONE else pixels[c, k])
    unlabelled = np.column_stack([pixels, np.full(classes, 3)])
    for matching in (found, many):
        confusion = matched_confusion(unlabelled, matching)
        assert confusion.sum(1).tolist() == unlabelled.sum(1).tolist()
        assert np.trace(confusion) == pytest.approx(
            sum(pixels[c, k] for k, c in enumerate(matching) if c != NONE)
        )
