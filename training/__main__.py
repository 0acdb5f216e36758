# SPDX-License-Identifier: Apache-2.0
"""``python -m training fit --config training/configs/X.yaml``: train a system; also ``validate``.

Everything in the YAML can be set on the command line, ``--model.init_args.lr 0.01`` for instance.
A run continues from a checkpoint with ``--ckpt_path runs/NAME/checkpoints/last.ckpt``.
"""

from __future__ import annotations

import os
import pickle
import sys

import lightning as L
import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ctxseg_ros.command import run_command
from training.data.pairs import DataError
from training.networks.weights import WeightsError


class BadArguments(ValueError):
    """A system or a data set refused its arguments; the message is theirs."""


class CLI(LightningCLI):
    """LightningCLI that never unpickles a checkpoint, wherever it comes from."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        # Before Lightning looks into the checkpoint for settings.
        if path := self.config[self.config.subcommand].get("ckpt_path"):
            _check_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        self.config[self.subcommand].weights_only = True

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a system or a data set refused into pages about types.
            first: BaseException = error
            while isinstance(first.__cause__, ValueError | OSError):
                first = first.__cause__
            if isinstance(first, OSError):
                raise BadArguments(f"cannot download the weights: {first}") from error
            raise BadArguments(str(first)) from error


def _check_checkpoint(path: str) -> None:
    """Raise BadArguments if a file is not a checkpoint. URLs, "last" and "best" are not files."""
    if not os.path.isfile(path):
        return
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise BadArguments(f"--ckpt_path {path}: damaged, or not a checkpoint") from error
    if not isinstance(saved, dict) or "state_dict" not in saved:
        raise BadArguments(f"--ckpt_path {path}: not a checkpoint of `python -m training fit`")


def main(args: list[str] | None = None) -> int:
    """Run LightningCLI; returns the exit code (``ctxseg_ros.command``)."""
    return run_command(
        "training", lambda: _run(args), bad_input=(BadArguments, DataError, WeightsError, OSError)
    )


def _run(args: list[str] | None) -> None:
    try:
        CLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False},
            args=args,
        )
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with 1 after Ctrl-C
            raise KeyboardInterrupt from error
        raise


if __name__ == "__main__":
    sys.exit(main())
