# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run as it goes: TensorBoard's Images page, and PNG files beside its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import lightning as L
import matplotlib
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from ctxseg_ros.image.attention import attention_image
from ctxseg_ros.image.render import heat_map
from ctxseg_ros.model.model_file import ClassInfo
from ctxseg_ros.output_files import make_folder, write_image

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


def wnet_sheet(images: Tensor, probabilities: Tensor, reconstruction: Tensor) -> NDArray[np.uint8]:
    """Frames in columns: the image, its clusters in colours, the reconstruction.

    Args:
        images: uint8 [B, 3, H, W]; probabilities: [B, K, H, W]; reconstruction: [B, 3, H, W], 0-1.

    Returns:
        uint8 [3 H, B W, 3], RGB.
    """
    colours = torch.from_numpy(cluster_colours(probabilities.shape[1]))
    clusters = colours[probabilities.argmax(1).cpu()]
    painted = (reconstruction.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    rows = (images.permute(0, 2, 3, 1).cpu(), clusters, painted.permute(0, 2, 3, 1))
    return np.concatenate([np.concatenate(list(row.numpy()), axis=1) for row in rows])


def attention_sheet(images: Tensor, maps: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Frames in columns: the image, then each of ``maps`` as heat, its greatest value brightest.

    Args:
        images: uint8 [B, 3, H, W]; maps: each float [B, h, w], 0 or more.

    Returns:
        uint8 [(1 + maps) H, B W, 3], RGB.
    """
    height, width = images.shape[-2:]
    rows = [list(images.permute(0, 2, 3, 1).cpu().numpy())]
    for planes in maps:
        rows.append(
            [
                heat_map(attention_image(plane, height, width))
                for plane in planes.float().cpu().numpy()
            ]
        )
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def log_picture(system: L.LightningModule, name: str, picture: NDArray[np.uint8]) -> None:
    """Show uint8 [H, W, 3] RGB as ``name`` in the run's logs, at the step that the run is at."""
    step = system.global_step
    for logger in system.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step, dataformats="HWC")
        if logger.log_dir:
            folder = Path(logger.log_dir) / "pictures"
            make_folder(folder)
            write_image(folder / f"{name}_{step:07}.png", picture)
