# SPDX-License-Identifier: Apache-2.0
"""Learning rates over a run, and which parameters decay.

The schedules are LambdaLR of closed forms. torch's SequentialLR of LinearLR and PolynomialLR or
CosineAnnealingLR computes each rate from the one before, with other rounding, and its state does
not fit the checkpoints of earlier runs. timm's ``param_groups_weight_decay`` orders the groups the
other way round, leaves frozen parameters out and makes one group where there is no decay: an
optimizer's state in a checkpoint, which is stored by position, would not fit either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

#: Ends of the names of tokens and position embeddings, which do not decay.
_TOKENS = ("class_tokens", "cls_token", "reg_token", "pos_embed")


def poly(done: float) -> float:
    """Factor of the learning rate when ``done`` of the run, 0-1, is over: (1 - done)^0.9."""
    return max(0.0, 1 - done) ** 0.9


def cosine(start: float, end: float, done: float) -> float:
    """From ``start`` to ``end`` along half a cosine when ``done``, 0-1, is over."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def warmed(
    optimizer: torch.optim.Optimizer, steps: int, warmup: int, factor: Callable[[float], float]
) -> OptimizerLRSchedulerConfig:
    """The optimizer for Lightning, its learning rates set by the step.

    Args:
        steps: of the whole run.
        warmup: steps of a linear rise at its beginning.
        factor: of the learning rate when a share, 0-1, of the steps after the warm-up is over.
    """

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return factor((step - warmup) / max(1, steps - warmup))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, at)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmed_poly(
    optimizer: torch.optim.Optimizer, trainer: L.Trainer, warmup: int
) -> OptimizerLRSchedulerConfig:
    """``warmed`` with ``poly`` over the run of ``trainer``."""
    return warmed(optimizer, int(trainer.estimated_stepping_batches), warmup, poly)


def decay_groups(module: nn.Module, lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: weight matrices decay; biases, norms and tokens do not."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        plain = parameter.ndim < 2 or name.endswith(_TOKENS)
        (others if plain else matrices).append(parameter)
    return [
        {"params": matrices, "lr": lr, "weight_decay": decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
