# SPDX-License-Identifier: Apache-2.0
"""The loss of self-distillation (DINO, Caron et al. 2021), and what shows a collapse."""

from __future__ import annotations

import torch
from torch import Tensor


def sharpened(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities, float32 [..., K]: softmax((logits - centre) / temperature).

    Args:
        logits: [..., K] of any float type. centre: float32 [K].
    """
    return ((logits.float() - centre) / temperature).softmax(-1)


def dino_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the student against the teacher, each view of one with the other views.

    Args:
        student: logits [V, B, K] of any float type; the first of the V views are the teacher's.
        teacher: probabilities float32 [T, B, K], T <= V, V > 1.
        temperature: of the student.

    Returns:
        float32 [], the mean over the pairs of different views and over the batch.
    """
    log_student = (student.float() / temperature).log_softmax(-1)
    # One product for all pairs: none of their [B, K] is held in memory. AMP would halve its
    # precision.
    with torch.autocast(student.device.type, enabled=False):
        pairs = -(teacher.flatten(1) @ log_student.flatten(1).T) / student.shape[1]
    same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0).sum() / (~same).sum()


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p of float [..., K], in nats [...]; where p is 0 it adds nothing."""
    return torch.special.entr(probabilities).sum(-1)
