# SPDX-License-Identifier: Apache-2.0
"""Colours for classes and clusters that come without any."""

from __future__ import annotations

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import ClassInfo

#: Colours whose channels differ by this or less are too grey.
_GREY = 85


def cluster_colours(count: int) -> NDArray[np.uint8]:
    """Colours [count, 3], RGB, that are easy to tell apart, and from grey roads and skies.

    Those of a table for print, and beyond its 18 the one of a lattice that is farthest in CIELAB
    from all before it, again and again.
    """
    table = matplotlib.colormaps["tab10" if count <= 9 else "tab20"]
    colours = (255 * table(np.arange(table.N))[:, :3]).round().astype(np.uint8)
    colours = colours[np.ptp(colours, axis=1) > 0][:count]
    if count <= len(colours):
        return colours
    lattice = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 17)]), -1).reshape(-1, 3)
    lattice = lattice[np.ptp(lattice, axis=1) > _GREY].astype(np.uint8)
    there, places = _lab(colours), _lab(lattice)
    apart = np.linalg.norm(places[:, None] - there, axis=-1).min(1)
    chosen = []
    for _ in range(count - len(colours)):
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return np.concatenate([colours, lattice[chosen]])


def _lab(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIELAB [N, 3] of colours [N, 3], RGB."""
    return cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


def cluster_infos(count: int) -> list[ClassInfo]:
    """Clusters as a model file has them: numbers for names, colours far apart."""
    colours = cluster_colours(count).tolist()
    return [ClassInfo(i, f"cluster {i}", (*colour,)) for i, colour in enumerate(colours)]
