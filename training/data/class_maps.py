# SPDX-License-Identifier: Apache-2.0
"""The classes of a data set, or of a teacher, in terms of a model's classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from training.data.files import DataError
from training.data.label_files import IGNORE

#: By name of a foreign class: the class or the classes of the model that it may be; none of them
#: where its pixels are to be ignored.
ClassMap = Mapping[str, Sequence[str]]


def allowed_classes(
    names: Sequence[str], classes: Sequence[str], changes: ClassMap
) -> list[frozenset[int]]:
    """For each foreign class the ids of the model's classes that its pixels may have.

    Args:
        names: of the foreign classes. classes: of the model, by id.
        changes: for foreign classes that have another name in the model, or several, or none.
            The others are mapped by their name.

    Raises:
        DataError: a foreign class has neither a namesake in the model nor an entry in ``changes``,
            or an entry names a class that does not exist; every such name is listed.
    """
    ids = {name: i for i, name in enumerate(classes)}
    wrong = [
        f"{name!r} is not one of the classes to map{_nearest(name, names)}"
        for name in changes
        if name not in names
    ]
    found = []
    for name in names:
        targets = changes.get(name, [name])
        if name not in changes and name not in ids:
            wrong.append(
                f"{name!r} has no namesake in the model: map it to the classes that it may be "
                f"({', '.join(classes)}), or to none of them to ignore it"
            )
            continue
        wrong += [
            f"{name!r} is mapped to {target!r}, which the model does not have"
            f"{_nearest(target, classes)}"
            for target in targets
            if target not in ids
        ]
        found.append(frozenset(ids[target] for target in targets if target in ids))
    if wrong:
        raise DataError("; ".join(wrong))
    return found


def parse_changes(pairs: Sequence[str]) -> dict[str, list[str]]:
    """``changes`` as a command line has them: ``CLASS=CLASS``, ``CLASS=CLASS,CLASS`` or ``CLASS=``.

    Raises:
        DataError: one is not of these forms.
    """
    changes = {}
    for pair in pairs:
        name, equals, targets = pair.partition("=")
        if not equals:
            raise DataError(f"--map {pair!r}: write CLASS=CLASS, or CLASS= to ignore it")
        changes[name] = [target for target in targets.split(",") if target]
    return changes


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]!r}?" if near else f" ({', '.join(names)})"


class LabelTable:
    """The labels that training frames carry: one for each set of allowed classes.

    Labels below ``classes`` allow the class of that id alone. A set of no class or of all classes
    says nothing: its label is IGNORE.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._sets = [frozenset([i]) for i in range(classes)]

    def label(self, allowed: frozenset[int]) -> int:
        """The label of a set of class ids. Raises DataError if there are too many different."""
        if not allowed or len(allowed) == self.classes:
            return IGNORE
        if allowed not in self._sets:
            if len(self._sets) == IGNORE:
                raise DataError(f"more than {IGNORE} different sets of allowed classes")
            self._sets.append(allowed)
        return self._sets.index(allowed)

    def lookup(self, allowed: Sequence[frozenset[int]]) -> np.ndarray:
        """uint8 [256]: the labels of foreign ids, whose sets are given by id; else IGNORE."""
        table = np.full(256, IGNORE, np.uint8)
        table[: len(allowed)] = [self.label(each) for each in allowed]
        return table

    def matrix(self) -> np.ndarray:
        """bool [labels, classes]: which classes each label allows."""
        return np.array([[k in each for k in range(self.classes)] for each in self._sets])
