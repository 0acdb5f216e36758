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
from training import calibrate, pseudo_label
from training.data.class_list_file import read_class_list
from training.data.files import DataError
from training.data.own import OWN
from training.networks.weights import WeightsError


class BadArguments(ValueError):
    """A system or a data set refused its arguments; the message is theirs."""


class CLI(LightningCLI):
    """LightningCLI that never unpickles a checkpoint, wherever it comes from.

    A network whose ``classes`` are ``own`` gets those of its data's class list.
    """

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        # Before Lightning looks into the checkpoint for settings.
        if path := self.config[self.config.subcommand].get("ckpt_path"):
            _check_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        run = self.config[self.subcommand]
        run.weights_only = True
        listed = run.get("data.init_args.classes")
        if listed is not None and run.get("model.init_args.classes") == OWN:
            run.model.init_args.classes = list(read_class_list(listed).classes)

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
    """Run LightningCLI, or another command; returns the exit code (``ctxseg_ros.command``)."""
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["pseudo-label"]:
        return pseudo_label.main(given[1:])
    if given[:1] == ["calibrate"]:
        return calibrate.main(given[1:])
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
