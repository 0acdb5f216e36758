# SPDX-License-Identifier: Apache-2.0
"""The ground truth of a semantic model: label files in terms of the model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import UNLABELLED
from training.data.class_maps import ClassMap, allowed_classes
from training.data.files import DataError
from training.data.ground_truth import GroundTruth
from training.data.label_files import IGNORE
from training.data.label_sets import LabelSet
from training.data.pairs import LabelReader, read_label


@dataclass(frozen=True)
class Truth:
    """Classes of a ground truth as sets of a model's classes that have none in common.

    ``names``: of these C sets, the classes in each joined by "|". ``members``: bool [C, K], which
    of the model's K classes each holds. ``read``: a label file as uint8 [H, W], 0 to C - 1 and
    IGNORE.
    """

    names: tuple[str, ...]
    members: NDArray[np.bool_]
    read: LabelReader

    @cached_property
    def fold(self) -> NDArray[np.uint8]:
        """uint8 [256]: the set of each of the model's ids, UNLABELLED for those in none."""
        table = np.full(256, UNLABELLED, np.uint8)
        for i, group in enumerate(self.members):
            table[np.flatnonzero(group)] = i
        return table


def truth_for(info: ModelInfo, truth: GroundTruth) -> Truth:
    """A ground truth in terms of a semantic model's classes.

    Raises:
        DataError: the names of its label set are not the model's, or cannot be mapped.
        ValueError: it has both ``ignore`` and ``label_set``, or ``changes`` without the latter.
    """
    ignore, label_set, changes = truth.ignore, truth.label_set, truth.changes
    if label_set is not None and ignore is not None:
        raise ValueError("the class list states what is ignored: give --ignore or --classes")
    names = [item.name for item in info.classes]
    if changes is not None:
        if label_set is None:
            raise ValueError("--map tells a class list of a semantic model: give --classes too")
        return _mapped(label_set, names, changes)
    if label_set is None:
        read: LabelReader = partial(read_label, classes=len(names), ignore=ignore)
    else:
        read = _by_name(label_set, names)
    return Truth(tuple(names), np.eye(len(names), dtype=bool), read)


def _by_name(label_set: LabelSet, names: Sequence[str]) -> LabelReader:
    """Reads the labels of a set as the ids that a model gives to classes of the same names."""
    listed = [name for name, _ in label_set.classes]
    if set(listed) != set(names):
        differences = [
            f"{who} lacks {', '.join(sorted(lacking))}"
            for who, lacking in (
                ("the model", set(listed) - set(names)),
                ("the class list", set(names) - set(listed)),
            )
            if lacking
        ]
        raise DataError(
            f"the classes of the model and of the class list differ: {'; '.join(differences)}. "
            "Rows of a class list may share a name"
        )
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(listed)] = [names.index(name) for name in listed]
    return lambda path: table[label_set.read(path)]


def _mapped(label_set: LabelSet, names: Sequence[str], changes: ClassMap) -> Truth:
    """Raises DataError: a class cannot be mapped, or two sets overlap without being equal."""
    allowed = allowed_classes([name for name, _ in label_set.classes], names, changes)
    groups = list(dict.fromkeys(each for each in allowed if each))
    members = np.array([[k in group for k in range(len(names))] for group in groups], bool)
    titles = tuple("|".join(names[k] for k in sorted(group)) for group in groups)
    for i, group in enumerate(members):
        if members[:i, group].any():
            raise DataError(
                f"{titles[i]} has a class in common with another class of the truth: a pixel of "
                "it could be counted as either"
            )
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    for label, each in enumerate(allowed):
        if each:
            table[label] = groups.index(each)

    def read(path: Path) -> NDArray[np.uint8]:
        return table[label_set.read(path)]

    return Truth(titles, members.reshape(len(groups), len(names)), read)
