# SPDX-License-Identifier: Apache-2.0
"""``python -m training COMMAND``: all that is done offline. ``--help`` lists the commands."""

import sys
from collections.abc import Sequence
from importlib import import_module

from ctxseg_ros.command import BAD_INPUT
from ctxseg_ros.system.spelling import nearest

#: Name: the module whose ``main(args)`` it is, what it does. Modules are imported when called:
#: torch alone takes seconds.
COMMANDS = {
    "fit": ("training.fit", "train a system by a recipe of training/configs"),
    "validate": ("training.fit", "score a checkpoint on the validation data of its recipe"),
    "export": ("training.export.checkpoint", "a checkpoint becomes a model file"),
    "export-attention": ("training.export.attention", "a ViT's attention becomes a model file"),
    "evaluate": ("training.evaluation.evaluate", "score a model file against ground truth"),
    "report": ("training.evaluation.report", "plots of a run and pictures of its model"),
    "data": ("training.data.__main__", "check a data set before training"),
    "calibrate": ("training.calibration.calibrate", "fit and store the softmax's temperature"),
    "cluster": ("training.clusters.cluster", "cluster patch features into a model file"),
    "name-clusters": ("training.clusters.name_clusters", "turn clusters into named classes"),
    "token-cut": ("training.clusters.token_cut", "one object per frame by normalised cut"),
    "pseudo-label": ("training.pseudo_label", "soft labels of unlabelled frames by a model file"),
    "record-precision": (
        "training.export.record_precision",
        "measure what bf16 changes and record it in a model file",
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (``ctxseg_ros.command``)."""
    given = list(sys.argv[1:] if args is None else args)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m training COMMAND ...\n\ncommands (COMMAND --help says more):")
        for command, (_, purpose) in COMMANDS.items():
            print(f"  {command:<18}{purpose}")
        return 0 if given else BAD_INPUT
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f"did you mean {near}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"training: {name!r} is not a command; {hint}", file=sys.stderr)
        return BAD_INPUT
    module = COMMANDS[name][0]
    if module == "training.fit":  # its subcommands
        return int(import_module(module).main(args))
    return int(import_module(module).main(given[1:]))


if __name__ == "__main__":
    sys.exit(main())
