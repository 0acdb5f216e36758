# SPDX-License-Identifier: Apache-2.0
"""The labelled data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.data import ade20k, camvid, stanford
from training.data.pairs import LabelReader, Pair


@dataclass(frozen=True)
class LabelSet:
    """A data set's classes and where its files are.

    ``classes``: name and colour (RGB) by label. ``origin``, ``terms``: what the model file states
    about its data. ``pairs(root, split)``: the files of ``train`` or ``val``. ``read``: a label
    file as uint8 [H, W], with IGNORE. ``in_memory``: it fits there.
    """

    name: str
    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    origin: str
    terms: str
    pairs: Callable[[str | Path, str], list[Pair]]
    read: LabelReader
    in_memory: bool = True


LABEL_SETS = {
    "camvid": LabelSet(
        "camvid",
        camvid.CLASSES,
        camvid.ORIGIN,
        camvid.TERMS,
        camvid.camvid_pairs,
        camvid.read_camvid,
    ),
    "ade20k": LabelSet(
        "ade20k",
        ade20k.CLASSES,
        ade20k.ORIGIN,
        ade20k.TERMS,
        ade20k.ade20k_pairs,
        ade20k.read_ade20k,
        in_memory=False,
    ),
    "stanford": LabelSet(
        "stanford",
        stanford.CLASSES,
        stanford.ORIGIN,
        stanford.TERMS,
        stanford.stanford_pairs,
        stanford.read_stanford,
    ),
}
