# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run as it goes: TensorBoard's Images page, and PNG files beside its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from ctxseg_ros.image.attention import attention_image
from ctxseg_ros.image.render import heat_map
from ctxseg_ros.system.output_files import make_folder, write_image
from training.data.palette import cluster_colours


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
