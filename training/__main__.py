# SPDX-License-Identifier: Apache-2.0
"""``python -m training fit --config training/configs/X.yaml``: train a system; also ``validate``.

Everything in the YAML can be set on the command line, ``--model.init_args.lr 0.01`` for instance.
A run continues from a checkpoint with ``--ckpt_path runs/NAME/checkpoints/last.ckpt``.
"""

from __future__ import annotations

import pickle
import sys

import lightning as L
from lightning.pytorch.cli import LightningCLI

from training.data.pairs import DataError
from training.networks.weights import WeightsError
from training.systems.labelled import TrainingDiverged


class BadArguments(RuntimeError):
    """A system or a data set refused its arguments; the message is theirs."""


class CLI(LightningCLI):
    """LightningCLI that never unpickles a checkpoint, wherever it comes from."""

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


def main(args: list[str] | None = None) -> int:
    """Run LightningCLI. Returns 1, after one clear line, if arguments, data or loss are wrong."""
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
    except (BadArguments, DataError, WeightsError, TrainingDiverged, FileNotFoundError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    except pickle.UnpicklingError as error:
        print(
            f"training: the checkpoint of --ckpt_path is damaged or none: {error}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
