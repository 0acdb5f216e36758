# SPDX-License-Identifier: Apache-2.0
"""W-Net, trained without labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ctxseg_ros.model.model_file import ClassInfo
from training.data.files import DataError
from training.data.palette import cluster_infos
from training.data.unlabelled import Frames, UnlabelledBatch
from training.losses.batch_ncut import batch_ncut
from training.losses.gaussian_ncut import gaussian_ncut
from training.losses.soft_ncut import soft_ncut
from training.networks.deployed import UNetGraph
from training.networks.encoder import Encoder
from training.networks.unet import Padding, check_size
from training.networks.wnet import WNet
from training.systems.base import UnlabelledSystem
from training.systems.pictures import log_picture, wnet_sheet
from training.systems.schedules import poly

#: ITU-R BT.601: the intensity of an RGB pixel.
_LUMA = (0.299, 0.587, 0.114)
#: Least share of an epoch's pixels that makes a cluster count as in use.
IN_USE = 0.001
#: Steps after which the use of the clusters is looked at.
LOOK_EVERY = 50


class WNetSystem(UnlabelledSystem):
    """The network and its two updates a batch, in turn (Xia & Kulis 2017, algorithm 1).

    1. The soft N-cut of the probabilities updates U_Enc.
    2. The mean squared error between image and reconstruction updates U_Enc and U_Dec.

    Each update has its own Adam, and the second sees what the first has changed: a joint loss
    would be another method.

    Args:
        clusters: K. width, dropout, padding: see UNet. The published form pads with zeros.
        size: (height, width) that the exported model is meant for.
        loss: ``exact`` is the soft N-cut, ``gaussian`` the cheap approximation of the paper, both
            of each image for itself, by brightness; ``batch`` is the soft N-cut over one graph of
            all images of a batch, by a ViT's features.
        vit: timm name of that ViT, with ``batch``. vit_weights: a local file, or None to download.
        cell: side in pixels of the squares that are its patches and the vertices of the graph.
        sigma: of the features in ``batch_ncut``; they have length 1.
        lr_encoder, lr_decoder: Adam's rates.
        schedule: ``constant`` (the paper), or ``poly``: (1 - t)^0.9 over the run.
        seed: of dropout, set anew at each step so that a resumed run equals an unbroken one.
    """

    task = "clusters"
    automatic_optimization = False

    def __init__(
        self,
        clusters: int = 9,
        width: float = 1.0,
        dropout: float = 0.0,
        size: tuple[int, int] = (224, 224),
        padding: Padding = "zeros",
        loss: Literal["exact", "gaussian", "batch"] = "exact",
        vit: str | None = None,
        vit_weights: str | None = None,
        cell: int = 8,
        sigma: float = 0.4,
        lr_encoder: float = 3e-3,
        lr_decoder: float = 4e-3,
        schedule: Literal["constant", "poly"] = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 2 <= clusters <= 255:
            raise ValueError(f"clusters must be 2 to 255, not {clusters}")
        check_size(size)
        if (loss == "batch") != (vit is not None):
            raise ValueError("vit belongs to loss batch, and loss batch needs it: set both or none")
        self.save_hyperparameters()
        # oneDNN's convolutions are a quarter faster with the channels last (two cores, width 0.5).
        self.network = WNet(clusters, width, dropout, padding).to(memory_format=torch.channels_last)
        # No submodule: its weights are not the run's, and do not belong in its checkpoints.
        self._vit: tuple[Encoder, ...] = ()
        #: Pixels that each cluster was the top one of, since the last look. No buffer: DDP would
        #: overwrite it with that of the first process.
        self.use = torch.zeros(clusters, dtype=torch.long)

    def setup(self, stage: str) -> None:
        """Load the ViT. Raises as Encoder does."""
        h = self.hparams
        if h.vit is not None and not self._vit:
            vit = Encoder(h.vit, None, h.vit_weights is None, h.vit_weights)
            self._vit = (vit.eval().requires_grad_(False),)

    def graph(self) -> UNetGraph:
        """U_Enc as it is deployed, see ``training.networks.deployed``."""
        return UNetGraph(self.network.encoder)

    def logits(self, images: Tensor) -> Tensor:
        """Float [B, K, H, W] of images uint8 [B, 3, H, W]; the greatest is the cluster."""
        return self.network.encoder(self.scaled(images))

    def scaled(self, images: Tensor) -> Tensor:
        """Images of 0-255 as the network takes them: its own type, 0-1."""
        return images.to(self.network.encoder.head.weight.dtype) / 255

    def class_infos(self) -> list[ClassInfo]:
        """The clusters as the model file has them."""
        return cluster_infos(self.hparams.clusters)

    def on_fit_start(self) -> None:
        data = self.frames
        if not isinstance(data, Frames):
            raise DataError(
                f"W-Net trains on frames without labels, not on {type(data).__name__}: set "
                "--data training.data.unlabelled.Frames"
            )
        self.learn_from(data.summary)

    def ncut(self, probabilities: Tensor, images: Tensor) -> Tensor:
        """Mean soft N-cut of a batch: probabilities [B, K, H, W], images [B, 3, H, W] on 0-255."""
        if self.hparams.loss == "batch":
            features = self.vit_features(images)
            cells = F.adaptive_avg_pool2d(probabilities, (features.shape[-2], features.shape[-1]))
            return batch_ncut(cells, features, self.hparams.sigma)
        weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
        intensity = (images.float() * weights).sum(1, keepdim=True)
        cut = soft_ncut if self.hparams.loss == "exact" else gaussian_ncut
        return cut(probabilities, intensity).mean()

    def vit_features(self, images: Tensor) -> Tensor:
        """The ViT's tokens [B, D, H/cell, W/cell] of images on 0-255, each of length 1.

        Less their mean over the batch, which is what all have in common: without it unlike things
        are nearly as similar as like ones (DINOv2-S, CamVid: median cosine .54 in place of -.03).
        """
        (vit,) = self._vit
        grid = [side // self.hparams.cell for side in images.shape[-2:]]
        size = [side * vit.patch for side in grid]
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        with torch.no_grad():
            tokens = F.normalize(vit.to(images.device)(x).float(), dim=-1)
            tokens = F.normalize(tokens - tokens.mean((0, 1)), dim=-1)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def training_step(self, batch: UnlabelledBatch, index: int) -> None:
        images, names = batch
        x = self.scaled(images)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        segment, paint = optimizers

        probabilities = self.network.segment(x)
        cut = self.finite(self.ncut(probabilities, images), index, names)
        segment.zero_grad()
        # DDP waits for a gradient of each parameter: U_Dec's is zero here.
        untouched = sum(0 * parameter.sum() for parameter in self.network.decoder.parameters())
        self.manual_backward(cut + untouched)
        segment.step()

        _, reconstruction = self.network(x)
        error = self.finite(F.mse_loss(reconstruction, x), index, names)
        paint.zero_grad()
        self.manual_backward(error)
        paint.step()
        for schedule in self.lr_schedulers() or []:  # type: ignore[union-attr]
            schedule.step()

        self.log("train/soft_ncut", cut, prog_bar=True, sync_dist=True)
        self.log("train/reconstruction", error, prog_bar=True, sync_dist=True)
        top = probabilities.detach().argmax(1)
        self.use += torch.bincount(top.flatten(), minlength=self.hparams.clusters).cpu()
        if (index + 1) % LOOK_EVERY == 0 or index + 1 == self.trainer.num_training_batches:
            self.look_for_collapse()

    def look_for_collapse(self) -> None:
        """Log how many clusters were in use since the last look; warn if fewer than two were."""
        use = self.gathered(self.use.to(self.device)).reshape(-1, self.hparams.clusters).sum(0)
        self.use.zero_()
        share = use / use.sum()
        used = int((share >= IN_USE).sum())
        self.log_now(
            {"train/clusters_in_use": float(used), "train/largest_cluster": float(share.max())}
        )
        if used < 2:
            rank_zero_warn(
                f"collapse: cluster {int(share.argmax())} holds {float(share.max()):.2%} of the "
                f"pixels of the last batches (step {self.global_step}), the other "
                f"{self.hparams.clusters - 1} none: the model says the same of every pixel. Lower "
                "lr_encoder, or start anew with another seed."
            )

    def validation_step(self, batch: UnlabelledBatch, index: int) -> None:
        images, _ = batch
        x = self.scaled(images)
        probabilities, reconstruction = self.network(x)
        self.log("val/soft_ncut", self.ncut(probabilities, images), sync_dist=True)
        self.log("val/reconstruction", F.mse_loss(reconstruction, x), sync_dist=True)
        if index == 0 and self.trainer.is_global_zero:
            log_picture(self, "val", wnet_sheet(images, probabilities, reconstruction))

    def configure_optimizers(self) -> Any:
        h = self.hparams
        encoder, decoder = self.network.encoder.parameters, self.network.decoder.parameters
        optimizers = [
            torch.optim.Adam(encoder(), lr=h.lr_encoder),
            torch.optim.Adam(
                [
                    {"params": list(encoder()), "lr": h.lr_encoder},
                    {"params": list(decoder()), "lr": h.lr_decoder},
                ]
            ),
        ]
        if h.schedule == "constant":
            return optimizers
        batches = self.trainer.estimated_stepping_batches
        if self.trainer.max_steps > 0:  # it counts the steps of both optimisers
            batches = min(batches, max(1, self.trainer.max_steps // 2))
        return optimizers, [
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: poly(step / batches))
            for o in optimizers
        ]
