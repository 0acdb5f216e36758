# SPDX-License-Identifier: Apache-2.0
"""U-Net, trained with labels: the baseline that W-Net is compared with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from training.networks.deployed import UNetGraph
from training.networks.unet import UNet, check_size
from training.systems.labelled import Classes, LabelledSystem


class BytesUNet(nn.Module):
    """A UNet for frames of 0-255, the range that the loaders give."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        # oneDNN's convolutions are a quarter faster with the channels last (two cores, width 0.5).
        self.unet = unet.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float [B, K, H, W] of RGB images uint8 or float [B, 3, H, W] on 0-255."""
        return self.unet(images.to(next(self.parameters()).dtype) / 255)


class UNetSystem(LabelledSystem):
    """The network with its loss and its optimiser.

    Args:
        width, dropout: see UNet.
        size: (height, width) that the exported model is meant for.
        classes, lovasz, ema, consistency, sure, optimizer, lr, weight_decay, schedule, warmup,
            seed: see LabelledSystem.
    """

    def __init__(
        self,
        width: float = 1.0,
        dropout: float = 0.0,
        size: tuple[int, int] = (352, 480),
        classes: Classes = "camvid",
        lovasz: float = 0.0,
        ema: float = 0.0,
        consistency: float = 0.0,
        sure: float = 0.95,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["poly", "plateau"] = "poly",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(classes)
        check_size(size)
        self.save_hyperparameters()
        self.network = BytesUNet(UNet(3, len(self.class_names), width, dropout))
        self.keep_average()

    def graph(self) -> UNetGraph:
        deployed = self.deployed
        assert isinstance(deployed, BytesUNet)
        return UNetGraph(deployed.unet)
