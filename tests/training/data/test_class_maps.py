# SPDX-License-Identifier: Apache-2.0
"""Classes of data sets and teachers in terms of a model's."""

import numpy as np
import pytest

from training.data.class_maps import LabelTable, allowed_classes
from training.data.files import DataError
from training.data.pairs import IGNORE

MODEL = ["road", "tree", "pavement", "sky"]


def test_classes_are_mapped_by_name_to_several_and_to_none():
    found = allowed_classes(
        ["sky", "green", "person", "road"], MODEL, {"green": ["tree", "pavement"], "person": []}
    )
    assert found == [{3}, {1, 2}, set(), {0}]


def test_every_name_that_cannot_be_mapped_is_listed_with_what_helps():
    with pytest.raises(DataError) as caught:
        allowed_classes(
            ["sky", "person", "grass"], MODEL, {"gras": ["tree"], "grass": ["trees"], "sky": []}
        )
    message = str(caught.value)
    assert "'gras' is not one of the classes to map; did you mean 'grass'?" in message
    assert "'grass' is mapped to 'trees', which the model does not have" in message
    assert "did you mean 'tree'?" in message
    assert "'person' has no namesake in the model" in message
    assert "'sky'" not in message


def test_labels_are_shared_by_equal_sets():
    table = LabelTable(4)
    lookup = table.lookup([frozenset(s) for s in ({3}, {1, 2}, set(), {0, 1, 2, 3}, {2, 1}, {0})])
    assert lookup[:6].tolist() == [3, 4, IGNORE, IGNORE, 4, 0]
    assert (lookup[6:] == IGNORE).all()
    assert table.lookup([frozenset({0, 3}), frozenset({1, 2})])[:2].tolist() == [5, 4]
    expected = np.eye(6, 4, dtype=bool)
    expected[4:] = [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert np.array_equal(table.matrix(), expected)


def test_more_sets_than_labels_are_refused():
    table = LabelTable(9)
    sets = [frozenset(k for k in range(9) if bits >> k & 1) for bits in range(1, 511)]
    with pytest.raises(DataError, match="more than 255 different sets"):
        for each in sets:
            table.label(each)
    assert len(table.matrix()) == IGNORE
