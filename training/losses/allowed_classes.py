# SPDX-License-Identifier: Apache-2.0
"""Cross entropy for labels that allow one class or several, with a confidence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def allowed_classes_loss(
    logits: Tensor, labels: Tensor, confidence: Tensor, allowed: Tensor, ignore: int = 255
) -> Tensor:
    """Sum over the labelled pixels of ``-(c log P + (1 - c) log(1 - P))``.

    ``P = sum_(k in S) softmax(logits)_k`` is the probability of the classes S that a pixel's label
    allows, ``c`` is how sure the label is. A label that allows one class and is certain gives the
    cross entropy. A certain label that allows several (partial label learning, Jin & Ghahramani
    2002) does not say how they share P. An uncertain one, of a teacher, does not say what the
    pixel is otherwise: the loss is least at P = c, for any distribution of the rest.

    Args:
        logits: float [B, K, H, W].
        labels: int64 [B, H, W]: rows of ``allowed``, or ``ignore`` where there is no label.
        confidence: uint8 [B, H, W], 255 for certain.
        allowed: bool [S, K], K of them or more: row k < K allows class k alone, each of the others
            two classes or more, but not all.

    Returns:
        a scalar, float32 or wider.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    log_p = F.log_softmax(logits.to(kind), dim=1)
    known = labels != ignore
    plain = known & (labels < logits.shape[1]) & (confidence == 255)
    total = F.nll_loss(log_p, labels.where(plain, ignore), ignore_index=ignore, reduction="sum")

    rest = known & ~plain
    if not rest.any():
        return total
    log_p = log_p.permute(0, 2, 3, 1)[rest]  # [n, K]
    inside = allowed[labels[rest]]
    sure = confidence[rest].to(kind) / 255
    log_inside = log_p.masked_fill(~inside, -torch.inf).logsumexp(1)
    log_outside = log_p.masked_fill(inside, -torch.inf).logsumexp(1)
    return total - (sure * log_inside + (1 - sure) * log_outside).sum()
