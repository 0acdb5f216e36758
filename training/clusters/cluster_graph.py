# SPDX-License-Identifier: Apache-2.0
"""The deployed network of a clusters model: a ViT and the nearest centroid of each patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.clusters.clustering import Clustering
from training.networks.deployed import ViTGraph, labels_and_confidence
from training.networks.encoder import Encoder


class ClusterGraph(ViTGraph):
    """Which cluster each patch of an encoder belongs to, by the cosine with its nearest centroid.

    Args:
        network: the encoder. clustering: of its output tokens.
        temperature: of the softmax over the cosines, whose greatest is the confidence.
    """

    def __init__(self, network: Encoder, clustering: Clustering, temperature: float) -> None:
        super().__init__(network, network)
        self.counts = clustering.counts.tolist()
        self.mean = nn.Parameter(torch.from_numpy(clustering.mean))
        self.projection = nn.Parameter(torch.from_numpy(clustering.projection))
        self.centroids = nn.Parameter(torch.from_numpy(clustering.centroids / temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and confidence, uint8 [1, H, W] each; the cosines are upsampled bilinearly."""
        patches = self.patches(image)
        tokens = F.normalize(self.encoder.encode(patches), dim=-1)
        tokens = F.normalize((tokens - self.mean) @ self.projection, dim=-1)
        cosines = (tokens @ self.centroids.T).split(self.counts, dim=-1)
        logits = torch.stack([c.amax(-1) for c in cosines], dim=1)
        logits = logits.unflatten(-1, patches.shape[1:3])
        logits = F.interpolate(logits, image.shape[1:3], mode="bilinear", align_corners=False)
        return labels_and_confidence(logits)
