# SPDX-License-Identifier: Apache-2.0
"""How label images are read for a model."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.class_maps import ClassMap
from training.data.label_sets import LabelSet


@dataclass(frozen=True)
class GroundTruth:
    """How label images are read, and which of their pixels count.

    Args:
        ignore: id of the label images that does not count. 255 never counts.
        label_set: reads the label images (colours, palettes, ids that are not the model's) and
            names its classes, which are the model's by name, in any order. None: the label images
            hold the model's ids.
        changes: for label images with other classes than the model's: the classes of the model
            that each of their classes may be, see ``training.data.class_maps.allowed_classes``.
            Classes that may be the same are one. Where the model predicts a class that none of
            them may be, it is wrong.
    """

    ignore: int | None = None
    label_set: LabelSet | None = None
    changes: ClassMap | None = None


#: Label images that hold the model's ids, all of which count.
MODEL_IDS = GroundTruth()
