# SPDX-License-Identifier: Apache-2.0
"""The systems by name, and a checkpoint's system."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from training.systems.base import System
from training.systems.dino import DinoSystem
from training.systems.distilled import DistilledSystem
from training.systems.segmenter import SegmenterSystem
from training.systems.unet import UNetSystem
from training.systems.wnet import WNetSystem

#: By the name that a checkpoint records.
SYSTEMS: dict[str, type[System]] = {
    kind.__name__: kind
    for kind in (DinoSystem, DistilledSystem, SegmenterSystem, UNetSystem, WNetSystem)
}

#: What torch.load raises for a file that is damaged, something else, or missing.
_NOT_A_CHECKPOINT = (OSError, EOFError, RuntimeError, pickle.UnpicklingError)


class CheckpointError(ValueError):
    """A file that is not a checkpoint of a system here."""


def load_system(checkpoint: Path) -> tuple[System, dict[str, Any]]:
    """The system of a checkpoint, in evaluation mode, and its run.

    Returns:
        The system, and ``epochs``, ``steps`` and ``recipe`` (the hyperparameters, files of weights
        without their folders).

    Raises:
        CheckpointError: the file cannot be read as a checkpoint of one of SYSTEMS.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        run = {
            "epochs": saved["epoch"] + 1,
            "steps": saved["global_step"],
            "recipe": {k: v for k, v in saved["hyper_parameters"].items() if k[0] != "_"},
        }
        # The weights are in the checkpoint: what the run was initialised from is not needed.
        initial = {"weights": None, "pretrained": False}
        unset: dict[str, Any] = {k: v for k, v in initial.items() if k in run["recipe"]}
        system = SYSTEMS[saved["system"]].load_from_checkpoint(
            checkpoint, map_location="cpu", weights_only=True, **unset
        )
    except (*_NOT_A_CHECKPOINT, KeyError, TypeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]  # torch goes on to advise unpickling
        raise CheckpointError(f"{checkpoint}: no checkpoint of this version: {first}") from error
    for key in ("weights", "teacher_weights", "vit_weights"):
        if path := run["recipe"].get(key):
            run["recipe"][key] = Path(path).name
    return system.eval(), run
